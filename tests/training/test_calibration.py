"""Temperature scaling: found on the validation split, and part of the student from then on."""

import numpy as np
import pytest
import torch
from program import call
from synthetic import make_patches

import shazam_fast as sf
from shazam_fast.training.calibration import _best_temperature, _cross_entropy


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An archive on which students err, and a student that is far too sure."""
    patches = make_patches(2400)
    rng = np.random.default_rng(1)
    wrong = rng.random(2400) < 0.25
    patches["labels"] = np.where(wrong, rng.integers(0, 3, 2400), patches["labels"])
    archive = sf.open(sf.write_archive(tmp_path_factory.mktemp("calibration") / "a", **patches))
    student = sf.train(archive, epochs=4, dim=16, depth=2, batch_size=32, device="cpu").student
    return archive, too_sure(student, 40.0)


def too_sure(student, factor):
    with torch.no_grad():
        for parameter in (*student.head[3].parameters(), *student.teacher_heads.parameters()):
            parameter.mul_(factor)
    return student


def test_probabilities_become_as_sure_as_they_are_right(made):
    archive, student = made
    before = sf.score(student, archive, split="test", device="cpu")
    calibrated = sf.calibrate(student, archive, device="cpu")
    after = sf.score(calibrated, archive, split="test", device="cpu")
    np.testing.assert_array_equal(before.prediction, after.prediction)
    np.testing.assert_allclose(before.shares, after.shares, atol=1e-6)
    errors = [sf.evaluate(s, archive, "test", device="cpu").calibration_error for s in (student, calibrated)]
    assert errors[1] < 0.5 * errors[0]
    record = calibrated.training_record["calibration"]
    assert record["temperature"] > 2
    assert record["n_rows"] == 600
    assert record["cross_entropy"][1] < record["cross_entropy"][0]
    logits = np.log(before.probabilities.astype(np.float64)) / record["temperature"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(after.probabilities, expected, atol=1e-4)
    assert "calibration" not in student.training_record  # the student itself is as it was


def test_it_is_saved_folded_and_calibrated_again(made, tmp_path):
    archive, student = made
    calibrated = sf.calibrate(student, archive, device="cpu")
    calibrated.save(tmp_path / "student")
    loaded = sf.load(tmp_path / "student")
    features = archive[:50]
    np.testing.assert_array_equal(loaded.predict_proba(features), calibrated.predict_proba(features))
    np.testing.assert_allclose(loaded.fold().predict_proba(features), loaded.predict_proba(features), atol=1e-5)
    again = sf.calibrate(tmp_path / "student", archive, device="cpu").training_record["calibration"]
    assert again["temperature"] == pytest.approx(loaded.training_record["calibration"]["temperature"], rel=1e-3)


def test_an_ensemble_is_calibrated_as_a_whole(made, tmp_path):
    archive, student = made
    other = too_sure(sf.train(archive, epochs=4, dim=16, depth=2, seed=5, batch_size=32, device="cpu").student, 6.0)
    ensemble = sf.average([student, other])
    calibrated = sf.calibrate(ensemble, archive, device="cpu")
    calibrated.save(tmp_path / "e")
    errors = [sf.evaluate(s, archive, "test", device="cpu").calibration_error for s in (ensemble, tmp_path / "e")]
    assert errors[1] < errors[0]
    assert sf.load(tmp_path / "e").training_record["calibration"]["temperature"] > 1


def test_the_temperature_is_the_best():
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(400, 3)) * 4 for _ in range(2)]
    labels = np.where(rng.random(400) < 0.6, (logits[0] + logits[1]).argmax(axis=1), rng.integers(0, 3, 400))
    for members in (logits[:1], logits):
        best = _best_temperature(members, labels)
        values = [_cross_entropy(members, labels, t) for t in np.geomspace(0.1, 19, 400)]
        assert _cross_entropy(members, labels, best) <= min(values) + 1e-9


def test_a_split_without_errors_cannot_calibrate(tmp_path):
    patches = make_patches(300, scales=(1.0, 1.0, 1.0))
    for name, block in patches["features"].items():
        patches["features"][name] = block + 50 * np.eye(3, block.shape[1])[patches["labels"]]
    archive = sf.open(sf.write_archive(tmp_path / "a", **patches))
    student = sf.train(archive, preset="unitopatho", epochs=25, dim=16, depth=2, batch_size=16, device="cpu").student
    with pytest.raises(sf.MismatchError, match=r"no temperature from 0.05 to 20 calibrates .* 0 predicted wrong"):
        sf.calibrate(student, archive, device="cpu")


def test_command(made, tmp_path):
    archive, student = made
    student.save(tmp_path / "student")
    done = call("calibrate", tmp_path / "student", archive.path, "--out", tmp_path / "calibrated", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "temperature" in done.stdout
    assert sf.load(tmp_path / "calibrated").training_record["calibration"]["split"] == "val"
    again = call("calibrate", tmp_path / "student", archive.path, "--out", tmp_path / "student")
    assert again.returncode == 1
    assert "holds a student already; choose another --out" in " ".join((again.stderr + again.stdout).split())
