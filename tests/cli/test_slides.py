import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from cohorts import make_cohort, make_survival
from program import call

import shazam_fast as sf


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("slides")
    _, labels, _ = make_cohort(place / "archive", slides=18, sizes=(5, 30))
    pd.DataFrame({"slide_id": list(labels), "label": list(labels.values())}).to_csv(place / "labels.csv", index=False)
    pd.DataFrame(make_survival(labels)).to_csv(place / "clinical.csv", index=False)
    return place


QUICK = ("--folds", "3", "--epochs", "2", "--dim", "8", "--device", "cpu")


def test_from_selection_to_scores(place, monkeypatch):
    monkeypatch.chdir(place)
    run = call("slides", "select", "archive", "--out", "chosen", "--clusters", "4", "--per-cluster", "2")
    assert run.returncode == 0, run.stderr
    assert "18 slides" in run.stdout
    run = call("slides", "train", "archive", "--labels", "labels.csv", "--selection", "chosen", "--out", "run", *QUICK)
    assert run.returncode == 0, run.stderr
    assert "auroc" in run.stdout
    assert "constant predictor" in run.stdout
    run = call("slides", "evaluate", "run", "archive", "--labels", "labels.csv", "--out", "m.json")
    assert run.returncode == 1
    assert "--allow-trained-slides" in run.stderr
    again = ("--allow-trained-slides", "--device", "cpu", "--out", "m.json")
    run = call("slides", "evaluate", "run", "archive", "--labels", "labels.csv", *again)
    assert run.returncode == 0, run.stderr
    assert (place / "m.json").exists()
    run = call("slides", "score", "run", "archive", "--out", "scored", "--device", "cpu")
    assert run.returncode == 0, run.stderr
    assert len(sf.slides.open_scores(place / "scored")) == 18


def test_slide_level_teachers(place, monkeypatch):
    h5py = pytest.importorskip("h5py")
    monkeypatch.chdir(place)
    folder = place / "slide_features_titan"
    folder.mkdir()
    for i in range(18):
        with h5py.File(folder / f"s{i:03d}.h5", "w") as file:
            file["features"] = [float(i), 1.0]
    wanted = ("slides", "train", "archive", "--labels", "labels.csv", *QUICK)
    run = call(*wanted, "--model", "slide_linear", "--out", "linear")
    assert "give slide_teachers={name: directory} (--slide-teacher)" in run.stderr
    given = ("--slide-teacher", "titan=slide_features_titan")
    run = call(*wanted, *given, "--model", "slide_linear", "--out", "linear")
    assert run.returncode == 0, run.stderr
    run = call("slides", "score", "linear", "archive", "--out", "linear-scores", *given, "--device", "cpu")
    assert run.returncode == 0, run.stderr
    run = call(*wanted, "--slide-teacher", ".", "--kl", "teacher_student", "--out", "distilled")
    assert run.returncode == 0, run.stderr
    assert "distillation" in sf.slides.load(place / "distilled").training_record["job"]


def test_survival(place, monkeypatch):
    monkeypatch.chdir(place)
    columns = ("--time", "months", "--event", "dead")
    wanted = ("slides", "train", "archive", "--labels", "clinical.csv", "--out", "survival", *QUICK)
    assert call(*wanted, *columns).returncode == 2
    run = call(*wanted, *columns, "--observed", "0")
    assert "looks inverted" in run.stderr
    run = call(*wanted, *columns, "--observed", "1")
    assert run.returncode == 0, run.stderr
    assert "c_index" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("slides", "train", "archive", "--labels", "nowhere.csv", "--out", "new"), "nowhere.csv"),
        (("slides", "train", "archive", "--labels", "labels.csv", "--out", "archive"), "holds features already"),
        (("slides", "score", "archive", "archive", "--out", "new"), "holds features, but a slide's student expected"),
        (("slides", "train", "archive", "--labels", "labels.csv", "--model", "x", "--out", "new"), "model: one of"),
    ],
)
def test_wrong_input_is_one_line(place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    run = call(*arguments)
    assert run.returncode == 1
    assert message in run.stderr
    assert run.stderr.count("\n") == 1
    assert not (place / "new").exists()


def test_help_needs_no_torch():
    script = "import sys; sys.modules['torch'] = None; from shazam_fast.cli.app import main; main()"
    command = [sys.executable, "-c", script, "slides", "train", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "120"})
    assert run.returncode == 0, run.stderr
    assert all(option in run.stdout for option in ("--model", "--epochs", "--dim", "--observed"))


def test_columns_of_classes_and_of_numbers(place, monkeypatch):
    monkeypatch.chdir(place)
    table = pd.read_csv("labels.csv")
    table["b"] = table.label.map({"a": "y", "b": "x"})
    table["level"] = [1.0 + i for i in range(len(table))]
    table.to_csv("columns.csv", index=False)
    wanted = ("slides", "train", "archive", "--labels", "columns.csv", *QUICK)
    run = call(*wanted, "--out", "classes", "--target", "label", "--target", "b")
    assert run.returncode == 0, run.stderr
    assert "auroc label" in run.stdout
    run = call("slides", "evaluate", "classes", "archive", "--labels", "columns.csv", "--allow-trained-slides")
    assert run.returncode == 0, run.stderr
    assert "auroc b" in run.stdout
    run = call(*wanted, "--out", "numbers", "--value", "level", "--log2", "--protocol", "reported_folds")
    assert run.returncode == 0, run.stderr
    assert "pearson" in run.stdout
    assert "too good" in run.stdout
    for options, message in (
        (("--target", "label", "--value", "level"), "give --target or --value, not both"),
        (("--log2",), "--log2 is for numbers"),
        (("--time", "level"), "give --time, --event and --observed together"),
    ):
        run = call(*wanted, "--out", "new", *options)
        assert run.returncode == 2
        assert message in " ".join(run.stderr.split())


def test_several_models_in_one_table(place, monkeypatch):
    monkeypatch.chdir(place)
    wanted = ("slides", "crossvalidate", "archive", "--labels", "labels.csv", "--out", "compared", *QUICK)
    run = call(*wanted, "--model", "mean", "--model", "gated_abmil")
    assert run.returncode == 0, run.stderr
    assert "against mean" in run.stdout
    assert "constant" in run.stdout
    found = json.loads((place / "compared" / "slide-comparison.json").read_text())
    assert [row["model"] for row in found["table"][:3]] == ["mean", "gated_abmil", "constant"]
    assert len(sf.slides.load(place / "compared" / "mean").models) == 3
    run = call("slides", "train", "archive", "--labels", "labels.csv", "--out", "compared", *QUICK)
    assert "holds a comparison of slide models already" in run.stderr
