"""Linear probes: standardised logistic regression on frozen features, the baselines that fusion has to beat.

L2-regularised logistic regression does not change when the features are rotated, and the solution lies in the span of
the training rows. With fewer training rows than columns it is therefore fitted in coordinates of that span, which are
the rows of the Cholesky factor of the matrix of inner products, K = L L^T. The K of several teachers side by side is
the sum of theirs, so that any set of teachers costs little once K is known of each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..scoring.metrics import confusion_matrix, selection_metrics, selection_score
from .fold import PARTS, Fold

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]

REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # values of scikit-learn's C that the validation split chooses among
MAX_ITERATIONS = 500  # of the solver, for one value of C
KERNEL_ROWS = 4096  # most training rows for which inner products are taken
JITTER = 1e-10  # added to K's diagonal, relative to its mean: standardised rows sum to 0, so K is singular


@dataclass(frozen=True)
class Space:
    """Coordinates in which a probe is fitted: `train` and `val` [n, m], and how to get back to features.

    `weights` maps coefficients [m, k] to those of the standardised features, [sum of dims, k].
    """

    train: Array
    val: Array
    weights: Callable[[Array], Array]


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Args:
        fold: what it was fitted on.
        teachers: whose features it reads.
        weight, bias: of the standardised features, [sum of dims, C] and [C].
        C: its regularisation.
        score: 0.8 balanced accuracy + 0.2 weighted F1 on val.
    """

    fold: Fold
    teachers: tuple[str, ...]
    weight: Array
    bias: Array
    C: float
    score: float

    def predict(self, part: str) -> Array:
        """Probabilities [n, C] of a part."""
        logits, start = self.bias, 0
        for teacher in self.teachers:
            x = standardise(self.fold, teacher, part)
            logits = logits + x @ self.weight[start : start + x.shape[1]]
            start += x.shape[1]
        return softmax(logits)

    @cached_property
    def probabilities(self) -> Mapping[str, Array]:
        """Probabilities [n, C] of val and test."""
        return {part: self.predict(part) for part in ("val", "test")}


def validation_score(probabilities: Array, labels: NDArray[np.int64]) -> float:
    """0.8 balanced accuracy + 0.2 weighted F1 of `probabilities` [n, C] against `labels` [n]."""
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    return selection_score(*selection_metrics(confusion))


def softmax(logits: Array) -> Array:
    """Probabilities [n, C] of logits [n, C]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_probe(fold: Fold, teachers: Sequence[str], *, balanced: bool = False, scaled: bool = False) -> Probe:
    """Logistic regression on the teachers' features side by side; C is chosen on val, the smallest among equals.

    Args:
        fold: what to fit on and predict.
        teachers: names; their standardised features are concatenated.
        balanced: weigh every class by the inverse of its frequency.
        scaled: divide each teacher's block by the square root of its number of columns, so that wide teachers do not
            count more than narrow ones.
    """
    space, y = make_space(fold, teachers, scaled), fold.labels("train")
    model = logistic_regression(REGULARISATIONS[0], balanced)
    best: tuple[float, float, Array, Array] | None = None
    for C in REGULARISATIONS:  # each starts from the solution of the one before
        solve(model.set_params(C=C), space.train, y)
        coefficients, bias = _of_all_classes(model)
        score = validation_score(softmax(space.val @ coefficients + bias), fold.labels("val"))
        if best is None or score > best[0]:
            best = score, C, coefficients, bias
    assert best is not None
    return Probe(fold, tuple(teachers), space.weights(best[2]), best[3], best[1], best[0])


def logistic_regression(C: float, balanced: bool) -> "LogisticRegression":
    """The solver of every probe."""
    from sklearn.linear_model import LogisticRegression

    weights = "balanced" if balanced else None
    return LogisticRegression(C=C, max_iter=MAX_ITERATIONS, tol=1e-4, class_weight=weights, warm_start=True)


def solve(model: "LogisticRegression", x: Array, y: NDArray[np.int64]) -> "LogisticRegression":
    """The model fitted by one thread: its products are so small that BLAS's threads cost ten times what they gain."""
    with _thread_pools().limit(limits=1, user_api="blas"):
        return model.fit(x, y)


