"""Whatever a user types: the wrong directory, missing files, impossible numbers. One line each, no traceback."""

import os
import shutil

import numpy as np
import pytest
from program import call

import shazam_fast as sf


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained):
    """An archive, a student, scores and an unfinished training."""
    place = tmp_path_factory.mktemp("place")
    student, archive = trained
    shutil.copytree(archive.path, place / "archive")
    student.save(place / "student")
    sf.score(student, archive, place / "scores")
    (place / "unfinished").mkdir()
    (place / "unfinished" / "checkpoint.safetensors").write_bytes(b"")
    (place / "empty").mkdir()
    (place / "text.csv").write_text("nothing of use\n")
    return place


WRONG = [
    (("inspect", "student"), "student holds a student, but features expected here; a command that takes it: evaluate"),
    (("verify", "scores"), "scores holds scores, but features expected here; a command that takes it: heatmap"),
    (("train", "scores", "--out", "new"), "scores holds scores, but features expected"),
    (("convert", "unfinished", "--out", "new"), "unfinished holds an unfinished training, but features expected"),
    (("inspect", "--teacher", "uni=student"), "student holds a student, but features expected"),
    (("evaluate", "archive", "student"), "student holds a student, but features expected"),
    (("evaluate", "archive", "archive"), "archive holds features, but a student expected"),
    (("evaluate", "unfinished", "archive"), "train or finetune, with the same options, which resumes it"),
    (("score", "scores", "archive", "--out", "new"), "scores holds scores, but a student expected"),
    (("heatmap", "archive", "--out", "new"), "archive holds features, but scores expected"),
    (("heatmap", "student", "--out", "new"), "student holds a student, but scores expected"),
    (("train", "archive", "--out", "scores"), "scores holds scores already; choose another directory"),
    (("train", "archive", "--out", "archive"), "archive holds features already"),
    (("score", "student", "archive", "--out", "student"), "student holds a student already"),
    (("convert", "archive", "--out", "scores"), "scores holds scores already"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_directory_of_another_kind_is_called_what_it_is(place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    run = call(*arguments)
    assert run.returncode == 1
    assert f"error: {message}" in run.stderr or message in run.stderr
    assert run.stderr.count("\n") == 1
    assert sorted(place.rglob("*")) == before


ODD = [
    ("inspect", "missing"),
    ("inspect", "empty"),
    ("inspect", "text.csv"),
    ("inspect", "archive", "--labels", "missing.csv"),
    ("inspect", "archive", "--labels", "text.csv"),
    ("inspect", "archive", "--labels", "empty"),
    ("inspect", "archive", "--splits", "text.csv"),
    ("inspect", "archive", "--groups", "missing.csv"),
    ("inspect", "archive", "--val", "2"),
    ("inspect", "archive", "--val", "nan"),
    ("inspect", "archive", "--val", "-0.1", "--test", "0.1"),
    ("inspect", "archive", "--slides", "missing.txt"),
    ("inspect", "archive", "--slides", "missing.csv"),
    ("inspect", "archive", "--slides", "text.csv"),
    ("inspect", "--teacher", "uni=missing"),
    ("inspect", ""),
    ("verify", "empty"),
    ("verify", "/dev/null"),
    ("convert", "empty", "--out", "new"),
    ("convert", "archive", "--out", "new", "--dtype", "float8"),
    ("convert", "archive", "--out", "text.csv"),
    ("train", "archive", "--out", "new", "--epochs", "0"),
    ("train", "archive", "--out", "new", "--lr", "nan"),
    ("train", "archive", "--out", "new", "--preset", "camelyon"),
    ("train", "archive", "--out", "new", "--batch-size", "100000"),
    ("train", "archive", "--out", "new", "--huber", "square"),
    ("train", "archive", "--out", "new", "--block", "square"),
    ("evaluate", "student", "archive", "--split", "exam"),
    ("evaluate", "empty", "archive"),
    ("score", "student", "archive", "--out", "new", "--cluster", "slurm"),
    ("score", "student", "archive", "--out", "text.csv"),
    ("score", "student", "empty", "--out", "new"),
    ("heatmap", "scores", "--out", "new", "--patch-size", "0"),
    ("heatmap", "scores", "--out", "new", "--patch-size", "nan"),
    ("heatmap", "scores", "--out", "new", "--patch-size", "256", "--mpp", "-1"),
    ("heatmap", "scores", "--out", "text.csv", "--patch-size", "256"),
    ("heatmap", "missing", "--out", "new"),
    ("extract", "missing", "--teacher", "uni", "--out", "new"),
    ("extract", "empty", "--teacher", "uni", "--out", "new"),
    ("extract", "empty", "--teacher", "nobody", "--out", "new"),
    ("extract", "empty", "--teacher", "uni", "--out", "new", "--transform", "upside-down"),
    ("extract", "empty", "--teacher", "uni", "--out", "new", "--dataset", "camelyon"),
    ("teachers", "nobody"),
    ("demo", "--out", "text.csv"),
    ("demo", "--out", "student"),
]


@pytest.mark.parametrize("arguments", ODD, ids=" ".join)
def test_impossible_input_is_one_line(place, monkeypatch, arguments):
    monkeypatch.chdir(place)
    run = call(*arguments)
    assert run.returncode == 1, run
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert not list((place / "new").glob("*"))
    assert (place / "student" / "student.json").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x"])
def test_devices_that_are_not_there(place, tmp_path, device):
    run = call("score", place / "student", place / "archive", "--out", tmp_path / "new", "--device", device)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")


class _Refusing:
    """os.scandir as it is in a directory that the user may not read; tests may run as root, who may read all."""

    def __call__(self, path="."):
        raise PermissionError(13, "Permission denied", str(path))


def test_directories_without_permission(tmp_path, monkeypatch):
    np.save(tmp_path / "uni.npy", np.ones((4, 3), np.float32))
    if os.geteuid() != 0:
        tmp_path.chmod(0o000)
    else:
        monkeypatch.setattr(os, "scandir", _Refusing())
        monkeypatch.setattr(os, "listdir", _Refusing())
    run = call("inspect", tmp_path)
    monkeypatch.undo()
    tmp_path.chmod(0o700)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert str(tmp_path) in run.stderr
    assert "ermission denied" in run.stderr
