"""Influence of teachers: exact through the mask, in every form of a student, as users read it."""

import logging

import numpy as np
import pytest
import torch
from synthetic import CLASSES, TEACHERS, make_patches

import shazam_fast as sf
from shazam_fast.scoring.engine import Scorer

CPU = torch.device("cpu")


def make_archive(folder, teachers=TEACHERS, rows=300):
    patches = make_patches(rows, teachers)
    return sf.open(sf.write_archive(folder / "a", dtype="float32", **patches))


def make_student(teachers=TEACHERS, seed=1, **options):
    config = sf.StudentConfig(teachers, CLASSES, dim=16, depth=3, teacher_dropout=0.3, **options)
    student = sf.Student(config, torch.Generator().manual_seed(seed))
    mean, scale = torch.zeros(sum(teachers.values())), torch.ones(sum(teachers.values()))
    mean += 3.0
    student.add_teacher_heads(torch.Generator().manual_seed(seed + 100))
    student.feature_mean.copy_(mean)
    student.feature_scale.copy_(scale * 10)
    with torch.no_grad():
        student.qkv.mul_(3.0)
    return student.eval()


def by_masks(student, archive, encoders):
    """The definition: one pass per teacher, the teacher masked, in float64. [n, E]."""
    exact = student.double()
    features = torch.from_numpy(archive.gather(np.arange(archive.n_rows))).double()
    with torch.no_grad():
        probabilities = exact(features).logits.softmax(dim=1)
        predicted = probabilities.argmax(dim=1)
        here = torch.arange(len(features))
        columns = []
        for encoder in sorted(set(encoders)):
            present = torch.tensor([e != encoder for e in encoders]).expand(len(features), -1)
            columns.append(
                probabilities[here, predicted] - exact(features, present).logits.softmax(dim=1)[here, predicted]
            )
    return torch.stack(columns, dim=1).numpy()


@pytest.mark.parametrize("kind", ["core", "float64", "residual", "ensemble", "mixed ensemble"])
def test_influence_is_that_of_the_masked_student(tmp_path, kind):
    archive = make_archive(tmp_path)
    student = make_student(block="residual" if kind == "residual" else "bare")
    if "ensemble" in kind:
        student = sf.average([student, make_student(seed=2, block="residual" if "mixed" in kind else "bare")])
    if kind == "float64":
        student.double()
    scores = sf.score(student, archive, influence=True, device="cpu")
    assert scores.influence_teachers == tuple(TEACHERS)
    expected = by_masks(student, archive, [0, 1, 2])
    np.testing.assert_allclose(scores.influence, expected, atol=5e-6)
    assert np.abs(expected).max() > 0.02  # it is not all nothing


def test_levels_of_a_teacher_are_withheld_together(tmp_path):
    teachers = {f"{name}{level}": dim for name, dim in (("uni", 6), ("virchow", 8)) for level in (":low", ":mid", "")}
    archive = make_archive(tmp_path, teachers)
    student = make_student(teachers, block="levels")
    scores = sf.score(student, archive, influence=True, device="cpu")
    assert scores.influence_teachers == ("uni", "virchow")
    np.testing.assert_allclose(scores.influence, by_masks(student, archive, [0, 0, 0, 1, 1, 1]), atol=5e-6)


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_missing_teachers_have_none(tmp_path, block):
    archive = make_archive(tmp_path)
    alone = sf.open(archive.path, teachers=["virchow", "uni"])
    student = make_student(block=block)
    scores = sf.score(student, alone, influence=True, device="cpu")
    assert (scores.influence[:, 1] == 0).all()
    features = torch.from_numpy(archive.gather(np.arange(300)))
    with torch.no_grad():
        both, virchow = (
            student(features, torch.tensor(mask).expand(300, -1)).logits.softmax(dim=1)
            for mask in ([True, False, True], [False, False, True])
        )
    predicted = both.argmax(dim=1, keepdim=True)
    np.testing.assert_allclose(scores.influence[:, 0], (both - virchow).gather(1, predicted)[:, 0], atol=1e-5)


def test_only_teacher(tmp_path, caplog):
    archive = make_archive(tmp_path)
    one = sf.open(archive.path, teachers=["uni"])
    with pytest.raises(sf.ShazamError, match=r"two teachers or more expected, found \['uni'\]"):
        sf.score(make_student(), one, influence=True)
    student = sf.Student(sf.StudentConfig(TEACHERS, CLASSES, dim=8, depth=1)).eval()
    with caplog.at_level(logging.WARNING, logger="shazam_fast"):
        sf.score(student, archive, influence=True)
    assert "trained without teacher dropout" in caplog.text


def test_scores_are_the_same_with_and_without(trained):
    student, archive = trained
    rows = np.arange(300)
    options = {"fused": True, "allow_missing_teachers": False}
    with (
        Scorer(student, archive, CPU, **options) as plain,
        Scorer(student, archive, CPU, influence=True, **options) as more,
    ):
        left, right = plain.score(rows), more.score(rows)
    np.testing.assert_array_equal(left.probabilities, right.probabilities)
    np.testing.assert_array_equal(left.shares, right.shares)
    np.testing.assert_array_equal(left.fused, right.fused)
    assert left.influence is None


def test_columns_on_disk(trained, tmp_path):
    student, archive = trained
    scores = sf.score(student, archive, tmp_path / "scores", influence=True, device="cpu")
    assert [c for c in scores.read().column_names if c.startswith("influence")] == [f"influence_{t}" for t in TEACHERS]
    again = sf.open_scores(tmp_path / "scores")
    np.testing.assert_array_equal(again.influence, sf.score(student, archive, influence=True, device="cpu").influence)
    with pytest.raises(sf.MismatchError, match=r"another influence \(True, now False\)"):
        sf.score(student, archive, tmp_path / "scores", device="cpu")
    plain = sf.score(student, archive)
    assert plain.influence_teachers == ()
    with pytest.raises(sf.MismatchError, match=r"hold no influence; score with influence=True \(--influence\)"):
        _ = plain.influence


def test_noise_has_the_least_influence_by_far(tmp_path):
    rng, n = np.random.default_rng(0), 1500
    labels = rng.integers(0, 3, n)
    centres = {name: 0.45 * rng.normal(size=(3, dim)) for name, dim in (("uni", 24), ("virchow", 32), ("gigapath", 24))}
    features = {name: c[labels] + rng.normal(size=(n, c.shape[1])) for name, c in centres.items()}
    features["noise"] = rng.normal(size=(n, 32))
    splits = np.repeat(["train", "val", "test"], [900, 300, 300])
    archive = sf.open(sf.write_archive(tmp_path / "a", features, labels=labels, splits=splits))
    student = sf.train(archive, teacher_dropout=0.25, device="cpu").student  # the recommended preset
    scores = sf.score(student, archive, split="test", influence=True, device="cpu")
    *useful, noise = scores.influence.mean(axis=0).tolist()
    assert noise < 0.2 * min(useful)  # it even takes some probability away
    assert np.abs(scores.influence).mean(axis=0).argmin() == 3
    assert scores.shares.mean(axis=0)[3] > 0.2  # its attention share says nothing of the kind
