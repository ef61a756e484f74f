"""Several columns of classes, and numbers: their losses, metrics, students and scores."""

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import make_cohort
from scipy.stats import pearsonr
from torch.nn import functional as F

import shazam_fast as sf
from shazam_fast.errors import MismatchError
from shazam_fast.slides.cohort.metrics import Predictions, measure
from shazam_fast.slides.cohort.targets import ClassTargets, SeveralClasses, ValueTargets, take
from shazam_fast.slides.losses import TaskLoss, count_outputs, read_outputs
from shazam_fast.slides.options import SlideConfig
from shazam_fast.slides.slide_teachers.distillation import divergence

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")
QUICK = {"folds": 4, "epochs": 30, "patience": 30, "dim": 32, "batch_size": 8, "device": "cpu", "model": "gated_abmil"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Slides whose column "rare" has a planted signal and "noise" none; some cells of both are empty."""
    place = tmp_path_factory.mktemp("tasks")
    archive, labels, _ = make_cohort(place / "a", slides=70, sizes=(20, 40), telling=0.3, strength=12.0)
    rng = np.random.default_rng(3)
    n = len(labels)
    table = pd.DataFrame({"slide_id": list(labels), "rare": list(labels.values())})
    table["noise"] = rng.choice(["x", "y", "z"], n)
    table["level"] = 100 + 20 * (table.rare == "b") + rng.normal(size=n)
    table["other"] = rng.normal(size=n)
    table.loc[rng.choice(n, 15, replace=False), "rare"] = None
    table.loc[rng.choice(n, 15, replace=False), "noise"] = None
    table.loc[rng.choice(n, 15, replace=False), "level"] = None
    table.to_csv(place / "t.csv", index=False)
    return archive, place / "t.csv", table


def test_the_loss_of_several_columns_is_the_mean_over_columns_of_known_cross_entropies():
    codes = np.array([[0, 2], [-1, 1], [1, -1]])
    targets = SeveralClasses(("a", "b"), (("x", "y"), ("p", "q", "r")), codes)
    outputs = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = TaskLoss("multi_classification", targets, targets, CPU)(outputs, torch.arange(3))
    logs = [outputs[:, :2].log_softmax(1), outputs[:, 2:].log_softmax(1)]
    wanted = -sum(logs[t][i, codes[i, t]] for i in range(3) for t in range(2) if codes[i, t] >= 0) / 2
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)


def test_the_loss_of_numbers_is_of_standardised_values_and_the_head_undoes_it():
    values = np.array([[1.0, 500], [3, np.nan], [np.nan, 700], [5, 900]])
    targets = ValueTargets(("a", "b"), values)
    training = take(targets, np.array([0, 1, 3]))
    loss = TaskLoss("regression", targets, training, CPU)
    mean, scale = np.array([3, 700]), np.array([np.std([1, 3, 5]), 200])
    outputs = RNG.normal(size=(4, 2)).astype(np.float32)
    wanted = np.nansum((outputs - (values - mean) / scale) ** 2) / 2
    assert loss(torch.from_numpy(outputs), torch.arange(4)).item() == pytest.approx(wanted, rel=1e-5)
    head, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    before = head(x).detach().numpy() * scale + mean
    loss.restore_scale(head)
    assert np.allclose(head(x).detach(), before, rtol=1e-5)


def test_outputs_are_probabilities_of_each_column():
    config = SlideConfig({"uni": 4}, "multi_classification", (), targets={"a": ("x", "y"), "b": ("p", "q", "r")})
    assert count_outputs(config) == 5
    outputs = torch.randn(3, 5)
    found = read_outputs(config, outputs)
    assert torch.allclose(found, torch.cat([F.softmax(outputs[:, :2], 1), F.softmax(outputs[:, 2:], 1)], 1))
    numbers = SlideConfig({"uni": 4}, "regression", (), targets={"a": (), "b": ()})
    assert count_outputs(numbers) == 2
    assert torch.equal(read_outputs(numbers, outputs), outputs)


def test_metrics_of_several_columns_are_those_of_each_where_it_is_known():
    n = 60
    codes = RNG.integers(-1, 2, (n, 2))
    codes[(codes < 0).all(axis=1)] = 0
    scores = np.concatenate([RNG.dirichlet(np.ones(2), n), RNG.dirichlet(np.ones(2), n)], axis=1)
    targets = SeveralClasses(("a", "b"), (("x", "y"), ("p", "q")), codes)
    folds, half = np.arange(n) % 3, np.full((n, 4), 0.5)
    found = measure(Predictions(scores, folds, np.arange(n), half), targets).summary()
    for i, name in enumerate(("a", "b")):
        known = codes[:, i] >= 0
        part = Predictions(scores[known, 2 * i : 2 * i + 2], folds[known], np.arange(n)[known], half[known, :2])
        alone = measure(part, ClassTargets(targets.classes[i], codes[known, i])).summary()
        for metric, interval in alone.values.items():
            assert found.values[f"{metric} {name}"].value == pytest.approx(interval.value)
    mean = (found.values["auroc a"].value + found.values["auroc b"].value) / 2
    assert found.values["auroc"].value == pytest.approx(mean)


def test_metrics_of_numbers():
    n = 80
    truth = RNG.normal(size=n) + 4
    guess, plain = truth + RNG.normal(size=n), np.full((n, 1), 3.5)
    zeros = np.zeros(n, dtype=np.int64)
    found = measure(
        Predictions(guess[:, None], zeros, np.arange(n), plain), ValueTargets(("a",), truth[:, None])
    ).summary()
    assert found.values["pearson"].value == pytest.approx(pearsonr(guess, truth)[0])
    assert found.values["mae"].value == pytest.approx(np.abs(guess - truth).mean())
    assert found.values["rmse"].value == pytest.approx(np.sqrt(np.mean((guess - truth) ** 2)))
    squares = np.mean((guess - truth) ** 2) / np.mean((3.5 - truth) ** 2)
    assert found.values["r2"].value == pytest.approx(1 - squares)
    assert found.constant["mae"] == pytest.approx(np.abs(3.5 - truth).mean())
    assert found.constant["r2"] == 0
    assert all(i.low <= i.value <= i.high for i in found.values.values())


def test_the_correlation_is_within_folds():
    """Means of the training folds differ, and go against the test fold's: a constant per fold must not correlate."""
    truth, folds = RNG.normal(size=90), np.arange(90) % 3
    guess = RNG.normal(size=90)
    values = ValueTargets(("a",), truth[:, None])
    before, after = (
        measure(Predictions((guess + shift * folds)[:, None], folds, np.arange(90), np.zeros((90, 1))), values)
        for shift in (0, 1000)
    )
    assert after.values["pearson"][0] == pytest.approx(before.values["pearson"][0], abs=1e-8)


def test_several_columns_are_trained_together(cohort, tmp_path):
    archive, path, table = cohort
    wanted = sf.slides.Classes(path, ["rare", "noise"])
    result = sf.slides.train(archive, wanted, out=tmp_path / "run", **QUICK)
    assert result.metrics.values["auroc rare"].value > 0.9
    assert result.metrics.values["auroc noise"].value < 0.75
    assert result.metrics.constant["auroc rare"] == 0.5
    known = table[["rare", "noise"]].notna().any(axis=1)
    assert result.metrics.n_slides == known.sum()
    assert result.predictions.to_pandas().columns.tolist() == [
        "name", "patient", "patches", "fold", "prediction_rare", "prediction_noise", "probability_rare_a",
        "probability_rare_b", "probability_noise_x", "probability_noise_y", "probability_noise_z",
    ]  # fmt: skip
    again = sf.slides.train(archive, wanted, out=tmp_path / "run", **QUICK)
    assert np.array_equal(again.predictions.values, result.predictions.values)
    scores = sf.slides.score(tmp_path / "run", archive, tmp_path / "scored", device="cpu")
    opened = sf.slides.open_scores(tmp_path / "scored")
    assert opened.columns().keys() == scores.columns().keys()
    assert np.allclose(opened.values[:, :2].sum(axis=1), 1)
    for source in (path, wanted):
        metrics = sf.slides.evaluate(tmp_path / "run", archive, source, allow_trained_slides=True, device="cpu")
        assert metrics.values["auroc rare"].value > 0.9
    for other in (sf.slides.Classes(path, "rare"), sf.slides.Classes(path, ["noise", "rare"])):
        with pytest.raises(MismatchError, match=r"Classes\(..., column=\['rare', 'noise'\]\) expected, as trained"):
            sf.slides.evaluate(tmp_path / "run", archive, other, device="cpu")


def test_numbers_are_predicted_in_their_own_unit(cohort, tmp_path):
    archive, path, table = cohort
    wanted = sf.slides.Regression(path, ["level", "other"])
    result = sf.slides.train(archive, wanted, out=tmp_path / "run", **(QUICK | {"dropout": 0.0}))
    assert result.metrics.values["pearson level"].value > 0.8
    assert result.metrics.values["mae level"].value < 0.6 * result.metrics.constant["mae level"]
    assert result.metrics.values["pearson other"].value < 0.5
    found = result.predictions.to_pandas().set_index("name").value_level
    truth = table.set_index("slide_id").level.dropna()
    assert abs(found.loc[truth.index] - truth).mean() < 6
    assert 95 < found.min() < 110 < found.max() < 130
    metrics = sf.slides.evaluate(tmp_path / "run", archive, wanted, allow_trained_slides=True, device="cpu")
    assert metrics.values["pearson level"].value > 0.8
    assert metrics.constant["mae level"] == pytest.approx(abs(truth - truth.mean()).mean())
    with pytest.raises(MismatchError, match=r"Regression\(..., columns=\['level', 'other'\]\) expected"):
        sf.slides.evaluate(tmp_path / "run", archive, sf.slides.Regression(path, "level"), device="cpu")


def test_a_column_that_is_unknown_teaches_nothing():
    targets = SeveralClasses(("a", "b"), (("x", "y"), ("p", "q")), np.array([[0, -1], [1, -1]]))
    outputs = torch.zeros(2, 4, requires_grad=True)
    TaskLoss("multi_classification", targets, targets, CPU)(outputs, torch.arange(2)).backward()
    assert (outputs.grad[:, :2] != 0).all()
    assert (outputs.grad[:, 2:] == 0).all()


def test_distillation_of_several_columns_and_of_numbers():
    one, other = torch.randn(3, 5), torch.randn(3, 5)
    columns = [(one[:, :2], other[:, :2]), (one[:, 2:], other[:, 2:])]
    parts = [divergence("classification", *pair, 3.0, "student_teacher") for pair in columns]
    found = divergence("multi_classification", one, other, 3.0, "student_teacher", (2, 3))
    assert found.item() == pytest.approx(sum(parts).item() / 2)
    assert divergence("regression", one, other, 1.0, "student_teacher").item() == pytest.approx(
        0.5 * (one - other).square().mean(dim=1).sum().item()
    )
