"""Training on slides with a planted signal, and what must hold of its results."""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import SEEING, TEACHERS, make_cohort, make_survival
from interruption import run_killed

import shazam_fast as sf
from shazam_fast.errors import ArchiveError, MismatchError, ShazamError
from shazam_fast.slides.bags import find_patients, make_bags
from shazam_fast.slides.cohort.folds import Fold, deal_folds
from shazam_fast.slides.cohort.targets import ClassTargets
from shazam_fast.slides.fitting import fit
from shazam_fast.slides.options import FitOptions, SlideConfig

LONG = {"folds": 4, "epochs": 30, "patience": 30, "dim": 32, "device": "cpu"}
QUICK = {"folds": 3, "epochs": 3, "dim": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort") / "a", slides=80, sizes=(40, 60), telling=0.04, strength=10.0)


@pytest.fixture(scope="module")
def fused(cohort):
    archive, labels, _ = cohort
    return sf.slides.train(archive, labels, model="shazam_abmil", **LONG)


def test_the_fused_model_finds_what_mean_pooling_does_not(cohort, fused):
    archive, labels, _ = cohort
    mean = sf.slides.train(archive, labels, model="mean", **LONG)
    found, missed = fused.metrics.values["auroc"], mean.metrics.values["auroc"]
    assert found.value > 0.9
    assert found.low > missed.high
    assert missed.value < 0.7
    assert fused.metrics.values["log_loss"].value < fused.metrics.constant["log_loss"]


def test_attention_lies_on_the_telling_patches(cohort, fused):
    archive, _, rare = cohort
    scores = sf.slides.score(fused.student, archive, device="cpu")
    table = scores.patches.to_pandas()
    on_rare = table.assign(rare=rare[table.row]).query("rare").groupby("slide", observed=True).attention.sum()
    assert on_rare.median() > 0.3  # of 4% of the patches


def test_teacher_shares_of_a_slide_are_sums_over_its_patches(cohort, fused):
    archive, _, _ = cohort
    scores = sf.slides.score(fused.student, archive, device="cpu")
    table = scores.patches.to_pandas()
    for i, name in enumerate(TEACHERS):
        parts = (table.attention * table[f"share_{name}"]).groupby(table.slide, observed=True).sum()
        assert np.allclose(parts.loc[list(scores.names)], scores.shares[:, i], atol=1e-5)
    assert np.allclose(scores.shares.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(table.groupby("slide", observed=True).attention.sum(), 1, atol=1e-5)
    assert SEEING in scores.teachers


@pytest.mark.parametrize("loss", ["nll", "cox"])
def test_survival_is_learned(tmp_path, loss):
    """The planted hazard allows a C-index of about 0.79."""
    archive, labels, _ = make_cohort(tmp_path / "a", slides=80, sizes=(8, 16), telling=0.4, strength=8.0)
    targets = sf.slides.Survival(pd.DataFrame(make_survival(labels, ratio=50.0)), "months", "dead", observed=1)
    result = sf.slides.train(archive, targets, model="gated_abmil", loss=loss, **(LONG | {"epochs": 20}))
    assert result.metrics.values["c_index"].value > 0.7
    assert result.metrics.constant == {"c_index": 0.5}
    assert result.predictions.to_pandas().columns.tolist() == ["name", "patient", "patches", "fold", "risk"]
    with pytest.raises(MismatchError, match="trained on 80 of the 80 slides"):
        sf.slides.evaluate(result.student, archive, targets, device="cpu")
    again = sf.slides.evaluate(result.student, archive, targets, allow_trained_slides=True, device="cpu")
    assert again.values["c_index"].value > 0.7
    with pytest.raises(MismatchError, match=r"Survival\(\.\.\.\) expected"):
        sf.slides.evaluate(result.student, archive, labels, device="cpu")


def test_every_slide_is_tested_once_by_a_model_that_has_not_seen_its_patient(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=40, per_patient=2, sizes=(5, 9))
    result = sf.slides.train(archive, labels, model="max", **QUICK)
    assert sorted(result.predictions.names) == sorted(labels)
    table = result.predictions.to_pandas()
    assert (table.groupby("patient").fold.nunique() == 1).all()
    assert result.metrics.n_patients == 20
    joined = sf.slides.train(archive, labels, model="max", by="patient", **QUICK)
    assert joined.metrics.n_slides == 20


def test_the_test_fold_decides_nothing(tmp_path):
    """Other labels in the test fold leave the model as it was, bit for bit; in the others they do not."""
    archive, labels, _ = make_cohort(tmp_path / "a", slides=24, sizes=(5, 30))
    bags = make_bags(archive, "slide", {})
    codes = np.array(["ab".index(labels[name]) for name in bags.names])
    fold = Fold(np.arange(12), np.arange(12, 18), np.arange(18, 24))
    config = SlideConfig(TEACHERS, "classification", ("a", "b"), dim=8)

    def fitted(flipped):
        given = codes.copy()
        given[flipped] = 1 - given[flipped]
        targets = ClassTargets(("a", "b"), given)
        model, _ = fit(bags, targets, fold, config, FitOptions(epochs=4), torch.device("cpu"), "")
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    wanted = fitted([])
    assert torch.equal(fitted(fold.test), wanted)
    assert not torch.equal(fitted(fold.train[:6]), wanted)


def test_classes_are_in_proportion_in_every_fold(tmp_path):
    archive, _, _ = make_cohort(tmp_path / "a", slides=60, per_patient=2, sizes=(2, 4))
    bags = make_bags(archive, "slide", find_patients(archive, None))
    codes = np.repeat(np.arange(30) % 5 == 0, 2).astype(np.int64)  # 6 of 30 patients
    folds = deal_folds(bags, ClassTargets(("a", "b"), codes), 3, 0)
    counts = np.array([[((folds == k) & (codes == c)).sum() for c in (0, 1)] for k in range(3)])
    assert counts.tolist() == [[16, 4]] * 3
    with pytest.raises(MismatchError, match="class 'b' is there for 6 patients, fewer than the 7 folds"):
        deal_folds(bags, ClassTargets(("a", "b"), codes), 7, 0)


def test_the_same_seed_gives_the_same_bits(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=24, sizes=(5, 30))
    state = torch.random.get_rng_state()
    results = [sf.slides.train(archive, labels, patches=12, seed=seed, **QUICK) for seed in (3, 3, 4)]
    assert torch.equal(torch.random.get_rng_state(), state)
    values = [result.predictions.values for result in results]
    assert np.array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])


