"""Intervals of metrics and of paired differences, by bootstrap over groups.

Patches of one patient resemble one another, so the patient is drawn, not the patch. Over several splits the same draw
of groups weighs the test rows of every split, and a metric is averaged over the splits. Differences are paired: both
methods see the same draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from .metrics import Metrics

DRAWS = 2000  # bootstrap samples
LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Interval:
    """An estimate and the limits of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Tally:
    """Test predictions of one method on one split: true class, predicted class and group of every row, int64 [n]."""

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    groups: NDArray[np.int64]


def bootstrap_groups(archive: FeatureArchive, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group of every row, which the bootstrap draws: its patient, else its slide, else the row alone. int64 [n]."""
    patients = archive.group_index[rows].astype(np.int64)
    slides = archive.slide_index[rows].astype(np.int64)
    alone = -1 - rows - len(archive.slides)
    return np.where(patients >= 0, patients, np.where(slides >= 0, -1 - slides, alone))


def bootstrap_metrics(
    tallies: Mapping[str, Sequence[Tally]], n_classes: int, seed: int = 0
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Balanced accuracy and weighted F1 of every method, for every draw of groups.

    Args:
        tallies: {method: one Tally per split}; all methods have the same rows in the same splits.
        n_classes: number of classes C.
        seed: of the draws.

    Returns:
        {method: [1 + DRAWS]} of balanced accuracy and of weighted F1, averaged over the splits; the first entry is the
        estimate from all groups.
    """
    first = next(iter(tallies.values()))
    names = np.unique(np.concatenate([tally.groups for tally in first]))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    weights = np.concatenate([np.ones((1, len(names))), drawn]).astype(np.float64)  # [1 + DRAWS, groups]
    accuracy: dict[str, NDArray[np.float64]] = {}
    f1: dict[str, NDArray[np.float64]] = {}
    for method, splits in tallies.items():
        scores = [weighted_scores(_count(tally, names, n_classes), weights, n_classes) for tally in splits]
        accuracy[method] = np.nanmean([score[0] for score in scores], axis=0)
        f1[method] = np.nanmean([score[1] for score in scores], axis=0)
    return accuracy, f1


def interval(values: NDArray[np.float64]) -> Interval:
    """Percentile interval of `values` [1 + DRAWS], whose first entry is the estimate."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values[1:], [tail, 100 - tail])
    return Interval(float(values[0]), float(low), float(high))


def metric_intervals(metrics: Metrics, groups: NDArray[np.int64], seed: int = 0) -> dict[str, Interval]:
    """Intervals of balanced accuracy and weighted F1 of one split, by bootstrap over groups; {} for one group alone.

    Groups with the same predictions are drawn together, which changes nothing, and needs memory for those alone that
    differ.

    Args:
        metrics: with their predictions.
        groups: int64 [n], see `bootstrap_groups`.
        seed: of the draws.
    """
    assert metrics.probabilities is not None
    assert metrics.labels is not None
    C, names = len(metrics.classes), np.unique(groups)
    tally = Tally(metrics.labels, metrics.probabilities.argmax(axis=1), groups)
    if len(names) < 2:
        return {}
    if len(names) == len(groups):  # every patch alone
        counts, alike = np.eye(C * C), metrics.confusion.ravel()
    else:
        counts, alike = np.unique(_count(tally, names, C), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), alike / len(names), size=DRAWS)
    weights = np.concatenate([alike[None], drawn]).astype(np.float64)  # [1 + DRAWS, kinds of groups]
    found = zip(("balanced_accuracy", "weighted_f1"), weighted_scores(counts, weights, C), strict=True)
    return {name: interval(values) for name, values in found}


def simultaneous_intervals(differences: Mapping[str, NDArray[np.float64]]) -> dict[str, Interval]:
    """Intervals of several paired differences that hold together with 95%, by the largest standardised deviation.

    `differences` maps a method to [1 + DRAWS] values. This corrects for the number of methods and, unlike Bonferroni's
    rule, uses that their errors go together.
    """
    spread = {name: max(float(np.nanstd(values[1:])), 1e-12) for name, values in differences.items()}
    deviations = [np.abs(values[1:] - values[0]) / spread[name] for name, values in differences.items()]
    critical = float(np.nanpercentile(np.max(deviations, axis=0), 100 * LEVEL))
    return {
        name: Interval(float(v[0]), float(v[0]) - critical * spread[name], float(v[0]) + critical * spread[name])
        for name, v in differences.items()
    }


def _count(tally: Tally, names: NDArray[np.int64], C: int) -> NDArray[np.float64]:
    """Rows by group, true class and predicted class, [groups, C * C]."""
    cell = (np.searchsorted(names, tally.groups) * C + tally.labels) * C + tally.predicted
    return np.bincount(cell, minlength=len(names) * C * C).reshape(len(names), C * C).astype(np.float64)


def weighted_scores(
    counts: NDArray[np.float64], weights: NDArray[np.float64], C: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Balanced accuracy and weighted F1 [draws] of confusion counts [groups, C * C] under weights [draws, groups]."""
    confusion = (weights @ counts).reshape(-1, C, C)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(true > 0, hits / true, 0.0)  # a class that no drawn group has does not count
        f1 = np.where(true > 0, 2 * hits / (true + predicted), 0.0)
        return recall.sum(axis=1) / (true > 0).sum(axis=1), (f1 * true).sum(axis=1) / true.sum(axis=1)
