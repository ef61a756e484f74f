"""What users hand in for an archive's columns, checked and encoded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import MismatchError, NonFiniteError
from ..formats.pieces import COLUMNS, SPLITS


def width_of(name: str, array: NDArray[Any]) -> int:
    """Columns of a teacher's features [rows, dim]."""
    if array.ndim != 2 or array.shape[1] < 1:
        raise MismatchError(f"teacher {name!r}: features of shape [rows, dim] expected, found {array.shape}")
    return int(array.shape[1])


def check_features(features: Mapping[str, NDArray[Any]], teachers: Mapping[str, int]) -> int:
    """Number of rows that all teachers agree on."""
    if set(features) != set(teachers):
        raise MismatchError(
            f"features of teachers {sorted(teachers)} expected; "
            f"missing {sorted(set(teachers) - set(features))}, unexpected {sorted(set(features) - set(teachers))}"
        )
    first = next(iter(teachers))
    for name, dim in teachers.items():
        if (width := width_of(name, features[name])) != dim:
            raise MismatchError(f"teacher {name!r}: {dim} columns expected, found {width}")
        if len(features[name]) != len(features[first]):
            raise MismatchError(
                f"rows of two teachers do not match: {first!r} has {len(features[first])}, "
                f"{name!r} has {len(features[name])}"
            )
    return len(features[first])


def check_column(name: str, column: NDArray[Any] | None, rows: int) -> None:
    """Raise MismatchError unless an encoded column fits its place in the archive, `rows` entries long."""
    if column is None:
        return
    shape = (rows, *COLUMNS[name][1])
    if column.shape != shape:
        raise MismatchError(f"{name}: shape {shape} expected for {rows} rows, found {column.shape}")
    limits = np.iinfo(str(COLUMNS[name][0]))
    if column.dtype.kind not in "iu":
        raise MismatchError(f"{name}: integers expected, found {column.dtype}")
    if rows and (column.min() < limits.min or column.max() > limits.max):
        raise MismatchError(f"{name}: values {column.min()}..{column.max()} do not fit {COLUMNS[name][0]}")


def check_lengths(path: str | Path, columns: Mapping[str, NDArray[Any]], rows: int, at_least: bool) -> None:
    """Raise MismatchError unless every column has `rows` entries (or more, while rows are still coming)."""
    for name, column in columns.items():
        if len(column) < rows or (len(column) > rows and not at_least):
            raise MismatchError(f"{path}: {name} has {len(column)} entries for {rows} rows of features")


def check_finite(teacher: str, given: NDArray[Any], stored: NDArray[Any], first_row: int) -> None:
    """Raise NonFiniteError if what was stored of a teacher's features is NaN or infinite, or became so."""
    finite = np.isfinite(stored)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0]
    value = given[row, column]
    where = f"teacher {teacher!r}, row {first_row + row}, column {column}"
    if np.isfinite(value):
        raise NonFiniteError(f"{where}: {value} overflows {stored.dtype}; write the archive with dtype='float32'")
    raise NonFiniteError(f"{where}: the feature is {value}; extract this patch again or leave it out")


def interleave(
    features: Mapping[str, NDArray[Any]], teachers: Mapping[str, int], dtype: np.dtype[Any], first_row: int
) -> NDArray[Any]:
    """All teachers' features of n patches side by side, as stored: {teacher: [n, dim]} -> [n, sum of dims].

    Raises NonFiniteError, with the row counted from `first_row`, for NaN, infinity or what overflows `dtype`.
    """
    out = np.empty((len(next(iter(features.values()))), sum(teachers.values())), dtype=dtype)
    column = 0
    for name, dim in teachers.items():
        block = np.asarray(features[name])
        with np.errstate(over="ignore", invalid="ignore"):
            out[:, column : column + dim] = block
        check_finite(name, block, out[:, column : column + dim], first_row)
        column += dim
    return out


def first_refused(features: Mapping[str, NDArray[Any]], dtype: str | np.dtype[Any]) -> int:
    """The first row that holds, of the first teacher that has one, what is not finite as `dtype`."""
    with np.errstate(over="ignore", invalid="ignore"):
        refused = [~np.isfinite(block.astype(dtype)).all(axis=1) for block in features.values()]
    return next(int(bad.argmax()) for bad in refused if bad.any())


def encode_labels(labels: ArrayLike | None, classes: tuple[str, ...]) -> NDArray[Any] | None:
    """Class indices of labels given as indices (-1 unknown) or as class names."""
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.dtype.kind in "US":
        codes = {name: code for code, name in enumerate(classes)}
        unknown = sorted(set(array.tolist()) - set(codes))
        if unknown:
            raise MismatchError(f"labels {unknown[:5]} are not among the classes {list(classes)}")
        return np.array([codes[name] for name in array.tolist()], dtype=np.int64)
    if array.dtype.kind in "iu" and array.size and (array.min() < -1 or array.max() >= len(classes)):
        raise MismatchError(
            f"labels {array.min()}..{array.max()} found, -1 (unknown) to {len(classes) - 1} allowed: "
            f"the archive has {len(classes)} classes {list(classes)[:8]}"
        )
    return array


def encode_splits(splits: ArrayLike | None) -> NDArray[Any] | None:
    """Codes of splits given as codes or as names."""
    if splits is None:
        return None
    array = np.asarray(splits)
    if array.dtype.kind in "US":
        codes = [SPLITS.get(name, -1) for name in array.tolist()]
        array = np.array(codes, dtype=np.int64)
    if not np.isin(array, list(SPLITS.values())).all():
        raise MismatchError(f"splits are {list(SPLITS)} or their codes {list(SPLITS.values())}; found others")
    return array


def infer_classes(labels: NDArray[Any] | None) -> tuple[str, ...]:
    """Class names of labels: the sorted names, or "0", "1", ... up to the largest index."""
    if labels is None:
        return ()
    if labels.dtype.kind in "US":
        return tuple(np.unique(labels).tolist())
    return tuple(str(code) for code in range(int(labels.max(initial=-1)) + 1))


def encode_names(names: NDArray[np.str_], classes: Sequence[str] | None) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Classes (the sorted names, numbers by value, unless given) and the class index of every name, -1 for "".

    Raises MismatchError for a name that is not among the given classes.
    """
    known = names != ""
    if classes is None:
        unique = np.unique(names[known]).tolist()
        classes = sorted(unique, key=lambda n: (0, int(n), n) if n.isdigit() else (1, 0, n))
    labels = np.full(len(names), -1, dtype=np.int64)
    codes = encode_labels(names[known], tuple(classes))
    assert codes is not None
    labels[known] = codes
    return tuple(classes), labels