def test_slides_without_a_target_are_masked(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=30, sizes=(5, 30))
    known = {name: label for name, label in labels.items() if name not in ("s003", "s010")}
    result = sf.slides.train(archive, known | {"s003": ""}, **QUICK)
    assert result.metrics.n_slides == 28
    assert len(sf.slides.score(result.student, archive, device="cpu")) == 30


def test_students_on_disk(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=24, sizes=(5, 30))
    plain = sf.slides.train(archive, labels, **QUICK)
    saved = sf.slides.train(archive, labels, out=tmp_path / "run", **QUICK)
    again = sf.slides.train(archive, labels, out=tmp_path / "run", **QUICK)
    plain.student.save(tmp_path / "copy")
    assert sorted(os.listdir(tmp_path / "run")) == ["part-00000.safetensors", "part-00001.safetensors",
                                                    "part-00002.safetensors", "student.json"]  # fmt: skip
    wanted = sf.slides.score(plain.student, archive, device="cpu").values
    for student in (saved.student, again.student, tmp_path / "run", sf.slides.load(tmp_path / "copy")):
        assert np.array_equal(sf.slides.score(student, archive, device="cpu").values, wanted)
    assert again.metrics == saved.metrics
    assert again.history == saved.history
    assert np.array_equal(again.predictions.values, plain.predictions.values)
    with pytest.raises(MismatchError, match="another model"):
        sf.slides.train(archive, labels, out=tmp_path / "run", model="mean", **QUICK)
    with pytest.raises(MismatchError, match="other targets"):
        sf.slides.train(archive, labels | {"s000": "b"}, out=tmp_path / "run", **QUICK)


def test_damaged_students(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=12, sizes=(5, 9))
    sf.slides.train(archive, labels, out=tmp_path / "run", **QUICK)
    part = tmp_path / "run" / "part-00001.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArchiveError, match=r"part-00001.safetensors: checksum mismatch"):
        sf.slides.load(tmp_path / "run")
    part.write_bytes(content[:50])
    with pytest.raises(ArchiveError, match=r"part-00001.safetensors"):
        sf.slides.load(tmp_path / "run")
    with pytest.raises(ArchiveError, match=r"a slide's student is a directory with student.json"):
        sf.slides.load(tmp_path / "nothing")
    with pytest.raises(ArchiveError, match="holds a slide's student, but a student expected"):
        sf.load(tmp_path / "run")


def test_a_killed_training_goes_on(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=18, sizes=(5, 30))
    wanted = sf.slides.train(archive, labels, out=tmp_path / "whole", **QUICK)
    for last in (8, 16):
        out = tmp_path / f"killed-{last}"
        run_killed(last, sf.slides.train, archive.path, labels, out=out, **QUICK)
        found = sf.slides.train(archive, labels, out=out, **QUICK)
        assert np.allclose(found.predictions.values, wanted.predictions.values, atol=1e-5)
        assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))


def test_training_on_a_selection(cohort, tmp_path):
    archive, labels, _ = cohort
    chosen = sf.slides.select(archive, tmp_path / "chosen", clusters=10, per_cluster=2, bags=3)
    result = sf.slides.train(archive, labels, selection=tmp_path / "chosen", **QUICK)
    assert result.predictions.n_patches.max() <= 60
    scores = sf.slides.score(result.student, archive, selection=chosen, device="cpu")
    assert scores.n_patches.tolist() == [len(np.unique(np.concatenate(bags))) for bags in chosen.rows.values()]
    other, _, _ = make_cohort(tmp_path / "b", slides=12, sizes=(5, 9))
    with pytest.raises(MismatchError, match="the selection is of other features or slides"):
        sf.slides.train(other, labels, selection=chosen, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "no option 'epoch'"),
        ({"model": "transmil"}, "model: one of mean, max"),
        ({"folds": 2}, "folds: a whole number from 3"),
        ({"lr": 0}, "lr: a number more than 0"),
        ({"by": "case"}, "by: one of slide, patient"),
        ({"dropout": 1}, "dropout"),
        ({"device": "tpu"}, "device"),
        ({"folds": 50}, "class 'a' is there for 6 patients, fewer than the 50 folds"),
    ],
)
def test_options_that_are_wrong(tmp_path, options, message):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=12, sizes=(2, 4))
    with pytest.raises(ShazamError, match=message):
        sf.slides.train(archive, labels, **(QUICK | options))


def test_importing_the_package_loads_none_of_it():
    import subprocess
    import sys

    script = "import sys, shazam_fast; print([m for m in sys.modules if m.startswith('shazam_fast.slides')])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
