"""What a report is computed from: a student's output for the patches of one split, and intervals by bootstrap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ...archive.archive import FeatureArchive
from ...scoring.engine import Scorer
from ...scoring.intervals import DRAWS, Interval, bootstrap_groups, interval
from ...scoring.metrics import CALIBRATION_BINS
from ...student.student import Student

FEWEST_DRAWS = 200  # bootstrap samples of the largest splits
DRAWN_ROWS = 40_000_000  # draws x patches, above which fewer samples are drawn
CHUNK = 4_000_000  # draws x patches held at a time
FEW_GROUPS = 10  # below, percentile intervals are too narrow to be believed

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """A student's output for n patches of one split, and what the archive knows of them.

    Attributes:
        rows: int64 [n], rows of the archive.
        labels: int64 [n], -1 unknown.
        groups: int64 [n], the patient of each patch, else its slide, else the patch alone.
        probabilities: float32 [n, C]; `shares`: float32 [n, N] or None.
    """

    archive: FeatureArchive
    student: Student
    split: str
    seed: int
    device: torch.device
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    shares: NDArray[np.float32] | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.student.config.classes)

    @property
    def prediction(self) -> NDArray[np.int64]:
        """The most probable class of every patch, int64 [n]."""
        predicted: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return predicted

    @cached_property
    def unit(self) -> str:
        """What the groups are, in the plural: "patients", "slides" or "patches"."""
        if (self.archive.group_index[self.rows] >= 0).all():
            return "patients"
        return "slides" if (self.archive.slide_index[self.rows] >= 0).all() else "patches"

    def sample(self, most: int) -> NDArray[np.int64]:
        """Places [k] in `rows` of at most `most` patches, drawn at random with the seed, ascending."""
        return sample(len(self.rows), most, self.seed)

    def fused(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fused features of some of the patches, float32 [k, D]."""
        with Scorer(
            self.student, self.archive, self.device, fused=True, allow_missing_teachers=False
        ) as scorer:  # fmt: skip
            fused = scorer.score(self.rows[places]).fused
        assert fused is not None
        return fused


def gather_evidence(
    student: Student, archive: FeatureArchive, rows: NDArray[np.int64], split: str, seed: int, device: torch.device
) -> Evidence:
    """Score `rows`, the patches of a split."""
    with Scorer(student, archive, device, fused=False, allow_missing_teachers=False) as scorer:
        scores = scorer.score(rows)
    groups = bootstrap_groups(archive, rows)
    labels = archive.labels[rows]
    return Evidence(archive, student, split, seed, device, rows, labels, groups, scores.probabilities, scores.shares)


