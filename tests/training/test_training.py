"""Training as a user runs it: chosen on validation, repeatable."""

import json

import numpy as np
import pytest
import torch
from synthetic import make_patches
from trainings import QUICK, assert_same_bits, tensors, without_times

import shazam_fast as sf


def test_a_student_learns_what_is_there(archive):
    result = sf.train(archive, epochs=15, batch_size=32, dim=32, depth=2)
    assert result.metrics["test"].balanced_accuracy > 0.8
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < first["loss"]
    assert set(last["cosine"]) == set(last["huber"]) == set(last["teacher_shares"]) == set(archive.teachers)
    assert sum(last["teacher_shares"].values()) == pytest.approx(1.0, abs=1e-5)
    assert 0 <= last["share_entropy"] <= np.log(3) + 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"block": "residual"},
        {"huber": "elementwise", "targets": "detached"},
        {"targets": "frozen"},
        {"teacher_dropout": 0.5},
        {"standardize": False},
        {"preset": "authors_script", "dim": 16, "depth": 2, "epochs": 3},
        {"preset": "huncrc", "epochs": 3},
    ],
)
def test_every_option_trains(archive, options):
    result = sf.train(archive, **({} if "preset" in options else QUICK) | options)
    assert np.isfinite([record["loss"] for record in result.history]).all()
    assert result.metrics["val"].n_rows == 75


def test_presets_are_the_papers():
    assert sf.TrainConfig.from_preset("huncrc") == sf.TrainConfig.from_preset("unitopatho", lam=0.05)
    assert sf.TrainConfig.from_preset("huncrc", epochs=3).epochs == 3
    assert sf.TrainConfig.from_preset("recommended", seed=2) == sf.TrainConfig(seed=2)
    script = sf.TrainConfig.from_preset("authors_script")
    assert (script.block, script.huber, script.targets) == ("residual", "elementwise", "frozen")


def test_a_config_object_with_one_field_changed(archive):
    config = sf.TrainConfig(**QUICK)
    assert len(sf.train(archive, config, epochs=2).history) == 2
    with pytest.raises(sf.ShazamError, match="either a config or a preset"):
        sf.train(archive, config, preset="huncrc")


def test_the_same_seed_gives_the_same_bits(archive):
    left, right = (sf.train(archive, **QUICK, teacher_dropout=0.2) for _ in range(2))
    assert_same_bits(tensors(left.student), tensors(right.student))
    assert without_times(left.history) == without_times(right.history)
    other = sf.train(archive, **QUICK, teacher_dropout=0.2, seed=1)
    assert not torch.equal(other.student.qkv, left.student.qkv)


def curves(archive, **options):
    """Training loss and validation score of every epoch."""
    history = sf.train(archive, **options).history
    return np.array([(record["loss"], record["val_score"]) for record in history]).T


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_the_cpu_core_and_the_definition_train_alike(real_archive, block):
    """Rounding differs, and training amplifies it: the curves agree while that is small."""
    options = {"epochs": 2, "dim": 64, "depth": 3, "block": block, "device": "cpu"}
    ours, plain = curves(real_archive, **options), curves(real_archive, **options, backend="reference")
    np.testing.assert_allclose(ours[0], plain[0], rtol=2e-3)
    np.testing.assert_allclose(ours[1], plain[1], atol=0.02)


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_triton_and_the_definition_train_alike(tmp_path, request, block):
    """The interpreter, which stands in where there is no GPU, gets few patches."""
    options = {"epochs": 2, "batch_size": 16, "dim": 16, "depth": 2, "block": block}
    if torch.cuda.is_available():
        archive, options = request.getfixturevalue("real_archive"), {**options, "epochs": 4, "batch_size": 64}
    else:
        archive = sf.open(sf.write_archive(tmp_path / "a", **make_patches(rows=70)))
    triton, plain = (curves(archive, **options, backend=name) for name in ("triton", "reference"))
    np.testing.assert_allclose(triton[0], plain[0], rtol=2e-3)
    np.testing.assert_allclose(triton[1], plain[1], atol=0.02)


def test_training_leaves_the_global_random_state_alone(archive):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sf.train(archive, **QUICK)
    assert torch.equal(torch.rand(3), expected)


