"""Metrics of slide predictions, with intervals by bootstrap over patients, beside those of a constant predictor."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...scoring.intervals import DRAWS, Interval, interval, weighted_scores
from .pairs import auroc, c_index, mean_of_known
from .targets import ClassTargets, SeveralClasses, SurvivalTargets, Targets, ValueTargets, take

LEAST_PROBABILITY = 1e-12  # so that the log loss is finite

Draws = NDArray[np.float64]  # [1 + DRAWS]: of all patients, then of every draw of them


@dataclass(frozen=True)
class SlideMetrics:
    """How well slides (or patients) are predicted.

    Attributes:
        n_slides: number of bags, one per slide or patient.
        n_patients: number of their patients, over which the bootstrap draws.
        values: metric -> estimate with a 95% interval. Classes: "balanced_accuracy", "weighted_f1", "auroc" (one class
            against the rest, mean over classes) and "log_loss". Numbers: "pearson" (within folds), "r2" (against the
            mean of the training folds), "mae" and "rmse". Survival: "c_index" (Harrell's, over patients). Of several
            columns "<metric> <column>", and the mean over columns of those that have no unit.
        constant: metric -> that of a predictor that knows only the training folds' frequencies of classes, or means.
        selected_on_reported: whether the epochs were chosen on the folds that are reported, which makes the numbers too
            good (protocol "reported_folds").

    >>> SlideMetrics(2, 2, {"auroc": Interval(0.8, 0.7, 0.9)}, {"auroc": 0.5}).to_dict()["values"]["auroc"]["low"]
    0.7
    """

    n_slides: int
    n_patients: int
    values: Mapping[str, Interval]
    constant: Mapping[str, float]
    selected_on_reported: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Predictions:
    """Predictions of n slides (or patients), each by a model that has not seen it.

    Args:
        scores: probabilities [n, C], those of several columns one after another; values [n, T]; or risks [n, 1].
        folds: int64 [n], in which fold each was tested.
        patients: int64 [n], codes of the patients.
        constant: as `scores`, of a predictor that knows only the training part of each one's fold; None for survival.
    """

    scores: NDArray[np.float64]
    folds: NDArray[np.int64]
    patients: NDArray[np.int64]
    constant: NDArray[np.float64] | None


@dataclass(frozen=True)
class Drawn:
    """Metrics of predictions for every draw of patients.

    Attributes:
        values: metric -> [1 + DRAWS], the first of all patients.
        constant: metric -> the constant predictor's.
        n_slides, n_patients: how many were predicted.
    """

    values: Mapping[str, Draws]
    constant: Mapping[str, float]
    n_slides: int
    n_patients: int

    def summary(self, selected_on_reported: bool = False) -> SlideMetrics:
        """The metrics with their intervals."""
        values = {name: interval(draws) for name, draws in self.values.items()}
        return SlideMetrics(self.n_slides, self.n_patients, values, self.constant, selected_on_reported)


def measure(predictions: Predictions, targets: Targets, seed: int = 0) -> Drawn:
    """Metrics of predictions against targets.

    Args:
        predictions: of n slides.
        targets: of the same slides, each with a target in one column at least.
        seed: of the bootstrap's draws; with the same seed and patients, draws are the same.

    >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])
    >>> zeros, patients = np.zeros(4, dtype=np.int64), np.arange(4)
    >>> targets = ClassTargets(("a", "b"), np.array([0, 1, 1, 0]))
    >>> measure(Predictions(scores, zeros, patients, np.full((4, 2), 0.5)), targets).values["auroc"][0].item()
    1.0
    """
    names, patients = np.unique(predictions.patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    of_patients = np.concatenate([np.ones((1, len(names))), drawn])  # [1 + DRAWS, patients]
    values, constant = _measure(predictions, targets, of_patients, patients)
    return Drawn(values, constant, len(patients), len(names))


def _measure(
    predictions: Predictions, targets: Targets, of_patients: Draws, patients: NDArray[np.int64]
) -> tuple[dict[str, Draws], dict[str, float]]:
    if isinstance(targets, SurvivalTargets):
        return {"c_index": _c_index_of_patients(predictions, targets, of_patients, patients)}, {"c_index": 0.5}
    weights = of_patients[:, patients]  # [1 + DRAWS, n]
    if isinstance(targets, ClassTargets):
        return _measure_classes(predictions, targets, weights)
    if isinstance(targets, SeveralClasses):
        return _measure_several(predictions, targets, weights)
    assert isinstance(targets, ValueTargets)
    return _measure_values(predictions, targets, weights)


def _c_index_of_patients(
    predictions: Predictions, targets: SurvivalTargets, weights: Draws, patients: NDArray[np.int64]
) -> Draws:
    """C-index over patients, whose risk is the mean of their slides'; slides of a patient have one time and fold."""
    risks = np.bincount(patients, predictions.scores[:, 0]) / np.bincount(patients)
    _, first = np.unique(patients, return_index=True)
    return c_index(risks, predictions.folds[first], take(targets, first), weights)


