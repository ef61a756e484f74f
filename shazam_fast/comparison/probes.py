"""Linear probes: standardised logistic regression on frozen features, the baselines that fusion has to beat.

L2-regularised logistic regression does not change when the features are rotated. With fewer training rows than columns
all of them are therefore expressed in the space that the training rows span, which costs no accuracy and makes a probe
on ten thousand columns take a fraction of a second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..scoring.metrics import confusion_matrix, selection_metrics, selection_score
from .fold import PARTS, Fold

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Array = NDArray[np.float64]

REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # values of scikit-learn's C that the validation split chooses among
MAX_ITERATIONS = 500  # of the solver, for one value of C


@dataclass(frozen=True)
class Probe:
    """A fitted probe: `probabilities` [n, C] of val and test, its C, and its `score` (0.8 BA + 0.2 wF1) on val."""

    probabilities: Mapping[str, Array]
    C: float
    score: float


def validation_score(probabilities: Array, labels: NDArray[np.int64]) -> float:
    """0.8 balanced accuracy + 0.2 weighted F1 of `probabilities` [n, C] against `labels` [n]."""
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    return selection_score(*selection_metrics(confusion))


def fit_probe(fold: Fold, teachers: Sequence[str], *, balanced: bool = False, scaled: bool = False) -> Probe:
    """Logistic regression on the teachers' features side by side; C is chosen on val, the smallest among equals.

    Args:
        fold: what to fit on and predict.
        teachers: names; their standardised features are concatenated.
        balanced: weigh every class by the inverse of its frequency.
        scaled: divide each teacher's block by the square root of its number of columns, so that wide teachers do not
            count more than narrow ones.
    """
    x, y = probe_features(fold, teachers, scaled), fold.labels("train")
    best: tuple[float, float, LogisticRegression] | None = None
    for C in REGULARISATIONS:
        model = logistic_regression(C, balanced).fit(x["train"], y)
        score = validation_score(model.predict_proba(x["val"]), fold.labels("val"))
        if best is None or score > best[0]:
            best = score, C, model
    assert best is not None
    return Probe({part: best[2].predict_proba(x[part]) for part in ("val", "test")}, best[1], best[0])


def logistic_regression(C: float, balanced: bool) -> "LogisticRegression":
    """The solver of every probe."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=MAX_ITERATIONS, tol=1e-3, class_weight="balanced" if balanced else None)


def probe_features(fold: Fold, teachers: Sequence[str], scaled: bool = False) -> Mapping[str, Array]:
    """Standardised features {part: [n, d]}, in the space that the training rows span where that is smaller."""
    blocks = [_standardise(fold, name, scaled) for name in teachers]
    return _span({part: np.concatenate([block[part] for block in blocks], axis=1) for part in PARTS})


def _standardise(fold: Fold, teacher: str, scaled: bool) -> dict[str, Array]:
    """One teacher's features of every part [n, d], standardised by the training split."""
    x = {part: fold.features(part, [teacher]).astype(np.float64) for part in PARTS}
    mean, scale = x["train"].mean(axis=0), x["train"].std(axis=0)
    scale = np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)
    width = np.sqrt(len(mean)) if scaled else 1.0
    return {part: (values - mean) / (scale * width) for part, values in x.items()}


def _span(x: Mapping[str, Array]) -> Mapping[str, Array]:
    """The same rows in coordinates of the space that the training rows span, where that has fewer dimensions."""
    rows, columns = x["train"].shape
    if rows >= columns:
        return x
    basis, _ = np.linalg.qr(x["train"].T)  # [columns, rows]
    return {part: values @ basis for part, values in x.items()}
