"""`ShazamClassifier`: the student as a scikit-learn estimator, on arrays in memory."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .annotation.splits import GroupedSplit
from .errors import MismatchError, ShazamError
from .runtime.checks import require_count, require_number
from .runtime.summaries import counted
from .tables.cells import normalise
from .training.config import TrainConfig
from .training.train import train_arrays

logger = logging.getLogger("shazam_fast")

TRAIN, VAL = 0, 1  # codes of splits
LEAST_VALIDATION = 5  # rows of every class
PREDICTED_ROWS = 8192  # rows that a prediction holds in float64 at a time
MOST_SEED = 2**31 - 1
SETTINGS = (
    "epochs", "batch_size", "lr", "weight_decay", "lam", "dim", "depth", "block", "teacher_dropout", "patience",
    "device",
)  # fmt: skip


class InputError(MismatchError, ValueError):
    """Arrays or labels that do not fit; a ValueError too, as scikit-learn expects."""


class ShazamClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fuse the features of several teachers with a student: a classifier for scikit-learn.

    X is one array [n, sum of dims], the teachers side by side; or {teacher: array [n, dim]}, or a list of such arrays,
    for `fit` and `predict` alone (scikit-learn cannot cut those into folds). Features are used as float32. Arguments
    that are None have the value of the preset.

    Args:
        teacher_dims: {teacher: dim}, or a list of dims, in the order of X's columns. By default an array is one
            teacher, and lists and mappings of arrays say it themselves.
        preset: a named configuration, see `TrainConfig.from_preset`; by default the defaults of `TrainConfig`.
        epochs, batch_size, lr, weight_decay, lam, patience: the training, see `TrainConfig`. Fewer rows than a batch
            are one batch.
        dim, depth, block, teacher_dropout: the student, see `StudentConfig`.
        options: other fields of `TrainConfig` by name.
        class_weight: "balanced", or {class: weight >= 0}, of which only the ratios matter: weighs the cross-entropy and
            the accuracy that chooses the epoch, in place of the preset's `balance`. None: as the preset says.
        validation_fraction: share of the rows, more than 0 and less than 0.5, that chooses the best epoch and does not
            train: drawn by class, in whole groups where `fit` is given groups. None: all rows train, for all epochs.
            That is also done where the preset keeps the last epoch (`selection`), and, with a warning in the log, where
            a class has less than 5 validation rows.
        random_state: int, RandomState or None, of that share, the initial parameters and the batches.
        device: "cpu", "cuda" or "cuda:1", to train on; by default a GPU if PyTorch finds one. Predictions are made on
            the CPU, in float64.

    Attributes:
        classes_: the classes, sorted.
        teachers_: {teacher: dim}, in the order of X's columns.
        n_features_in_, feature_names_in_: number of X's columns, and their names where X was a table.
        student_: the trained `Student`, to be saved, folded or scored with; its classes are `classes_` as text.
        history_: one record per epoch, see `TrainResult`; without validation it has no "val_score".

    >>> import numpy as np, shazam_fast as sf
    >>> rng, y = np.random.default_rng(0), np.repeat(["normal", "tumor"], 40)
    >>> X = rng.normal(size=(80, 15)) + (y == "tumor")[:, None]
    >>> model = sf.ShazamClassifier({"uni": 6, "gigapath": 9}, dim=8, depth=1, epochs=5, random_state=0, device="cpu")
    >>> model.fit(X, y).predict_proba(X).shape
    (80, 2)
    >>> model.predict({"gigapath": X[:1, 6:], "uni": X[:1, :6]}).shape
    (1,)
    """

    def __init__(
        self,
        teacher_dims: Mapping[str, int] | Sequence[int] | None = None,
        *,
        preset: str | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        lam: float | None = None,
        patience: int | None = None,
        dim: int | None = None,
        depth: int | None = None,
        block: str | None = None,
        teacher_dropout: float | None = None,
        options: Mapping[str, Any] | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        validation_fraction: float | None = 0.15,
        random_state: int | np.random.RandomState | None = None,
        device: str | None = None,
    ) -> None:
        self.teacher_dims = teacher_dims
        self.preset = preset
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.lam = lam
        self.patience = patience
        self.dim = dim
        self.depth = depth
        self.block = block
        self.teacher_dropout = teacher_dropout
        self.options = options
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, groups: ArrayLike | None = None) -> Self:
        """Train a student.

        Args:
            X: [n, sum of dims], or {teacher: [n, dim]}, or a list of [n, dim].
            y: [n] labels of any type.
            groups: [n] patients; those of one patient train or validate together. Missing values are of no group.

        Returns the estimator itself.

        Raises:
            ValueError: NaN or infinity; one class; other shapes than these. A ShazamError too where teachers' columns
                or rows do not fit.
            ShazamError: an argument out of range, or a loss that is NaN or infinite.
        """
        columns, teachers = _side_by_side(X, _named_dims(self.teacher_dims))
        x, y = validate_data(self, columns, y, dtype=np.float32)
        check_classification_targets(y)
        self.teachers_ = teachers or {"teacher_0": x.shape[1]}
        _require_columns(self.teachers_, x.shape[1])
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y: two or more classes expected, found one class, {self.classes_.tolist()[0]!r}")
        random = check_random_state(self.random_state)
        split_seed, seed = random.randint(MOST_SEED, size=2).tolist()
        config = self._config(seed)
        splits = self._splits(codes, groups, split_seed, chosen=config.selection == "best")
        training = splits == TRAIN
        config = config.fit_batch(int(training.sum()))
        weights = _class_weights(self.class_weight, self.classes_, y[training])
        blocks = np.split(x, np.cumsum(list(self.teachers_.values()))[:-1], axis=1)
        result = train_arrays(
            dict(zip(self.teachers_, blocks, strict=True)), codes, splits, [str(name) for name in self.classes_],
            config, weights,
        )  # fmt: skip
        self.student_, self.history_ = result.student, result.history
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities of the classes, in the order of `classes_`, float64 [n, C]; X as for `fit`."""
        check_is_fitted(self)
        columns, _ = _side_by_side(X, self.teachers_)
        x = validate_data(self, columns, reset=False, dtype=np.float32)
        student = copy.deepcopy(self.student_).double()  # a row's result then hardly depends on the rows beside it
        with torch.inference_mode():
            parts = torch.from_numpy(x).split(PREDICTED_ROWS)
            return np.concatenate([student(part.double()).logits.softmax(dim=1).numpy() for part in parts])

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of every row, [n]; X as for `fit`."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(axis=1)])

    def _config(self, seed: int) -> TrainConfig:
        given = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}
        given |= {**({} if self.class_weight is None else {"balance": 0.0}), **(self.options or {}), "seed": seed}
        try:
            return TrainConfig(**given) if self.preset is None else TrainConfig.from_preset(self.preset, **given)
        except TypeError as error:
            raise ShazamError(f"options: fields of TrainConfig expected: {error}") from None

    def _splits(self, codes: NDArray[np.int64], groups: ArrayLike | None, seed: int, chosen: bool) -> NDArray[np.uint8]:
        """Split codes [n] of rows: 0 train, 1 val. `chosen`: the epoch that is kept is chosen by validation."""
        everything = np.full(len(codes), TRAIN, dtype=np.uint8)
        units = None if groups is None else _group_codes(groups, codes)
        if self.validation_fraction is None:
            return everything
        share = require_number("validation_fraction", self.validation_fraction, above=0.0, below=0.5)
        if not chosen:
            return everything
        try:
            splits = GroupedSplit(share, 0.0, seed).assign(codes, units, where="X")
        except MismatchError:  # fewer rows or groups than the share needs
            splits = everything
        C = len(self.classes_)
        train, val = (np.bincount(codes[splits == code], minlength=C).min() for code in (TRAIN, VAL))
        if train > 0 and val >= LEAST_VALIDATION:
            return splits
        logger.warning(
            "%d rows are too few to hold out %g%% with %d of every class: all of them train, for all epochs",
            len(codes), 100 * share, LEAST_VALIDATION,
        )  # fmt: skip
        return everything


def _named_dims(given: Mapping[str, int] | Sequence[int] | None) -> dict[str, int] | None:
    """{teacher: dim}; the teachers of a list are called teacher_0, teacher_1, ..."""
    if given is None:
        return None
    named = given if isinstance(given, Mapping) else {f"teacher_{i}": dim for i, dim in enumerate(given)}
    return {name: require_count(f"teacher_dims: dim of {name!r}", dim) for name, dim in named.items()}


def _side_by_side(X: Any, expected: dict[str, int] | None) -> tuple[Any, dict[str, int] | None]:
    """X as one array, and the teachers that its columns belong to, as far as that is known.

    Raises InputError when arrays of other teachers, columns or rows than expected are given.
    """
    if isinstance(X, Mapping) and not issparse(X):
        parts = dict(X)
    elif isinstance(X, list | tuple) and X and all(getattr(part, "ndim", 0) == 2 for part in X):
        names = list(expected or [f"teacher_{i}" for i in range(len(X))])
        if len(names) != len(X):
            raise InputError(f"X: one array for each of the teachers {names} expected, found {len(X)} arrays")
        parts = dict(zip(names, X, strict=True))
    else:
        return X, expected
    if not parts or (expected is not None and set(parts) != set(expected)):
        raise InputError(f"X: arrays of the teachers {list(expected or ['...'])} expected, found {list(parts)}")
    arrays = {name: check_array(parts[name], dtype=np.float32, input_name=f"X[{name!r}]") for name in expected or parts}
    found = {name: array.shape[1] for name, array in arrays.items()}
    if expected is not None and found != expected:
        raise InputError(f"X: columns {expected} expected, found {found}")
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise InputError(f"X: as many rows of each teacher expected, found {rows}")
    return np.concatenate(list(arrays.values()), axis=1), found


def _require_columns(teachers: Mapping[str, int], width: int) -> None:
    if sum(teachers.values()) != width:
        raise InputError(
            f"X: {counted(sum(teachers.values()), 'column')} expected for teacher_dims {dict(teachers)}, found {width}"
        )


def _group_codes(groups: ArrayLike, codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Codes of the groups [n], -1 where missing."""
    check_consistent_length(codes, groups)
    column = normalise(groups, "groups")
    unknown = column == ("" if column.dtype.kind not in "iu" else -1)
    _, found = np.unique(column, return_inverse=True)
    return np.where(unknown, -1, found)


def _class_weights(
    given: str | Mapping[Any, float] | None, classes: NDArray[Any], y: NDArray[Any]
) -> NDArray[np.float64] | None:
    """Weight of every class, [C], with mean 1 over the training labels y [n]; None where rows count alike."""
    if given is None:
        return None
    chosen = given if isinstance(given, str) else dict(given)
    weights = np.asarray(compute_class_weight(chosen, classes=classes, y=y), dtype=np.float64)
    mean = weights[np.searchsorted(classes, y)].mean()
    if not np.isfinite(weights).all() or weights.min() < 0 or mean == 0:
        raise InputError(f"class_weight: weights of 0 or more expected, not all 0, found {given!r}")
    return np.asarray(weights / mean)
