"""Losses and metrics against plain loops and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, log_loss, roc_auc_score

from shazam_fast.slides.cohort.metrics import Predictions, measure
from shazam_fast.slides.cohort.pairs import c_index
from shazam_fast.slides.cohort.targets import ClassTargets, SurvivalTargets
from shazam_fast.slides.losses import TaskLoss, cox_loss, hazard_loss, read_outputs
from shazam_fast.slides.options import SlideConfig

RNG = np.random.default_rng(0)
ZEROS = np.zeros(100, dtype=np.int64)
NLL = SlideConfig({"uni": 8}, "survival_nll", ())


def plain_cox(risks, times, events):
    total = 0.0
    for i in range(len(risks)):
        if events[i]:
            total += np.log(np.exp(risks[times >= times[i]]).sum()) - risks[i]
    return total


def plain_hazards(outputs, intervals, events):
    total = 0.0
    for o, y, event in zip(outputs, intervals, events, strict=True):
        h = 1 / (1 + np.exp(-o))
        before, at = np.prod(1 - h[:y]), np.prod(1 - h[: y + 1])
        total -= np.log(before * h[y]) if event else np.log(at)
    return total


def survivals(n=40):
    times = RNG.integers(1, 15, n).astype(float)  # with ties
    return RNG.normal(size=n), times, RNG.random(n) < 0.6


def test_cox_loss_is_the_partial_likelihood():
    risks, times, events = survivals()
    found = cox_loss(torch.tensor(risks), torch.tensor(times), torch.tensor(events))
    assert float(found) == pytest.approx(plain_cox(risks, times, events), rel=1e-12)
    risks_ = torch.tensor(risks, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: cox_loss(r, torch.tensor(times), torch.tensor(events)), risks_)
    assert cox_loss(risks_, torch.tensor(times), torch.zeros(40, dtype=torch.bool)).item() == 0.0


def test_hazard_loss_is_the_likelihood_of_discrete_times():
    outputs, intervals, events = RNG.normal(size=(30, 4)), RNG.integers(0, 4, 30), RNG.random(30) < 0.5
    found = hazard_loss(torch.tensor(outputs), torch.tensor(intervals), torch.tensor(events))
    assert float(found) == pytest.approx(plain_hazards(outputs, intervals, events), rel=1e-12)
    outputs_ = torch.tensor(outputs, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o: hazard_loss(o, torch.tensor(intervals), torch.tensor(events)), outputs_)
    extreme = hazard_loss(torch.tensor([[-200.0, 300.0]]), torch.tensor([1]), torch.tensor([True]))
    assert torch.isfinite(extreme)


def test_risks_are_larger_for_earlier_events():
    early, late = torch.tensor([[3.0, 0, 0, 0]]), torch.tensor([[-3.0, 0, 0, 0]])
    assert read_outputs(NLL, early) > read_outputs(NLL, late)
    hazards = torch.sigmoid(early[0])
    assert read_outputs(NLL, early).item() == pytest.approx(-float((1 - hazards).cumprod(0).sum()))


def test_intervals_of_time_are_learned_from_the_slides_given():
    targets = SurvivalTargets(np.array([1.0, 2, 3, 4, 100]), np.array([True, True, True, True, False]))
    loss = TaskLoss("survival_nll", targets, targets, torch.device("cpu"))
    assert loss._codes.tolist() == [0, 1, 2, 3, 3]


def plain_c_index(risks, times, events):
    right = pairs = 0.0
    for i in range(len(risks)):
        for j in range(len(risks)):
            if events[i] and (times[i] < times[j] or (times[i] == times[j] and not events[j])):
                pairs += 1
                right += 1.0 if risks[i] > risks[j] else 0.5 if risks[i] == risks[j] else 0.0
    return right / pairs


def predictions(scores, folds=None, patients=None, frequencies=None):
    zeros = np.zeros(len(scores), dtype=np.int64)
    groups = np.arange(len(scores)) if patients is None else patients
    return Predictions(scores, zeros if folds is None else folds, groups, frequencies)


def test_c_index_is_harrells():
    risks, times, events = survivals(60)
    risks = risks.round(1)  # with ties
    found = c_index(risks, ZEROS[: len(risks)], SurvivalTargets(times, events), np.ones((1, 60)))
    assert found[0] == pytest.approx(plain_c_index(risks, times, events), rel=1e-12)


def test_weights_count_as_repeated_slides():
    risks, times, events = survivals(30)
    weights = RNG.integers(0, 4, 30)
    found = c_index(risks, ZEROS[: len(risks)], SurvivalTargets(times, events), weights[None].astype(float))
    again = np.repeat(np.arange(30), weights)
    assert found[0] == pytest.approx(plain_c_index(risks[again], times[again], events[again]), rel=1e-12)


def test_only_pairs_of_a_fold_are_compared():
    """The second fold's model gives risks on another scale, which must not matter."""
    risks, times, events = survivals(40)
    folds = np.arange(40) % 2
    targets = SurvivalTargets(times, events)
    before = c_index(risks, folds, targets, np.ones((1, 40)))
    after = c_index(risks + 1000 * folds, folds, targets, np.ones((1, 40)))
    assert before[0] == after[0]


@pytest.mark.parametrize("C", [2, 3])
def test_metrics_of_classes_are_scikit_learns(C):
    labels = RNG.integers(0, C, 80)
    scores = RNG.dirichlet(np.ones(C), 80)
    scores[np.arange(80), labels] += 0.3
    scores /= scores.sum(axis=1, keepdims=True)
    names = tuple("abc"[:C])
    found = measure(predictions(scores, frequencies=np.full((80, C), 1 / C)), ClassTargets(names, labels)).summary()
    values = {name: interval.value for name, interval in found.values.items()}
    one_against_rest = np.mean([roc_auc_score(labels == c, scores[:, c]) for c in range(C)])
    assert values["auroc"] == pytest.approx(one_against_rest)
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)))
    assert values["log_loss"] == pytest.approx(log_loss(labels, scores))
    assert found.constant["log_loss"] == pytest.approx(np.log(C))
    assert found.constant["balanced_accuracy"] == pytest.approx(1 / C)
    assert all(i.low <= i.value <= i.high for i in found.values.values())


def test_the_patient_is_drawn_not_the_slide():
    """Ten copies of every slide add nothing: the interval stays as wide as of one slide per patient."""
    labels = RNG.integers(0, 2, 40)
    scores = np.clip(0.5 + 0.2 * (labels - 0.5) + 0.2 * RNG.normal(size=40), 0.01, 0.99)
    scores = np.stack([1 - scores, scores], axis=1)
    half = np.full((40, 2), 0.5)
    once = measure(predictions(scores, frequencies=half), ClassTargets(("a", "b"), labels)).summary().values["auroc"]
    many = (
        measure(
            predictions(np.repeat(scores, 10, 0), None, np.repeat(np.arange(40), 10), np.repeat(half, 10, 0)),
            ClassTargets(("a", "b"), np.repeat(labels, 10)),
        )
        .summary()
        .values["auroc"]
    )
    assert (many.low, many.high) == pytest.approx((once.low, once.high))
