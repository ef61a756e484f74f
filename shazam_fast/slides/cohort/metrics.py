"""Metrics of slide predictions, with intervals by bootstrap over patients, beside those of a constant predictor.

AUROC and C-index are fractions of pairs in the right order. Scores of two folds come from two models and need not have
a common scale, so only pairs within a fold count.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...comparison.intervals import DRAWS, Interval, Tally, bootstrap_metrics, interval
from .targets import ClassTargets, SurvivalTargets, Targets

BLOCK = 1024  # slides whose pairs are counted at once
LEAST_PROBABILITY = 1e-12  # so that the log loss is finite


@dataclass(frozen=True)
class SlideMetrics:
    """How well slides (or patients) are predicted.

    Attributes:
        n_slides: number of bags, one per slide or patient.
        n_patients: number of their patients, over which the bootstrap draws.
        values: metric -> estimate with a 95% interval. Classes: "balanced_accuracy", "weighted_f1", "auroc" (one class
            against the rest, mean over classes) and "log_loss". Survival: "c_index" (Harrell's).
        constant: metric -> that of a predictor that knows only the training folds' frequencies of classes.

    >>> SlideMetrics(2, 2, {"auroc": Interval(0.8, 0.7, 0.9)}, {"auroc": 0.5}).to_dict()["values"]["auroc"]["low"]
    0.7
    """

    n_slides: int
    n_patients: int
    values: Mapping[str, Interval]
    constant: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Predictions:
    """Predictions of n slides (or patients), each by a model that has not seen it.

    Args:
        scores: probabilities [n, C], or risks [n, 1].
        folds: int64 [n], in which fold each was tested.
        patients: int64 [n], codes of the patients.
        frequencies: [n, C], the classes' frequencies in the training part of each one's fold; None for survival.
    """

    scores: NDArray[np.float64]
    folds: NDArray[np.int64]
    patients: NDArray[np.int64]
    frequencies: NDArray[np.float64] | None


def measure(predictions: Predictions, targets: Targets, seed: int = 0) -> SlideMetrics:
    """Metrics of predictions against targets, all of them known.

    Args:
        predictions: of n slides.
        targets: of the same slides.
        seed: of the bootstrap's draws.

    >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])
    >>> zeros, patients = np.zeros(4, dtype=np.int64), np.arange(4)
    >>> targets = ClassTargets(("a", "b"), np.array([0, 1, 1, 0]))
    >>> measure(Predictions(scores, zeros, patients, np.full((4, 2), 0.5)), targets).values["auroc"].value
    1.0
    """
    names, patients = np.unique(predictions.patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    weights = np.concatenate([np.ones((1, len(names))), drawn])[:, patients]  # [1 + DRAWS, n]
    if isinstance(targets, SurvivalTargets):
        found = {"c_index": c_index(predictions, targets, weights)}
        constant = {"c_index": 0.5}
    else:
        found, constant = _measure_classes(predictions, targets, weights, seed)
    return SlideMetrics(
        n_slides=len(patients),
        n_patients=len(names),
        values={name: interval(values) for name, values in found.items()},
        constant=constant,
    )


def _measure_classes(
    predictions: Predictions, targets: ClassTargets, weights: NDArray[np.float64], seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    C, codes, groups = len(targets.classes), targets.codes, predictions.patients
    assert predictions.frequencies is not None
    guesses = {"model": predictions.scores, "constant": predictions.frequencies}
    tallies = {name: [Tally(codes, scores.argmax(axis=1), groups)] for name, scores in guesses.items()}
    accuracy, f1 = bootstrap_metrics(tallies, C, seed)
    losses = {
        name: -np.log(np.maximum(scores[np.arange(len(codes)), codes], LEAST_PROBABILITY))
        for name, scores in guesses.items()
    }
    found = {
        "balanced_accuracy": accuracy["model"],
        "weighted_f1": f1["model"],
        "auroc": auroc(predictions, targets, weights),
        "log_loss": weights @ losses["model"] / weights.sum(axis=1),
    }
    constant = {
        "balanced_accuracy": float(accuracy["constant"][0]),
        "weighted_f1": float(f1["constant"][0]),
        "auroc": 0.5,
        "log_loss": float(losses["constant"].mean()),
    }
    return found, constant


def auroc(predictions: Predictions, targets: ClassTargets, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fraction of pairs (a slide of the class, another of its fold) in the right order, mean over classes.

    Args:
        predictions, targets: of n slides.
        weights: [draws, n], how often each slide counts.

    Returns [draws]; NaN where no fold has two classes.
    """
    found = []
    for code in np.unique(targets.codes).tolist():
        positive = targets.codes == code
        found.append(_fraction_ordered(predictions.scores[:, code], predictions.folds, weights, _Labels(positive)))
    stacked = np.stack(found)
    counted = np.isfinite(stacked)
    total = np.where(counted, stacked, 0.0).sum(axis=0)
    return np.where(counted.any(axis=0), total / np.maximum(counted.sum(axis=0), 1), np.nan)


def c_index(predictions: Predictions, targets: SurvivalTargets, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Harrell's C-index: fraction of pairs, the first with an observed event before the other's time, whose risks are
    in the right order (Harrell et al., JAMA 247, 1982). Equal risks count half.

    Args:
        predictions, targets: of n slides.
        weights: [draws, n], how often each slide counts.

    Returns [draws]; NaN where no fold has such a pair.
    """
    pairs = _Times(targets.times, targets.events)
    return _fraction_ordered(predictions.scores[:, 0], predictions.folds, weights, pairs)


@dataclass(frozen=True)
class _Labels:
    """Pairs of a positive and a negative."""

    positive: NDArray[np.bool_]

    def of(self, rows: slice) -> NDArray[np.bool_]:
        return self.positive[rows, None] & ~self.positive[None, :]


@dataclass(frozen=True)
class _Times:
    """Pairs whose first has its event first; of equal times, a censored one is taken to be later."""

    times: NDArray[np.float64]
    events: NDArray[np.bool_]

    def of(self, rows: slice) -> NDArray[np.bool_]:
        first, other = self.times[rows, None], self.times[None, :]
        later = (first < other) | ((first == other) & ~self.events[None, :])
        pairs: NDArray[np.bool_] = self.events[rows, None] & later
        return pairs


def _fraction_ordered(
    scores: NDArray[np.float64], folds: NDArray[np.int64], weights: NDArray[np.float64], pairs: _Labels | _Times
) -> NDArray[np.float64]:
    """Weighted fraction of pairs within a fold whose first has the higher score, [draws]."""
    ordered = np.zeros(len(weights))
    counted = np.zeros(len(weights))
    for start in range(0, len(scores), BLOCK):
        rows = slice(start, start + BLOCK)
        valid = pairs.of(rows) & (folds[rows, None] == folds[None, :])
        right = (scores[rows, None] > scores[None, :]) + 0.5 * (scores[rows, None] == scores[None, :])
        mine = weights[:, rows]
        ordered += ((mine @ (valid * right)) * weights).sum(axis=1)
        counted += ((mine @ valid.astype(np.float64)) * weights).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counted > 0, ordered / counted, np.nan)
