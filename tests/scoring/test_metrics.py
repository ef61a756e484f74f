"""Metrics agree with scikit-learn, and with a hand-made calibration error."""

import json
import math

import numpy as np
import pytest
import sklearn.metrics
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score

import shazam_fast as sf
from shazam_fast.errors import NonFiniteError
from shazam_fast.scoring.metrics import Metrics, compute_metrics


def draw(rows, C, seed=0, present=None):
    rng = np.random.default_rng(seed)
    labels = rng.choice(present if present is not None else C, rows)
    logits = rng.normal(size=(rows, C)) + 1.5 * np.eye(C)[labels] * rng.random((rows, 1))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), labels, tuple("abcdefghi"[:C])


@pytest.mark.parametrize(("rows", "C", "present"), [(500, 3, None), (40, 9, None), (200, 4, [0, 2, 3]), (50, 2, None)])
def test_agrees_with_scikit_learn(rows, C, present):
    probabilities, labels, classes = draw(rows, C, present=present)
    metrics = compute_metrics(probabilities, labels, classes)
    prediction = probabilities.argmax(1)
    assert metrics.accuracy == pytest.approx(accuracy_score(labels, prediction))
    assert metrics.balanced_accuracy == pytest.approx(
        np.mean([(prediction[labels == c] == c).mean() for c in np.unique(labels)])
    )
    if present is None:
        assert metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, prediction))
    assert metrics.weighted_f1 == pytest.approx(f1_score(labels, prediction, average="weighted", zero_division=0))
    np.testing.assert_array_equal(metrics.confusion, confusion_matrix(labels, prediction, labels=range(C)))
    one_against_rest = [roc_auc_score(labels == c, probabilities[:, c]) for c in np.unique(labels)]
    assert metrics.auroc == pytest.approx(np.mean(one_against_rest))


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.92, 0.08], [0.4, 0.6], [0.55, 0.45]], dtype=np.float32)
    labels = np.array([0, 1, 1, 1])
    # bins of width 1/15: {0.9, 0.92}: |0.5 - 0.91|, {0.6}: |1 - 0.6|, {0.55}: |0 - 0.55|
    expected = (2 * 0.41 + 0.4 + 0.55) / 4
    assert compute_metrics(probabilities, labels, ("a", "b")).calibration_error == pytest.approx(expected, abs=1e-6)
    certain = compute_metrics(np.eye(3, dtype=np.float32), np.arange(3), ("a", "b", "c"))
    assert certain.calibration_error == 0.0
    assert certain.accuracy == certain.auroc == certain.weighted_f1 == 1.0


def test_one_class_alone_has_no_auroc():
    metrics = compute_metrics(np.array([[0.8, 0.2]], np.float32), np.array([0]), ("a", "b"))
    assert np.isnan(metrics.auroc)
    assert metrics.balanced_accuracy == 1.0


def test_survives_json():
    metrics = compute_metrics(*draw(60, 3))
    again = sf.Metrics.from_dict(metrics.to_dict())
    np.testing.assert_array_equal(again.confusion, metrics.confusion)
    assert again.to_dict() == metrics.to_dict()


def test_nothing_to_measure():
    with pytest.raises(sf.MismatchError, match="at least one labelled patch"):
        compute_metrics(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), ("a", "b"))
    with pytest.raises(sf.MismatchError, match=r"labels 0..1 expected, found 0..2"):
        compute_metrics(np.ones((2, 2), np.float32), np.array([0, 2]), ("a", "b"))


def test_ties_count_half_in_the_area():
    random = np.random.default_rng(4)
    labels = random.integers(0, 3, 300)
    probabilities = np.round(random.dirichlet(np.ones(3), 300), 1).astype(np.float32)  # many ties
    expected = np.mean([roc_auc_score(labels == c, probabilities[:, c]) for c in range(3)])
    assert compute_metrics(probabilities, labels, ("a", "b", "c")).auroc == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_probability_that_is_not_finite_is_named(value):
    probabilities = np.full((4, 2), 0.5)
    probabilities[2, 1] = value
    with pytest.raises(NonFiniteError, match=r"found \[0\.5, (nan|inf)\] in row 2"):
        compute_metrics(probabilities, np.array([0, 1, 0, 1]), ("a", "b"))


def test_each_class_agreement_and_correlation_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 200)
    probabilities = rng.dirichlet([1, 1, 1], 200) + 0.3 * np.eye(3)[labels]
    metrics = compute_metrics(probabilities, labels, ("a", "b", "c"))
    prediction = probabilities.argmax(axis=1)
    assert metrics.mcc == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, prediction))
    assert metrics.kappa == pytest.approx(sklearn.metrics.cohen_kappa_score(labels, prediction))
    wanted = sklearn.metrics.precision_recall_fscore_support(labels, prediction)
    for c, found in enumerate(metrics.per_class.values()):
        own = (found.precision, found.recall, found.f1, found.n_rows)
        assert own == pytest.approx([column[c] for column in wanted])
        assert found.auroc == pytest.approx(sklearn.metrics.roc_auc_score(labels == c, probabilities[:, c]))
    assert metrics.auroc == pytest.approx(np.mean([found.auroc for found in metrics.per_class.values()]))
    again = Metrics.from_dict(json.loads(json.dumps(metrics.to_dict(), allow_nan=False)))
    assert again.per_class == metrics.per_class
    assert again.mcc == metrics.mcc


def test_what_is_not_defined_is_nan_and_null_in_json():
    """All is of class b and called b; c occurs nowhere."""
    metrics = compute_metrics(np.eye(3)[[1, 1]], np.array([1, 1]), ("a", "b", "c"))
    assert math.isnan(metrics.mcc)
    assert math.isnan(metrics.kappa)
    assert metrics.per_class["b"].recall == 1.0
    assert all(math.isnan(getattr(metrics.per_class["c"], name)) for name in ("precision", "recall", "f1", "auroc"))
    values = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert values["mcc"] is None
    assert values["per_class"]["c"]["auroc"] is None
    assert math.isnan(Metrics.from_dict(values).per_class["b"].auroc)
    del values["per_class"], values["mcc"], values["kappa"]  # as version 0.1 wrote them
    assert math.isnan(Metrics.from_dict(values).per_class["b"].auroc)
    assert Metrics.from_dict(values).per_class["b"].precision == 1.0