def sample(n: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most `most` of 0..n-1, drawn without replacement, ascending.

    >>> sample(3, 5, seed=0).tolist()
    [0, 1, 2]
    """
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


class Resampling:
    """Bootstrap over groups: the same draws of groups for every statistic of the same patches.

    Args:
        groups: int64 [n], the group of every patch.
        seed: of the draws.

    Attributes:
        n_groups: number of different groups.
        weights: [1 + draws, n_groups], how often each group is drawn; the first row is all ones.
    """

    def __init__(self, groups: NDArray[np.int64], seed: int) -> None:
        names, self._codes = np.unique(groups, return_inverse=True)
        self.n_groups = len(names)
        self.draws = int(np.clip(DRAWN_ROWS // len(groups), FEWEST_DRAWS, DRAWS))
        even = np.full(self.n_groups, 1 / self.n_groups)
        drawn = np.random.default_rng(seed).multinomial(self.n_groups, even, size=self.draws)
        self.weights = np.concatenate([np.ones((1, self.n_groups)), drawn])

    def interval(self, values: Array) -> Interval:
        """Percentile interval of a statistic [1 + draws]; NaN limits where there is one group only."""
        if self.n_groups < 2 or np.isnan(values[1:]).all():
            return Interval(float(values[0]), np.nan, np.nan)
        return interval(values)

    def totals(self, cells: NDArray[np.int64], n_cells: int, amounts: Array | None = None) -> Array:
        """Sum of `amounts` [n] (default 1 each) over the patches of each cell, [1 + draws, n_cells]."""
        from scipy.sparse import csr_matrix

        amounts = np.ones(len(cells)) if amounts is None else amounts
        by_group = csr_matrix((amounts, (self._codes, cells)), shape=(self.n_groups, n_cells))
        return np.asarray((by_group.T @ self.weights.T).T)

    def auroc(self, scores: Array, positive: NDArray[np.bool_]) -> Array:
        """Area under the ROC curve of `scores` [n] for the `positive` [n] patches; [1 + draws], NaN without both."""
        order = np.argsort(scores, kind="stable")
        starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)  # of equal scores
        found = [self._auroc(w, order, starts, positive[order]) for w in self._chunks(len(scores))]
        return np.concatenate(found)

    def _chunks(self, n: int) -> Sequence[Array]:
        step = max(1, CHUNK // n)
        return [self.weights[start : start + step] for start in range(0, len(self.weights), step)]

    def _auroc(
        self, weights: Array, order: NDArray[np.int64], starts: NDArray[np.int64], positive: NDArray[np.bool_]
    ) -> Array:
        of_patch = weights[:, self._codes[order]]
        hits = np.add.reduceat(of_patch * positive, starts, axis=1)
        misses = np.add.reduceat(of_patch * ~positive, starts, axis=1)
        below = misses.cumsum(axis=1) - misses / 2  # equal scores count half
        with np.errstate(invalid="ignore", divide="ignore"):
            area: Array = (hits * below).sum(axis=1) / (hits.sum(axis=1) * misses.sum(axis=1))
        return area


@dataclass(frozen=True)
class Performance:
    """Metrics with intervals. `overall`: {name: Interval}; `by_class`: for each class {name: Interval}."""

    overall: dict[str, Interval]
    by_class: list[dict[str, Interval]]
    confusion: NDArray[np.int64]


def measure(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> tuple[Performance, Resampling]:
    """All metrics of predictions with their intervals by bootstrap over groups.

    Args:
        probabilities: [n, C].
        labels: int64 [n], all known.
        groups: int64 [n].
        seed: of the bootstrap.

    Definitions as in `shazam_fast.Metrics`; precision of a class that is never predicted is 0, as in scikit-learn.
    """
    C, prediction = probabilities.shape[1], probabilities.argmax(axis=1)
    draws = Resampling(groups, seed)
    confusion = draws.totals(labels * C + prediction, C * C).reshape(-1, C, C)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    precision, recall = _ratio(hits, predicted, 0.0), _ratio(hits, true, np.nan)
    f1 = _ratio(2 * hits, true + predicted, np.nan)
    auroc = np.stack([draws.auroc(probabilities[:, c].astype(np.float64), labels == c) for c in range(C)], axis=1)
    overall = {
        "balanced accuracy": _over_classes(np.nanmean, recall),
        "weighted F1": np.nansum(f1 * true, axis=1) / true.sum(axis=1),
        "accuracy": hits.sum(axis=1) / true.sum(axis=1),
        "AUROC": _over_classes(np.nanmean, auroc),
        "calibration error": calibration(probabilities, labels, draws).error,
    }
    columns = {"precision": precision, "recall": recall, "F1": f1, "AUROC": auroc}
    by_class = [{name: draws.interval(values[:, c]) for name, values in columns.items()} for c in range(C)]
    performance = Performance(
        {name: draws.interval(values) for name, values in overall.items()}, by_class, confusion[0].astype(np.int64)
    )
    return performance, draws


@dataclass(frozen=True)
class Calibration:
    """Reliability by bin of confidence: `count`, mean `confidence` and `accuracy` [1 + draws, bins]; `error`."""

    count: Array
    confidence: Array
    accuracy: Array
    error: Array


def calibration(probabilities: NDArray[np.floating], labels: NDArray[np.int64], draws: Resampling) -> Calibration:
    """Confidence against accuracy in the bins of the expected calibration error."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    count, sure, hits = (draws.totals(bins, CALIBRATION_BINS, a) for a in (None, confidence, right))
    error = np.abs(hits - sure).sum(axis=1) / count.sum(axis=1)
    return Calibration(count, _ratio(sure, count, np.nan), _ratio(hits, count, np.nan), error)


def _ratio(part: Array, whole: Array, otherwise: float) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, otherwise)


def _over_classes(average: Callable[..., Array], values: Array) -> Array:
    """Average over the classes that a draw has; NaN for a draw without any."""
    some = ~np.isnan(values).all(axis=1)
    found = np.full(len(values), np.nan)
    found[some] = average(values[some], axis=1)
    return found