def test_the_best_epoch_is_restored(tmp_path):
    """Pure noise overfits at once, so that the best epoch is not the last."""
    patches = make_patches(rows=200)
    rng = np.random.default_rng(0)
    patches["labels"][:100] = rng.integers(0, 3, 100)
    archive = sf.open(sf.write_archive(tmp_path / "a", **patches))
    result = sf.train(archive, epochs=12, batch_size=16, dim=32, depth=2, lr=0.01, selection="best")
    scores = [record["val_score"] for record in result.history]
    best = result.history[int(np.argmax(scores))]
    assert best["epoch"] != len(result.history) - 1, "the test needs a best epoch that is not the last"
    metrics = result.metrics["val"]
    assert metrics.balanced_accuracy == best["val_balanced_accuracy"]
    assert metrics.weighted_f1 == best["val_weighted_f1"]
    assert 0.8 * metrics.balanced_accuracy + 0.2 * metrics.weighted_f1 == best["val_score"]


def test_patience_stops(archive):
    result = sf.train(archive, epochs=200, batch_size=16, dim=16, depth=2, patience=3, selection="best")
    scores = [record["val_score"] for record in result.history]
    assert len(scores) == int(np.argmax(scores)) + 1 + 3 < 200


def test_the_test_split_has_no_say(tmp_path):
    """Other test labels and features change nothing but the test metrics."""
    patches = make_patches()
    left = sf.train(sf.write_archive(tmp_path / "a", **patches), **QUICK)
    test = patches["splits"] == "test"
    patches["labels"][test] = (patches["labels"][test] + 1) % 3
    patches["features"]["uni"][test] *= -50.0
    right = sf.train(sf.write_archive(tmp_path / "b", **patches), **QUICK)
    assert_same_bits(tensors(left.student), tensors(right.student))
    assert left.metrics["test"].accuracy != right.metrics["test"].accuracy


def test_standardisation_is_learned_on_the_training_split(archive, patches):
    student = sf.train(archive, **QUICK).student
    rows = archive.split("train")
    features = archive.gather(rows).astype(np.float64)
    np.testing.assert_allclose(student.feature_mean.numpy(), features.mean(0), rtol=1e-5)
    np.testing.assert_allclose(student.feature_scale.numpy(), features.std(0), rtol=1e-5)


def test_a_constant_feature_is_left_alone(tmp_path, patches):
    """Nor is one divided whose standard deviation is so small that its inverse is no float32."""
    patches["features"]["uni"] = patches["features"]["uni"].astype(np.float32)
    patches["features"]["uni"][:, 3] = 0.1
    patches["features"]["uni"][:, 4] *= 1e-40
    student = sf.train(sf.write_archive(tmp_path / "a", **patches, dtype="float32"), **QUICK).student
    assert student.feature_scale[3] == student.feature_scale[4] == 1.0
    assert all(p.isfinite().all() for p in student.parameters())


def test_a_short_last_batch_and_a_batch_of_one(tmp_path):
    archive = sf.write_archive(tmp_path / "a", **make_patches(rows=68))  # 34 to train on
    assert len(sf.train(archive, epochs=2, batch_size=33, dim=8, depth=1).history) == 2
    assert len(sf.train(archive, epochs=1, batch_size=1, dim=8, depth=1).history) == 1


def test_history_averages_over_patches_not_batches(tmp_path):
    """With a learning rate of almost 0 the epoch's loss is the student's loss on the whole split."""
    archive = sf.open(sf.write_archive(tmp_path / "a", **make_patches(rows=68)))
    options = {"epochs": 1, "dim": 8, "depth": 1, "lr": 1e-12, "preset": "unitopatho"}
    whole = sf.train(archive, batch_size=34, **options).history[0]
    parts = sf.train(archive, batch_size=33, **options).history[0]
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["huber"]["uni"] == pytest.approx(whole["huber"]["uni"], rel=1e-5)


def test_the_record_in_the_student_is_plain_json(tmp_path, archive):
    result = sf.train(archive, out=tmp_path / "run", **QUICK)
    card = json.loads((tmp_path / "run" / "student.json").read_text())
    assert card["training"]["job"]["batch_size"] == 16
    assert card["training"]["history"] == result.history
    assert card["config"]["teachers"] == archive.teachers
