import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from shazam_fast.scoring import intervals
from shazam_fast.scoring.intervals import (
    Tally,
    bootstrap_metrics,
    interval,
    metric_intervals,
    simultaneous_intervals,
)
from shazam_fast.scoring.metrics import compute_metrics


def make_tally(rng, hit, n=240, groups=24, C=3):
    labels = rng.integers(0, C, n)
    predicted = np.where(rng.random(n) < hit, labels, rng.integers(0, C, n))
    return Tally(labels, predicted, np.arange(n) // (n // groups))


def test_the_estimate_is_scikit_learns():
    rng = np.random.default_rng(0)
    tallies = [make_tally(rng, 0.7) for _ in range(3)]
    accuracy, f1 = bootstrap_metrics({"m": tallies}, 3)
    expected = [balanced_accuracy_score(t.labels, t.predicted) for t in tallies]
    assert accuracy["m"][0] == pytest.approx(np.mean(expected))
    expected = [f1_score(t.labels, t.predicted, average="weighted") for t in tallies]
    assert f1["m"][0] == pytest.approx(np.mean(expected))


def test_a_draw_repeats_the_rows_of_its_groups(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 20)
    tally = make_tally(np.random.default_rng(1), 0.6)
    accuracy, f1 = bootstrap_metrics({"m": [tally]}, 3, seed=5)
    rng = np.random.default_rng(5)
    for draw, weights in enumerate(rng.multinomial(24, np.full(24, 1 / 24), size=20), start=1):
        rows = np.repeat(np.arange(240), weights[tally.groups])
        y, p = tally.labels[rows], tally.predicted[rows]
        assert accuracy["m"][draw] == pytest.approx(balanced_accuracy_score(y, p))
        assert f1["m"][draw] == pytest.approx(f1_score(y, p, average="weighted"))


def test_groups_that_agree_within_widen_the_interval():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 400)
    right = np.repeat(rng.random(20) < 0.7, 20)  # whole groups are right or wrong
    predicted = np.where(right, labels, 1 - labels)
    by_group, _ = bootstrap_metrics({"m": [Tally(labels, predicted, np.arange(400) // 20)]}, 2)
    by_row, _ = bootstrap_metrics({"m": [Tally(labels, predicted, np.arange(400))]}, 2)
    wide, narrow = interval(by_group["m"]), interval(by_row["m"])
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_intervals_hold_together_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 300)
    missed = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        labels = rng.integers(0, 2, 200)
        groups = np.arange(200)
        tallies = {
            name: [Tally(labels, np.where(rng.random(200) < 0.75, labels, 1 - labels), groups)] for name in "abcdef"
        }
        accuracy, _ = bootstrap_metrics(tallies, 2, seed=trial)
        found = simultaneous_intervals({m: accuracy[m] - accuracy["a"] for m in "bcdef"})
        missed += any(not i.low <= 0 <= i.high for i in found.values())
    assert missed <= 13  # 5 of 100 are expected; without the correction some 20


def test_equal_methods_differ_by_nothing():
    tally = make_tally(np.random.default_rng(3), 0.8)
    accuracy, _ = bootstrap_metrics({"a": [tally], "b": [tally]}, 3)
    found = simultaneous_intervals({"b": accuracy["b"] - accuracy["a"]})["b"]
    assert found.value == 0
    assert found.low == pytest.approx(0, abs=1e-9)


def test_a_class_that_no_drawn_group_has_counts_for_nothing():
    tally = Tally(np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([0, 1, 2]))
    accuracy, f1 = bootstrap_metrics({"m": [tally]}, 2)
    assert np.nanmin(accuracy["m"]) == 1
    assert np.nanmin(f1["m"]) == 1


@pytest.mark.parametrize("per_group", [1, 2, 40])
def test_intervals_of_one_split_are_those_of_a_plain_bootstrap(per_group):
    """Groups with the same predictions are drawn together, in the same way whether groups are many or few."""
    rng = np.random.default_rng(3)
    labels = rng.integers(3, size=400)
    probabilities = np.exp(np.eye(3)[labels] + rng.normal(0, 0.6, (400, 3)))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    groups = np.arange(400) // per_group + 7
    metrics = compute_metrics(probabilities, labels, ("a", "b", "c"))
    plain = bootstrap_metrics({"m": [Tally(labels, probabilities.argmax(axis=1), groups)]}, 3, seed=1)
    for (name, found), values in zip(metric_intervals(metrics, groups).items(), plain, strict=True):
        wanted = interval(values["m"])
        assert found.value == pytest.approx(getattr(metrics, name))
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.006)
    assert metric_intervals(metrics, np.zeros(400, dtype=np.int64)) == {}
