"""Metrics of a classification, from predicted probabilities and true labels."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError, NonFiniteError
from ..runtime.summaries import Plottable, counted, summary_html

CALIBRATION_BINS = 15  # of equal width, for the expected calibration error
FRACTIONS = ("balanced_accuracy", "weighted_f1", "accuracy", "auroc", "calibration_error")


@dataclass(frozen=True)
class ClassMetrics:
    """How well one class is told from the rest.

    Fractions in [0, 1]: `precision` (NaN where nothing was predicted as it), `recall` (NaN without a patch of it), `f1`
    and `auroc` (NaN where they are not defined). `n_rows` counts the patches of the class.
    """

    precision: float
    recall: float
    f1: float
    auroc: float
    n_rows: int


@dataclass(frozen=True, repr=False)
class Metrics(Plottable):
    """How well predictions match labels on `n_rows` patches.

    Fractions in [0, 1]: `balanced_accuracy` (mean recall of the classes present), `weighted_f1`, `accuracy` (top-1),
    `auroc` (one class against the rest, mean over the classes present; NaN if only one class is present),
    `calibration_error` (expected, of the predicted class's probability, 15 equal bins).
    `confusion` int64 [C, C] counts true class by row, predicted by column. `probabilities` float32 [n_rows, C] and
    `labels` int64 [n_rows] are what they were computed from; None for metrics that were read from a file.
    `auroc_of` has each class's AUROC against the rest, NaN where it cannot be computed or was not recorded.

    >>> import numpy as np, shazam_fast as sf
    >>> matrix = np.array([[1, 1], [0, 2]])
    >>> metrics = sf.Metrics(4, ("normal", "tumour"), 0.75, 0.73, 0.75, 0.9, 0.1, matrix)
    >>> sf.Metrics.from_dict(metrics.to_dict()).balanced_accuracy
    0.75
    """

    n_rows: int
    classes: tuple[str, ...]
    balanced_accuracy: float
    weighted_f1: float
    accuracy: float
    auroc: float
    calibration_error: float
    confusion: NDArray[np.int64]
    probabilities: NDArray[np.floating[Any]] | None = field(default=None, repr=False, compare=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    auroc_of: tuple[float, ...] = field(default=(), compare=False)

    @property
    def per_class(self) -> dict[str, ClassMetrics]:
        """{class: its precision, recall, F1 and AUROC against the rest}, and the number of its patches."""
        hits = np.diag(self.confusion).astype(np.float64)
        true, predicted = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: not defined
            columns = (hits / predicted, hits / true, 2.0 * hits / (true + predicted))
        aurocs = self.auroc_of or (math.nan,) * len(self.classes)
        numbers = zip(*(column.tolist() for column in columns), aurocs, true.tolist(), strict=True)
        return {name: ClassMetrics(*found) for name, found in zip(self.classes, numbers, strict=True)}

    @property
    def mcc(self) -> float:
        """Matthews' correlation coefficient of labels and predictions, -1 to 1; NaN if either is of one class only."""
        n, hits, products, squares = self._sums()
        norm = math.sqrt(float(n**2 - squares[0]) * float(n**2 - squares[1]))
        return (n * hits - products) / norm if norm else math.nan

    @property
    def kappa(self) -> float:
        """Cohen's kappa: accuracy beyond what chance gives, at most 1; NaN if all is of one class."""
        n, hits, products, _ = self._sums()
        return (n * hits - products) / (n**2 - products) if n**2 > products else math.nan

    def _sums(self) -> tuple[int, int, int, tuple[int, int]]:
        """Number of patches, hits, and the sums over classes of true x predicted, of true^2 and predicted^2."""
        true, predicted = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        squares = int(true @ true), int(predicted @ predicted)
        return int(true.sum()), int(np.trace(self.confusion)), int(true @ predicted), squares

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={getattr(self, name):.3f}" for name in FRACTIONS)
        return f"Metrics({counted(self.n_rows, 'row')}, {counted(len(self.classes), 'class')}: {numbers})"

    def _repr_html_(self) -> str:
        facts = {name.replace("_", " "): f"{getattr(self, name):.3f}" for name in FRACTIONS}
        rows = ((name, *counts) for name, counts in zip(self.classes, self.confusion.tolist(), strict=True))
        return summary_html(f"Metrics of {self.n_rows:,}", facts, ("true \\ predicted", *self.classes), rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON, which has no NaN: None stands for it."""
        numbers = {name: _plain(getattr(self, name)) for name in ("n_rows", *FRACTIONS, "mcc", "kappa")}
        per_class = {
            name: {key: _plain(value) for key, value in asdict(found).items()} for name, found in self.per_class.items()
        }
        return {
            **numbers, "classes": list(self.classes), "confusion": self.confusion.tolist(), "per_class": per_class,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises MismatchError when a value is missing or of another kind.
        """
        values = {"n_rows" if name == "rows" else name: value for name, value in values.items()}  # "rows" until 0.1
        try:
            numbers: dict[str, Any] = {name: float(values[name]) for name in FRACTIONS if values[name] is not None}
            classes = tuple(str(name) for name in values["classes"])
            confusion = np.array(values["confusion"], dtype=np.int64).reshape(len(classes), len(classes))
            found = [values["per_class"][name]["auroc"] for name in classes if "per_class" in values]  # since 0.1
            aurocs = tuple(math.nan if value is None else float(value) for value in found)
            return cls(
                n_rows=int(values["n_rows"]), classes=classes, confusion=confusion, auroc_of=aurocs,
                **{"auroc": math.nan, **numbers},
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MismatchError(f"not the metrics of a student: {error!r}") from None


# Over 40 lines with what it documents.
def compute_metrics(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> Metrics:
    """Metrics of predicted probabilities against true labels.

    Args:
        probabilities: of each class, [n, C].
        labels: int64 [n], all in 0..C-1.
        classes: the names of the C classes.

    Returns the metrics.

    Raises MismatchError when there is no row, or a label is unknown or out of range; NonFiniteError naming the row of
    a probability that is NaN or infinite.

    >>> probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    >>> compute_metrics(probabilities, np.array([0, 0, 1]), ("normal", "tumour")).balanced_accuracy
    0.75
    """
    if len(labels) == 0:
        raise MismatchError("metrics need at least one labelled patch, there is none")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise MismatchError(f"labels 0..{len(classes) - 1} expected, found {labels.min()}..{labels.max()}")
    if not np.isfinite(probabilities).all():
        row = int(np.argwhere(~np.isfinite(probabilities))[0, 0])
        found = probabilities[row].tolist()
        raise NonFiniteError(f"metrics: finite probabilities expected, found {found} in row {row}")
    prediction = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, prediction, len(classes))
    balanced_accuracy, weighted_f1 = selection_metrics(confusion)
    aurocs = _aurocs(probabilities, labels)
    defined = [value for value in aurocs if not math.isnan(value)]
    return Metrics(
        n_rows=len(labels),
        classes=classes,
        balanced_accuracy=balanced_accuracy,
        weighted_f1=weighted_f1,
        accuracy=float(np.trace(confusion) / len(labels)),
        auroc=float(np.mean(defined)) if defined else math.nan,
        calibration_error=calibration_error(probabilities, labels),
        confusion=confusion,
        probabilities=probabilities,
        labels=labels,
        auroc_of=aurocs,
    )


def confusion_matrix(labels: NDArray[np.int64], prediction: NDArray[np.int64], C: int) -> NDArray[np.int64]:
    """Counts of true class (row) and predicted class (column), int64 [C, C].

    Args:
        labels, prediction: int64 [n], in 0..C-1.
        C: number of classes.
    """
    return np.bincount(labels * C + prediction, minlength=C * C).reshape(C, C)


def selection_metrics(confusion: NDArray[np.int64]) -> tuple[float, float]:
    """Balanced accuracy and weighted F1 of a confusion matrix [C, C], defined as scikit-learn defines them."""
    hits = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    occurs = true > 0
    balanced_accuracy = (hits[occurs] / true[occurs]).mean()
    f1 = 2.0 * hits[occurs] / (true[occurs] + predicted[occurs])
    return float(balanced_accuracy), float(np.average(f1, weights=true[occurs]))


def selection_score(balanced_accuracy: float, weighted_f1: float) -> float:
    """0.8 balanced accuracy + 0.2 weighted F1, which chooses the best epoch, as in the authors' script."""
    return 0.8 * balanced_accuracy + 0.2 * weighted_f1


def _aurocs(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> tuple[float, ...]:
    """AUROC of each class against the rest; NaN where there is no patch of it, or no other."""
    found = []
    for c, scores in enumerate(probabilities.T):
        own = labels == c
        found.append(_area_under_roc(scores, own) if 0 < own.sum() < len(own) else math.nan)
    return tuple(found)


def _area_under_roc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """How often a positive row scores higher than a negative one, ties counting half, from the ranks of all rows.

    As scikit-learn has it, without its checks, which take a hundred times as long for a few hundred rows.
    """
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - 0.5 * (counts - 1)  # from 1; the mean of those that tie
    positives = int(positive.sum())
    above = ranks[index[positive]].sum() - 0.5 * positives * (positives + 1)
    return float(above / (positives * (len(scores) - positives)))


def reliability(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean confidence, accuracy and number of predictions in each of 15 equal bins of confidence, [15] each.

    Args:
        probabilities: of each class, [n, C].
        labels: int64 [n], in 0..C-1.

    >>> confidence, accuracy, count = reliability(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]))
    >>> count.tolist()[8:14], float(accuracy[9]), float(confidence[13])
    ([0, 1, 0, 0, 0, 1], 0.0, 0.9)
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    bins, right = _bins(confidence), probabilities.argmax(axis=1) == labels
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = [np.bincount(bins, weights=values, minlength=CALIBRATION_BINS) for values in (confidence, right)]
    sure, hits = (part / np.maximum(count, 1) for part in sums)
    return sure, hits, count


def calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Expected calibration error of the predicted class's probability, in 15 equal bins of it.

    Args:
        probabilities: of each class, [n, C].
        labels: int64 [n], in 0..C-1.

    >>> round(calibration_error(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0])), 3)
    0.35
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = _bins(confidence)
    gap = np.bincount(bins, weights=correct - confidence.astype(np.float64), minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(confidence))


def _bins(confidence: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
