import json

import numpy as np
from program import call, run_program

import shazam_fast as sf


def without_seconds(methods):
    keep = ("seconds", "fit_seconds", "score_seconds")
    return {name: {key: v for key, v in values.items() if key not in keep} for name, values in methods.items()}


def test_compare(tmp_path, archive):
    options = ("--method", "best_single_balanced", "--method", "logit_product", "--repeats", 2)
    run = call("compare", archive.path, *options, "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert "logit_product" in run.stdout
    assert "best single teacher" in run.stdout
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    expected = sf.compare(archive, ["best_single_balanced", "logit_product"], repeats=2).to_dict()
    assert without_seconds(found["methods"]) == without_seconds(expected["methods"])
    again = call("compare", archive.path, *options, "--out", tmp_path / "out")
    assert again.stdout == run.stdout
    refused = call("compare", archive.path, *options, "--seed", 3, "--out", tmp_path / "out")
    assert "was written with another seed (0, now 3)" in refused.stderr
    assert "holds a comparison" in call("inspect", tmp_path / "out").stderr


def test_a_study(archive):
    run = run_program("compare", archive.path, "--study", "subsets", "--repeats", 2, width=240)
    assert run.returncode == 0, run.stderr
    for words in ("2 of 3 teachers", "encoders", "Highest balanced accuracy"):
        assert words in run.stdout
    assert "one of depth, lambda" in call("compare", archive.path, "--study", "width").stderr


def test_sites_shares_and_seed(tmp_path, archive):
    (tmp_path / "sites.csv").write_text(
        "slide_id,site\n" + "\n".join(f"{slide},{'abcdef'[i // 2]}" for i, slide in enumerate(archive.slides))
    )
    options = ("--val", 0.3, "--test", 0.3, "--seed", 4, "--sites", tmp_path / "sites.csv")
    run = call("compare", archive.path, "--method", "lr_concat", *options, "--repeats", 1, "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    rows = sf.open_comparison(tmp_path / "out").cells[0].rows
    assert len(rows) == 100  # two sites of 50 patches
    assert len(np.unique(archive.slide_index[rows] // 2)) == 2


def test_what_cannot_be_compared(tmp_path, archive):
    assert "methods: different names among" in call("compare", archive.path, "--method", "voting").stderr
    assert "--out" in call("compare", archive.path, "--method", "knn", "--out", archive.path).stderr
    (tmp_path / "file").write_text("")
    run = call("compare", archive.path, "--method", "knn", "--out", tmp_path / "file")
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
