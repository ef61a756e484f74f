"""Files that commands write beside what they print, and tables in a narrow terminal."""

import csv
import json
import os

import numpy as np
import pytest
from program import call

import shazam_fast as sf


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained):
    place = tmp_path_factory.mktemp("outputs")
    student, archive = trained
    student.save(place / "student")
    return place, archive


def test_metrics_as_json(place, tmp_path):
    folder, archive = place
    out = tmp_path / "new" / "metrics.json"
    run = call("evaluate", folder / "student", archive.path, "--split", "val", "--out", out)
    assert run.returncode == 0, run.stderr
    found = json.loads(out.read_text())
    assert found.pop("split") == "val"
    assert found == sf.evaluate(folder / "student", archive, "val").to_dict()


def test_scores_as_csv(place, tmp_path):
    folder, archive = place
    out = tmp_path / "scores.csv"
    arguments = ("score", folder / "student", archive.path, "--out", tmp_path / "scores", "--fused", "--csv", out)
    for _ in range(2):  # the second finds the scores, and writes the table again
        out.unlink(missing_ok=True)
        run = call(*arguments)
        assert run.returncode == 0, run.stderr
        scores = sf.open_scores(tmp_path / "scores")
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(scores)
        wanted = ["row", "slide", "x", "y", "prediction", *(f"probability_{name}" for name in scores.classes)]
        assert list(rows[0])[: len(wanted)] == wanted
        assert "fused" not in rows[0]
        found = np.array([[float(row[f"probability_{name}"]) for name in scores.classes] for row in rows])
        np.testing.assert_allclose(found, scores.probabilities, atol=1e-6)
        assert [row["prediction"] for row in rows] == [scores.classes[code] for code in scores.prediction]
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("command", ["evaluate", "score"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(place, tmp_path, command):
    folder, archive = place
    name, more = ("--out", ()) if command == "evaluate" else ("--csv", ("--out", tmp_path / "scores"))
    run = call(command, folder / "student", archive.path, name, tmp_path, *more)
    assert run.returncode == 1
    assert f"{name} {tmp_path}: a file expected, there is a directory" in run.stderr
    (tmp_path / "file").write_text("")
    run = call(command, folder / "student", archive.path, name, tmp_path / "file" / "a", *more)
    assert run.returncode == 1
    assert "a directory expected, there is a file" in run.stderr
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_titles_of_tables_stand_in_one_line(place):
    _, archive = place
    lines = call("inspect", archive.path, width=80).stdout.splitlines()
    assert "patches per class and split" in lines
    assert any(line.startswith("teachers; norms of all patches") for line in lines)