@cache
def _thread_pools() -> "ThreadpoolController":
    """Of the libraries that SciPy and scikit-learn have loaded; finding them takes milliseconds."""
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _of_all_classes(model: "LogisticRegression") -> tuple[Array, Array]:
    """Coefficients [m, C] and intercepts [C]; scikit-learn has one column for two classes."""
    coefficients, bias = model.coef_.T, model.intercept_
    if len(bias) > 1:
        return coefficients.copy(), bias.copy()
    return np.concatenate([0 * coefficients, coefficients], axis=1), np.array([0.0, bias[0]])


def make_space(fold: Fold, teachers: Sequence[str], scaled: bool = False) -> Space:
    """Coordinates of the teachers' features: of the span of the training rows where they are few, else the features."""
    rows, columns = len(fold.labels("train")), sum(fold.archive.teachers[name] for name in teachers)
    if rows >= columns or rows > KERNEL_ROWS:
        return _plain_space(fold, teachers, scaled)
    space: Space = fold.shared.get(("space", tuple(teachers), scaled), lambda: _spanned_space(fold, teachers, scaled))
    return space


def _plain_space(fold: Fold, teachers: Sequence[str], scaled: bool) -> Space:
    x = standardised(fold, teachers, scaled, ("train", "val"))
    widths = _widths(fold, teachers, scaled)[:, None]
    return Space(x["train"], x["val"], lambda coefficients: coefficients / np.sqrt(widths))


def _spanned_space(fold: Fold, teachers: Sequence[str], scaled: bool) -> Space:
    from scipy.linalg import cholesky, solve_triangular

    kernels = [(_inner_products(fold, name), fold.archive.teachers[name] if scaled else 1) for name in teachers]
    K = {part: np.sum([kernel[part] / width for kernel, width in kernels], axis=0) for part in ("train", "val")}
    diagonal = np.einsum("ii->i", K["train"])  # a view
    diagonal += JITTER * max(float(diagonal.mean()), 1e-300)
    L = cholesky(K["train"], lower=True)

    def weights(coefficients: Array) -> Array:
        alpha = solve_triangular(L, coefficients, lower=True, trans=1)
        blocks = [standardise(fold, name, "train").T @ alpha for name in teachers]
        return np.asarray(np.concatenate(blocks) / _widths(fold, teachers, scaled)[:, None])

    return Space(L, solve_triangular(L, K["val"].T, lower=True).T, weights)


def _inner_products(fold: Fold, teacher: str) -> dict[str, Array]:
    """Of the rows of train and val with those of train, {part: [n, n_train]}."""

    def make() -> dict[str, Array]:
        train = standardise(fold, teacher, "train")
        return {"train": train @ train.T, "val": standardise(fold, teacher, "val") @ train.T}

    found: dict[str, Array] = fold.shared.get(("inner products", teacher), make)
    return found


def _widths(fold: Fold, teachers: Sequence[str], scaled: bool) -> Array:
    """For each column, the number of columns of its teacher; 1 where blocks are not scaled."""
    dims = [fold.archive.teachers[name] for name in teachers]
    return np.repeat(dims, dims).astype(np.float64) if scaled else np.ones(sum(dims))


def standardise(fold: Fold, teacher: str, part: str) -> Array:
    """One teacher's features of a part [n, dim], with mean 0 and variance 1 on the training split."""

    def moments() -> tuple[Array, Array]:
        train = fold.features("train", [teacher]).astype(np.float64)
        mean, scale = train.mean(axis=0), train.std(axis=0)
        return mean, np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)

    mean, scale = fold.shared.get(("moments", teacher), moments)
    return np.asarray((fold.features(part, [teacher]) - mean) / scale)


def standardised(
    fold: Fold, teachers: Sequence[str], scaled: bool = False, parts: Sequence[str] = PARTS
) -> dict[str, Array]:
    """Standardised features of several teachers side by side {part: [n, sum of dims]}; `scaled` as in `fit_probe`."""
    root = np.sqrt(_widths(fold, teachers, scaled))
    found: dict[str, Any] = {}
    for part in parts:
        found[part] = np.concatenate([standardise(fold, name, part) for name in teachers], axis=1) / root
    return found
