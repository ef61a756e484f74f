import json

from program import call

import shazam_fast as sf


def test_compare(tmp_path, archive):
    options = ("--method", "best_single_balanced", "--method", "logit_product", "--repeats", 2)
    run = call("compare", archive.path, *options, "--out", tmp_path / "found.json")
    assert run.returncode == 0, run.stderr
    assert "logit_product" in run.stdout
    assert "best single teacher" in run.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["methods"]) == {"best_single_balanced", "logit_product"}
    assert found["methods"] == {
        name: {**values, "seconds": found["methods"][name]["seconds"]}
        for name, values in sf.compare(archive, ["best_single_balanced", "logit_product"], repeats=2)
        .to_dict()["methods"]
        .items()
    }


def test_what_cannot_be_compared(tmp_path, archive):
    assert "methods: different names among" in call("compare", archive.path, "--method", "voting").stderr
    run = call("compare", archive.path, "--method", "knn", "--out", tmp_path / "none" / "found.json")
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
