"""The model card beside a student: complete, escaped, and never over someone else's file."""

import json
import re

import numpy as np
import pytest
from students import make_student
from synthetic import make_patches

import shazam_fast as sf
from shazam_fast.student.saving.model_card import model_card


def head_of(card):
    """The YAML head as {key: value} of its plain lines."""
    _, head, _ = card.split("---\n", 2)
    return dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)


def test_a_trained_student_has_a_complete_card(trained, tmp_path):
    student, _ = trained
    student.save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert head_of(card)["library_name"] == "shazam_fast"
    assert f"| virchow | 20 | {sf.get_teacher('virchow').licence.replace('-', chr(92) + '-')} |" in card
    test = student.training_record["metrics"]["test"]
    low, high = student.training_record["intervals"]["test"]["balanced_accuracy"]
    assert low < test["balanced_accuracy"] < high
    assert rf"| test | 75 | {test['balanced_accuracy']:.3f} \({low:.3f} to {high:.3f}\) |" in card
    assert "by bootstrap over groups" in card
    assert "3 in val, 3 in test" in card
    assert f"value: {test['auroc']:.4f}" in card
    assert "| train | 150 | 6 | 6 |" in card
    assert "Not calibrated" in card
    assert "normal, adenoma, carcinoma" in card


def test_the_head_is_yaml(trained, tmp_path):
    yaml = pytest.importorskip("yaml")
    student, _ = trained
    student.save(tmp_path)
    head = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n", 2)[1])
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["name"] == "a.archive"
    assert {metric["type"] for metric in result["metrics"]} >= {"balanced_accuracy", "auroc"}


def test_what_is_not_known_is_called_unknown(tmp_path):
    config = sf.StudentConfig({"my own encoder": 8, "uni_v1": 8}, ("a", "b"), dim=8, depth=1)
    card = model_card(config, {})
    assert "| my own encoder | 8 | unknown | unknown | unknown | unknown | unknown |" in card
    assert r"| uni\_v1 | 8 | CC\-BY\-NC\-ND\-4.0 | yes |" in card
    for words in ("Archive: unknown", "patients: unknown", "Unknown: the student was not evaluated"):
        assert words in card
    assert "None" not in card


def test_records_of_users_are_no_problem(tmp_path):
    student = make_student()
    student.training_record = {
        "metrics": {"test": 0.5},
        "intervals": {"test": {"groups": 3, "balanced_accuracy": 0.5}},
        "teachers": {"uni": {"pooling": "cls"}},
        "calibration": 3,
        "data": [],
    }
    student.save(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "the student was not evaluated" in card
    assert "| unknown | cls | unknown |" in card


def test_names_are_escaped():
    strange = "a|b <script> [x](http://y) `c`\n# d"
    config = sf.StudentConfig({strange: 8}, (strange, "b"), dim=8, depth=1)
    card = model_card(config, {"archive": strange, "metrics": {"test": {"n_rows": 3, "auroc": 0.5}}})
    body = card.split("---\n", 2)[2]
    assert "<script>" not in body
    assert "\n# d" not in body
    assert not re.search(r"(?<!\\)\[x\]", body)
    row = next(line for line in body.splitlines() if line.startswith("| a"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 8
    assert json.loads(head_of(card)["      name"]) == strange


def test_a_calibrated_student_says_so(tmp_path):
    patches = make_patches(400)
    rng = np.random.default_rng(1)
    patches["labels"] = np.where(rng.random(400) < 0.25, rng.integers(0, 3, 400), patches["labels"])
    archive = sf.open(sf.write_archive(tmp_path / "a", **patches))
    student = sf.train(archive, epochs=3, dim=16, depth=2, batch_size=32, device="cpu").student
    calibrated = sf.calibrate(student, archive, device="cpu")
    calibrated.save(tmp_path / "s")
    temperature = calibrated.training_record["calibration"]["temperature"]
    assert f"temperature {temperature:.3f}" in (tmp_path / "s" / "README.md").read_text()


def test_someone_elses_readme_stays(tmp_path):
    student = make_student()
    student.save(tmp_path)
    first = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(first.replace("Intended use", "Intended abuse"))
    student.save(tmp_path)
    assert (tmp_path / "README.md").read_text() == first
    (tmp_path / "README.md").write_text("mine")
    sf.average([student, make_student(depth=2)]).save(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
