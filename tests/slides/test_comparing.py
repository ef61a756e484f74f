"""Several models under the same folds, survival curves, and what a planted hazard allows."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from cohorts import make_cohort, make_hazard, make_survival

import shazam_fast as sf
from shazam_fast.errors import MismatchError, ShazamError
from shazam_fast.slides import comparing
from shazam_fast.slides.cohort.curves import survival_curves
from shazam_fast.slides.cohort.pairs import c_index
from shazam_fast.slides.cohort.targets import SurvivalTargets

QUICK = {"folds": 3, "epochs": 3, "dim": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(
        tmp_path_factory.mktemp("comparing") / "a", slides=48, sizes=(20, 40), telling=0.1, strength=12.0
    )


@pytest.fixture(scope="module")
def hazard(tmp_path_factory):
    """The truth allows a C-index of 0.75."""
    archive, table, hazard = make_hazard(tmp_path_factory.mktemp("hazard") / "a", log_ratio=3.5)
    targets = sf.slides.Survival(pd.DataFrame(table), "months", "dead", observed=1)
    options = {"folds": 4, "epochs": 30, "patience": 30, "dim": 32, "device": "cpu"}
    return table, hazard, sf.slides.train(archive, targets, model="mean", loss="cox", **options)


def test_all_models_are_tested_on_the_same_folds(cohort, tmp_path):
    archive, labels, _ = cohort
    models = ["mean", "gated_abmil", "shazam_abmil"]
    found = sf.slides.crossvalidate(archive, labels, models=models, out=tmp_path / "all", **QUICK)
    for name, result in found.results.items():
        assert np.array_equal(result.predictions.folds, found.results["mean"].predictions.folds)
        assert sf.slides.load(tmp_path / "all" / name).config.model == name
    alone = sf.slides.train(archive, labels, model="gated_abmil", **QUICK)
    assert np.array_equal(alone.predictions.values, found.results["gated_abmil"].predictions.values)
    assert found.differences["auroc"].keys() == {"gated_abmil", "shazam_abmil"}
    gain = found.differences["auroc"]["gated_abmil"]
    auroc = {name: result.metrics.values["auroc"].value for name, result in found.results.items()}
    assert gain.value == pytest.approx(auroc["gated_abmil"] - auroc["mean"])
    assert gain.low < gain.value < gain.high
    table = found.to_pandas()
    assert table.query("metric == 'auroc'").model.tolist() == [*models, "constant"]
    assert table.query("metric == 'auroc' and model == 'constant'").value.item() == 0.5
    assert json.loads(json.dumps(found.to_dict()))["reference"] == "mean"


def test_differences_are_paired(cohort):
    """A model compared with itself differs by nothing, whatever patients are drawn."""
    archive, labels, _ = cohort
    result = sf.slides.train(archive, labels, model="mean", **QUICK)
    gain = comparing._differences({"mean": result, "again": result}, "mean")["auroc"]["again"]
    assert (gain.value, gain.low, gain.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_nothing_is_trained_before_all_models_are_checked(cohort, tmp_path):
    archive, labels, _ = cohort
    with pytest.raises(MismatchError, match="fusecpath"):
        sf.slides.crossvalidate(archive, labels, models=["mean", "fusecpath"], out=tmp_path / "all", **QUICK)
    assert not (tmp_path / "all" / "mean").exists()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["mean"], "two or more different models"),
        (["mean", "mean"], "two or more different models"),
        ("mean", "two or more different models"),
        (["mean", "transmil"], "models: one of mean, max"),
    ],
)
def test_models_that_cannot_be_compared(cohort, models, message):
    archive, labels, _ = cohort
    with pytest.raises(ShazamError, match=message):
        sf.slides.crossvalidate(archive, labels, models=models, **QUICK)


def test_a_planted_hazard_is_found(hazard):
    table, truth, result = hazard
    targets = SurvivalTargets(np.array(table["months"]), np.array(table["dead"], dtype=bool))
    best = c_index(np.array(list(truth.values())), np.zeros(120, dtype=np.int64), targets, np.ones((1, 120)))[0]
    assert 0.74 < best < 0.76
    assert result.metrics.values["c_index"].value > 0.7
    assert result.metrics.values["c_index"].low > 0.6


def plain_kaplan_meier(times, events):
    S, found = 1.0, []
    for time in np.unique(times[events]):
        S *= 1 - (events & (times == time)).sum() / (times >= time).sum()
        found.append(S)
    return found


def plain_log_rank(times, events, high):
    observed = expected = variance = 0.0
    for time in np.unique(times[events]):
        at_risk, dead = times >= time, events & (times == time)
        n, d, n1 = at_risk.sum(), dead.sum(), (at_risk & high).sum()
        observed += (dead & high).sum()
        expected += d * n1 / n
        variance += d * (n1 / n) * (1 - n1 / n) * (n - d) / (n - 1) if n > 1 else 0.0
    return (observed - expected) ** 2 / variance


def test_survival_curves_are_kaplan_meiers_and_the_test_is_the_log_rank_test(hazard):
    table, _, result = hazard
    found = result.survival_curves()
    times, events = np.array(table["months"]), np.array(table["dead"], dtype=bool)
    high = np.zeros(120, dtype=bool)
    for fold in range(4):
        inside = np.flatnonzero(result.predictions.folds == fold)
        risks = result.predictions.values[inside, 0]
        high[inside] = risks > np.median(risks)
    assert [curve.name for curve in found.curves] == ["low risk", "high risk"]
    for curve, members in zip(found.curves, (~high, high), strict=True):
        assert curve.n_patients == members.sum()
        assert curve.n_events == events[members].sum()
        assert curve.times == np.unique(times[members & events]).tolist()
        assert np.allclose(curve.survival, plain_kaplan_meier(times[members], events[members]))
        assert all(low <= S <= top for low, S, top in zip(curve.low, curve.survival, curve.high, strict=True))
        assert curve.at_risk == [int((times[members] >= time).sum()) for time in curve.times]
    assert found.chi2 == pytest.approx(plain_log_rank(times, events, high), rel=1e-6)
    assert found.p_value < 0.001
    assert len(result.survival_curves(3).curves) == 3
    with pytest.raises(MismatchError, match="too few for 10 groups"):
        survival_curves(np.arange(8.0), np.zeros(8, dtype=np.int64), list("abcdefgh"), SurvivalTargets(
            np.arange(1.0, 9.0), np.ones(8, dtype=bool)), 10)  # fmt: skip


def test_the_c_index_and_curves_are_over_patients(tmp_path):
    """Three slides of a patient are one patient with the mean of their risks."""
    archive, _, _ = make_cohort(tmp_path / "a", slides=36, per_patient=3, sizes=(3, 6))
    one = make_survival({f"p{i:03d}": "ab"[i % 2] for i in range(12)})
    table = pd.DataFrame({"patient_id": one["slide_id"], "months": one["months"], "dead": 1})
    targets = sf.slides.Survival(table, "months", "dead", observed=1)
    result = sf.slides.train(archive, targets, model="mean", **QUICK)
    risks = result.predictions.to_pandas().groupby("patient").agg({"risk": "mean", "fold": "first"})
    plain = c_index(
        risks.risk.to_numpy(), risks.fold.to_numpy(), SurvivalTargets(table.months.to_numpy(), np.ones(12, bool)),
        np.ones((1, 12)),
    )  # fmt: skip
    assert result.metrics.values["c_index"].value == pytest.approx(plain[0])
    assert result.metrics.n_patients == 12
    assert sum(curve.n_patients for curve in result.survival_curves().curves) == 12


def test_survival_curves_need_survival_and_statsmodels(cohort, hazard, monkeypatch):
    archive, labels, _ = cohort
    with pytest.raises(MismatchError, match="a student of survival expected"):
        sf.slides.train(archive, labels, model="mean", **QUICK).survival_curves()
    monkeypatch.setitem(sys.modules, "statsmodels.duration.survfunc", None)
    with pytest.raises(ShazamError, match=r"pip install 'shazam_fast\[survival\]'"):
        hazard[2].survival_curves()
