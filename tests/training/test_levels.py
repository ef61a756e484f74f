"""The multi-level student from an archive with three levels of every teacher to its scores."""

import numpy as np
import pytest
import torch
from synthetic import make_patches
from trainings import QUICK, assert_same_bits, tensors, without_times

import shazam_fast as sf
from shazam_fast.student.student import Student
from shazam_fast.training.step import TrainingStep

TEACHERS = {"uni:low": 6, "uni:mid": 9, "uni": 12, "gigapath": 8, "gigapath:low": 4, "gigapath:mid": 5}
OPTIONS = {"block": "levels", "lam": 0.05, "device": "cpu"}


def write(path, teachers=TEACHERS, **changes):
    patches = make_patches(teachers=teachers)
    return sf.open(sf.write_archive(path, **patches | changes))


@pytest.fixture
def archive(tmp_path):
    return write(tmp_path / "levels.archive")


def test_it_learns_and_is_scored(archive, tmp_path):
    result = sf.train(archive, **OPTIONS, epochs=12, batch_size=32, dim=32, depth=2, out=tmp_path / "run")
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < first["loss"]
    assert set(last["cosine"]) == set(last["huber"]) == set(TEACHERS)
    assert "teacher_shares" not in last
    assert result.metrics["test"].balanced_accuracy > 0.8
    loaded = sf.load(tmp_path / "run")
    assert sf.evaluate(loaded, archive, device="cpu").to_dict() == result.metrics["test"].to_dict()
    scores = sf.score(loaded, archive, tmp_path / "scores", device="cpu")
    assert scores.shares is None
    features = archive.gather(range(len(archive)))
    expected = loaded(torch.from_numpy(features)).logits.softmax(1).detach().numpy()
    np.testing.assert_allclose(scores.probabilities, expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"targets": "frozen"},
        {"targets": "detached", "huber": "elementwise"},
        {"lam": 0},
        {"teacher_heads": 0.3, "feature_dropout": 0.5, "balance": 1.0, "schedule": "one_cycle"},
        {"backend": "reference"},
    ],
)
def test_every_option_trains(archive, options):
    result = sf.train(archive, **QUICK | OPTIONS | options)
    assert np.isfinite([record["loss"] for record in result.history]).all()


def test_a_training_is_repeatable_and_resumes(archive, tmp_path, monkeypatch):
    options = QUICK | OPTIONS | {"teacher_dropout": 0.3, "checkpoint_seconds": 0.0}
    whole = sf.train(archive, **options)
    run, steps = TrainingStep.run, []

    def stop_after_twelve(self, size):
        if len(steps) == 12:
            raise RuntimeError("killed")
        steps.append(size)
        run(self, size)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "run", stop_after_twelve)
        with pytest.raises(RuntimeError, match="killed"):
            sf.train(archive, out=tmp_path / "run", **options)
    resumed = sf.train(archive, out=tmp_path / "run", **options)
    assert_same_bits(tensors(resumed.student), tensors(whole.student))
    assert without_times(resumed.history) == without_times(whole.history)


def test_teacher_dropout_leaves_out_all_levels_of_a_teacher(archive, monkeypatch):
    tokens, seen = Student.tokens, []

    def note(self, features, present=None, *others):
        if self.training:
            seen.append(present.numpy().copy())
        return tokens(self, features, present, *others)

    monkeypatch.setattr(Student, "tokens", note)
    sf.train(archive, **QUICK | OPTIONS | {"teacher_dropout": 0.5, "epochs": 2})
    present = np.concatenate(seen)
    names = list(TEACHERS)
    uni, gigapath = ([i for i, name in enumerate(names) if name.startswith(t)] for t in ("uni", "gigapath"))
    for columns in (uni, gigapath):
        assert (present[:, columns] == present[:, columns[:1]]).all()
    assert present.any(axis=1).all()
    assert 0.2 < present[:, uni[0]].mean() < 0.9
    assert (present[:, uni[0]] != present[:, gigapath[0]]).any()


def test_an_archive_without_levels_is_refused(tmp_path):
    archive = write(tmp_path / "flat.archive", {"uni": 12, "virchow": 20})
    with pytest.raises(sf.MismatchError, match=r"flat.archive: features of three levels .*'virchow' lacks low"):
        sf.train(archive, **QUICK | OPTIONS, out=tmp_path / "run")
    with pytest.raises(sf.MismatchError, match=r"flat.archive: .*'uni' lacks"):
        sf.train(archive, **QUICK | OPTIONS)


def test_whole_teachers_may_be_missing_and_no_single_level(archive, tmp_path):
    student = sf.train(archive, **QUICK | OPTIONS | {"teacher_dropout": 0.3}).student
    full = sf.score(student, archive, device="cpu")
    alone = sf.open(archive.path, teachers=["uni", "uni:low", "uni:mid"])
    scores = sf.score(student, alone, device="cpu")
    assert scores.missing_teachers == ("gigapath", "gigapath:low", "gigapath:mid")
    assert not np.allclose(scores.probabilities, full.probabilities)
    partly = sf.open(archive.path, teachers=[name for name in TEACHERS if name != "uni:mid"])
    with pytest.raises(sf.MismatchError, match="'uni:mid' is missing, other levels of that teacher are not"):
        sf.score(student, partly, device="cpu", allow_missing_teachers=True)


@pytest.mark.parametrize("block", ["levels", "bare"])
def test_the_high_level_may_be_spelt_as_version_0_1_did(archive, tmp_path, block):
    patches = make_patches(teachers=TEACHERS)
    respelt = {"uni": "uni:high", "gigapath": "gigapath:high"}
    features = {respelt.get(name, name): x for name, x in patches["features"].items()}
    older = write(tmp_path / "older.archive", features=features)
    options = QUICK | OPTIONS | {"block": block}
    new, old = sf.train(archive, **options).student, sf.train(older, **options).student
    assert_same_bits(tensors(new), tensors(old))
    expected = sf.score(new, archive, device="cpu").probabilities
    for student, read in ((new, older), (old, archive), (old, older)):
        np.testing.assert_array_equal(sf.score(student, read, device="cpu").probabilities, expected)


def test_an_exact_name_comes_before_another_spelling(tmp_path):
    teachers = {"uni:high": 12, "uni": 12}
    archive = write(tmp_path / "both.archive", teachers)
    student = sf.train(sf.open(archive.path, teachers=["uni"]), **QUICK, device="cpu").student
    one = sf.open(archive.path, teachers=["uni"])
    np.testing.assert_array_equal(
        sf.score(student, archive, device="cpu").probabilities, sf.score(student, one, device="cpu").probabilities
    )


def test_the_preset_of_the_later_versions(archive):
    config = sf.TrainConfig.from_preset("authors_levels")
    assert (config.block, config.depth, config.lam, config.huber) == ("levels", 4, 0.01, "elementwise")
    result = sf.train(archive, preset="authors_levels", epochs=2, dim=16, batch_size=32, device="cpu")
    assert result.student.qkv.shape == (12, 16, 48)
    assert (result.student.feature_scale == 1).all()