def _measure_classes(
    predictions: Predictions, targets: ClassTargets, weights: Draws
) -> tuple[dict[str, Draws], dict[str, float]]:
    codes, folds = targets.codes, predictions.folds
    assert predictions.constant is not None
    found = _of_classes(predictions.scores, codes, weights)
    constant = {name: float(draws[0]) for name, draws in _of_classes(predictions.constant, codes, weights[:1]).items()}
    found["auroc"], constant["auroc"] = auroc(predictions.scores, folds, targets, weights), 0.5
    return found, constant


def _of_classes(scores: NDArray[np.float64], codes: NDArray[np.int64], weights: Draws) -> dict[str, Draws]:
    """Balanced accuracy, weighted F1 and log loss of probabilities [n, C]."""
    n, C = scores.shape
    cells = np.zeros((n, C * C))
    cells[np.arange(n), codes * C + scores.argmax(axis=1)] = 1
    accuracy, f1 = weighted_scores(cells, weights, C)
    losses = -np.log(np.maximum(scores[np.arange(n), codes], LEAST_PROBABILITY))
    return {"balanced_accuracy": accuracy, "weighted_f1": f1, "log_loss": _average(weights, losses)}


def _measure_several(
    predictions: Predictions, targets: SeveralClasses, weights: Draws
) -> tuple[dict[str, Draws], dict[str, float]]:
    """Metrics of every column over the slides whose class is known, and their means."""
    found: dict[str, Draws] = {}
    constant: dict[str, float] = {}
    ends = np.cumsum([len(classes) for classes in targets.classes]).tolist()
    metrics: list[str] = []
    for (name, column), start, end in zip(targets.columns(), [0, *ends], ends, strict=False):
        known = column.known
        assert predictions.constant is not None
        part = Predictions(
            predictions.scores[known, start:end], predictions.folds[known], predictions.patients[known],
            predictions.constant[known, start:end],
        )  # fmt: skip
        values, plain = _measure_classes(part, take(column, np.flatnonzero(known)), weights[:, known])
        metrics = list(values)
        found |= {f"{metric} {name}": draws for metric, draws in values.items()}
        constant |= {f"{metric} {name}": value for metric, value in plain.items()}
    means = {m: mean_of_known([found[f"{m} {name}"] for name in targets.names]) for m in metrics}
    plain_means = {m: float(np.mean([constant[f"{m} {name}"] for name in targets.names])) for m in metrics}
    return means | found, plain_means | constant


def _measure_values(
    predictions: Predictions, targets: ValueTargets, weights: Draws
) -> tuple[dict[str, Draws], dict[str, float]]:
    """Metrics of every column over the slides whose value is known, and the means of correlation and R2."""
    found: dict[str, Draws] = {}
    constant: dict[str, float] = {}
    assert predictions.constant is not None
    for i, name in enumerate(targets.names):
        known = ~np.isnan(targets.values[:, i])
        truth, w = targets.values[known, i], weights[:, known]
        error = predictions.scores[known, i] - truth
        plain = predictions.constant[known, i] - truth
        squares, plain_squares = _average(w, error**2), _average(w, plain**2)
        end = f" {name}" if len(targets.names) > 1 else ""
        found |= {
            f"pearson{end}": _pearson(predictions.scores[known, i], truth, predictions.folds[known], w),
            f"r2{end}": 1 - squares / np.where(plain_squares > 0, plain_squares, np.nan),
            f"mae{end}": _average(w, np.abs(error)),
            f"rmse{end}": np.sqrt(squares),
        }
        constant |= {
            f"pearson{end}": 0.0,
            f"r2{end}": 0.0,
            f"mae{end}": float(np.abs(plain).mean()),
            f"rmse{end}": float(np.sqrt(plain_squares[0])),
        }
    if len(targets.names) == 1:
        return found, constant
    means = {m: mean_of_known([found[f"{m} {name}"] for name in targets.names]) for m in ("pearson", "r2")}
    return means | found, {"pearson": 0.0, "r2": 0.0} | constant


def _average(weights: Draws, values: NDArray[np.float64]) -> Draws:
    """Weighted means of values [n]; NaN for draws without any of them."""
    total = weights.sum(axis=1)
    average: Draws = weights @ values / np.where(total > 0, total, np.nan)
    return average


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64], folds: NDArray[np.int64], weights: Draws) -> Draws:
    """Correlation within folds: of deviations from the mean of the fold, whose model has a mean of its own."""
    sums = np.zeros((3, len(weights)))
    for fold in np.unique(folds).tolist():
        inside = folds == fold
        w = weights[:, inside]
        a, b = x[inside] - x[inside].mean(), y[inside] - y[inside].mean()  # near 0, for precision
        n = np.maximum(w.sum(axis=1), 1e-300)
        mean_a, mean_b = w @ a / n, w @ b / n
        sums += np.stack([w @ (a * b) - n * mean_a * mean_b, w @ a**2 - n * mean_a**2, w @ b**2 - n * mean_b**2])
    product = sums[1] * sums[2]
    correlation: Draws = sums[0] / np.sqrt(np.where(product > 1e-24, product, np.nan))
    return correlation
