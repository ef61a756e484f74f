"""AUROC and C-index: fractions of pairs of slides in the right order.

Scores of two folds come from two models and need not have a common scale, so only pairs within a fold count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .targets import ClassTargets, SurvivalTargets

BLOCK = 1024  # slides whose pairs are counted at once


def mean_of_known(found: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean [draws] of several metrics [draws] where they are known (not NaN); NaN where none is.

    >>> mean_of_known([np.array([1.0, np.nan]), np.array([0.5, np.nan])]).tolist()
    [0.75, nan]
    """
    stacked = np.stack(found)
    counted = np.isfinite(stacked)
    total = np.where(counted, stacked, 0.0).sum(axis=0)
    return np.where(counted.any(axis=0), total / np.maximum(counted.sum(axis=0), 1), np.nan)


def auroc(
    scores: NDArray[np.float64], folds: NDArray[np.int64], targets: ClassTargets, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fraction of pairs (a slide of the class, another of its fold) in the right order, mean over classes.

    Args:
        scores: probabilities of the classes, [n, C].
        folds: int64 [n], in which fold each slide was tested.
        targets: their classes, all known.
        weights: [draws, n], how often each slide counts.

    Returns [draws]; NaN where no fold has two classes.

    >>> targets = ClassTargets(("a", "b"), np.array([0, 1]))
    >>> auroc(np.array([[0.9, 0.1], [0.2, 0.8]]), np.zeros(2, dtype=np.int64), targets, np.ones((1, 2))).tolist()
    [1.0]
    """
    found = []
    for code in np.unique(targets.codes).tolist():
        positive = targets.codes == code
        found.append(_fraction_ordered(scores[:, code], folds, weights, _Labels(positive)))
    return mean_of_known(found)


def c_index(
    risks: NDArray[np.float64], folds: NDArray[np.int64], targets: SurvivalTargets, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Harrell's C-index: fraction of pairs, the first with an observed event before the other's time, whose risks are
    in the right order (Harrell et al., JAMA 247, 1982). Equal risks count half.

    Args:
        risks: [n], larger for an earlier event.
        folds: int64 [n], in which fold each slide (or patient) was tested.
        targets: their times, all known.
        weights: [draws, n], how often each slide counts.

    Returns [draws]; NaN where no fold has such a pair.

    >>> targets = SurvivalTargets(np.array([1.0, 2.0]), np.array([True, False]))
    >>> c_index(np.array([0.3, 0.1]), np.zeros(2, dtype=np.int64), targets, np.ones((1, 2))).tolist()
    [1.0]
    """
    pairs = _Times(targets.times, targets.events)
    return _fraction_ordered(risks, folds, weights, pairs)


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
