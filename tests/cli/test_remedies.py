"""What an error tells a user to do exists, and works."""

import ast
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from program import call
from synthetic import make_patches

import shazam_fast as sf
from shazam_fast.cli.app import app

PACKAGE = Path(sf.__file__).parent
QUICK = ("--epochs", "1", "--batch-size", "4", "--dim", "8", "--depth", "1")


def commands():
    """{command or group: the options of all that it has}."""
    return {name: options(command) for name, command in typer.main.get_command(app).commands.items()}


def options(command):
    inner = getattr(command, "commands", {}).values()
    return {option for p in command.params for option in p.opts}.union(*map(options, inner))


def messages():
    """(file, text) of every string in a raise statement or a call of the logger."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                parts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                yield file.relative_to(PACKAGE), " ".join(parts)


def test_options_and_commands_that_messages_name_exist():
    known = {option for options in commands().values() for option in options}
    wrong, seen = [], 0
    for file, text in messages():
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text):
            seen += 1
            wrong += [f"{file}: {option}"] if option not in known else []
        for command in re.findall(r"shazam-fast ([a-z]+)", text):
            seen += 1
            wrong += [f"{file}: shazam-fast {command}"] if command not in commands() else []
        for name in re.findall(r"(?:shazam_fast|\bsf)\.([a-z_]+)\b", text):
            wrong += [f"{file}: sf.{name}"] if name not in dir(sf) else []
    assert not wrong
    assert seen > 5


def refused(*arguments):
    run = call(*arguments)
    assert run.returncode == 1, run
    return run.stderr


def accepted(*arguments):
    run = call(*arguments)
    assert run.returncode == 0, run.stderr
    return run


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """Four slides of two teachers, of which one lacks the last; labels by slide."""
    monkeypatch.chdir(tmp_path)
    for teacher, slides in (("uni", "abcd"), ("virchow", "abc")):
        for i, slide in enumerate(slides):
            path = tmp_path / "job_overlap" / f"features_{teacher}" / f"{slide}.h5"
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file["features"] = np.random.default_rng(i).normal(size=(8, 4)).astype("f4")
                file["coords"] = np.stack([np.arange(8) * 256, np.zeros(8, int)], 1)
    (tmp_path / "labels.csv").write_text("slide_id,label\na,x\nb,y\nc,x\nd,y\n")
    return Path("job_overlap")


def test_a_slide_that_a_teacher_lacks(cohort):
    assert "slides=" in refused("inspect", cohort)
    accepted("inspect", cohort, "--slides", "a", "--slides", "b")


def test_splits_that_are_missing(cohort):
    options = ("--labels", "labels.csv", "--teacher", "uni", *QUICK)
    assert "splits" in refused("train", cohort, "--out", "run", *options)
    Path("splits.csv").write_text("slide_id,split\na,train\nb,train\nc,val\nd,val\n")
    accepted("train", cohort, "--out", "run", "--splits", "splits.csv", *options)


@pytest.mark.usefixtures("small_maps")
def test_a_patch_size_that_is_not_known(tmp_path, monkeypatch, trained):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra: heatmap)")
    monkeypatch.chdir(tmp_path)
    sf.score(*trained, "scores")
    assert "--patch-size" in refused("heatmap", "scores", "--out", "maps")
    accepted("heatmap", "scores", "--out", "maps", "--patch-size", "256")


def test_teachers_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    patches = make_patches(rows=60)
    sf.write_archive("all", **patches)
    del patches["features"]["uni"]
    sf.write_archive("fewer", **patches)
    accepted("train", "all", "--out", "run", *QUICK)
    assert "--allow-missing-teachers" in refused("score", "run", "fewer", "--out", "scores")
    accepted("score", "run", "fewer", "--out", "scores", "--allow-missing-teachers")


def test_classes_in_another_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    patches = make_patches(rows=60)
    classes = list(patches["classes"])
    sf.write_archive("a", **patches)
    sf.write_archive("b", **{**patches, "labels": len(classes) - 1 - patches["labels"], "classes": classes[::-1]})
    accepted("train", "a", "--out", "run", *QUICK)
    error = refused("evaluate", "run", "b")
    options = shlex.split(error[error.index("(--classes") + 1 : error.rindex(")")])
    accepted("evaluate", "run", "b", *options)
    with pytest.raises(sf.MismatchError, match="open the features with classes=") as caught:
        sf.evaluate("run", "b")
    assert f"classes={classes}" in str(caught.value)
    metrics = [sf.evaluate("run", archive) for archive in ("a", sf.open("b", classes=classes))]
    assert metrics[0].to_dict() == metrics[1].to_dict()
    sf.write_archive("c", **{**patches, "classes": [*classes[:-1], "else"]})
    with pytest.raises(sf.MismatchError, match="the student does not know 'else'"):
        sf.evaluate("run", "c")


def test_values_beyond_float16(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("uni.npy", np.full((4, 3), 1e6, np.float32))
    assert "float32" in refused("convert", "uni.npy", "--out", "a")
    run = accepted("convert", "uni.npy", "--out", "a", "--dtype", "float32")
    assert "12 values too large for float16" in run.stdout


def test_features_that_cannot_be_mapped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("s.h5", "w") as file:
        file.create_dataset("features", data=np.ones((4, 3), np.float32), compression="gzip")
    assert "convert" in refused("inspect", "s.h5")
    accepted("convert", "s.h5", "--out", "a")
    accepted("inspect", "a")


def test_a_teacher_that_is_not_known(tmp_path):
    error = refused("extract", tmp_path, "--teacher", "unni", "--out", tmp_path / "a")
    assert "`shazam-fast teachers` lists them" in error
    assert "uni" in accepted("teachers").stdout
