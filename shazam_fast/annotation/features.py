"""Features as users give them: checked, and brought side by side as archives store them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError, NonFiniteError
from ..runtime.summaries import counted


def as_features(teacher: str, block: Any) -> NDArray[Any]:
    """A teacher's features as an array.

    Args:
        teacher: its name, for messages.
        block: [rows, dim] as an array, a list, or a torch tensor of any type and device.

    A masked array stays one; `interleave` refuses its masked entries. Raises MismatchError when they are not numbers,
    or rows differ in length.

    >>> as_features("uni", [[1.0, 2.0]]).shape
    (1, 2)
    """
    if isinstance(block, list | tuple) and any(np.ma.isMaskedArray(row) for row in block):
        block = np.ma.array(block)
    if isinstance(block, np.ndarray):
        array = block
    elif hasattr(block, "detach"):  # a torch tensor; NumPy has no bfloat16
        tensor = block.detach().cpu()
        array = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    else:
        try:
            array = np.asarray(block)
        except ValueError as error:  # rows of different lengths
            raise MismatchError(f"teacher {teacher!r}: features [rows, dim] expected: {error}") from None
    if array.dtype.kind not in "fiu":
        raise MismatchError(f"teacher {teacher!r}: numbers expected, found {array.dtype}")
    return array


def width_of(name: str, array: NDArray[Any]) -> int:
    """Columns of a teacher's features [rows, dim]. Raises MismatchError for another shape."""
    if array.ndim != 2 or array.shape[1] < 1:
        raise MismatchError(f"teacher {name!r}: features of shape [rows, dim] expected, found {array.shape}")
    return int(array.shape[1])


def check_features(features: Mapping[str, NDArray[Any]], teachers: Mapping[str, int]) -> int:
    """The number of rows, which all teachers must have in common.

    Args:
        features: {teacher: [rows, dim]}.
        teachers: {teacher: dim} as it must be.

    Raises MismatchError when a teacher is missing or unexpected, or has other columns or rows.
    """
    if set(features) != set(teachers):
        raise MismatchError(
            f"features of teachers {sorted(teachers)} expected; "
            f"missing {sorted(set(teachers) - set(features))}, unexpected {sorted(set(features) - set(teachers))}"
        )
    first = next(iter(teachers))
    for name, dim in teachers.items():
        if (width := width_of(name, features[name])) != dim:
            raise MismatchError(f"teacher {name!r}: {counted(dim, 'column')} expected, found {width}")
        if len(features[name]) != len(features[first]):
            raise MismatchError(
                f"rows of two teachers do not match: {first!r} has {len(features[first])}, "
                f"{name!r} has {len(features[name])}"
            )
    return len(features[first])


def check_stored(teacher: str, given: NDArray[Any], stored: NDArray[Any], first_row: int) -> None:
    """Raise NonFiniteError if features are masked, NaN or infinite, became so as stored, or a row became all zero.

    Args:
        teacher: its name, for messages.
        given: [rows, dim] features as they were given, masked or not.
        stored: [rows, dim] the same in the type of the archive.
        first_row: the first patch's row in the archive, for messages.
    """
    where = f"teacher {teacher!r}, row"
    mask = np.ma.getmaskarray(given) if np.ma.isMaskedArray(given) else None
    if mask is not None and mask.any():
        row, column = np.argwhere(mask)[0]
        raise NonFiniteError(
            f"{where} {first_row + row}, column {column}: the feature is masked; extract this patch again or leave it "
            "out"
        )
    remedy = "write the archive with dtype='float32'" if stored.dtype == np.float16 else "scale this teacher's features"
    finite = np.isfinite(stored)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        where, value = f"{where} {first_row + row}, column {column}", given[row, column]
        if np.isfinite(value):
            raise NonFiniteError(f"{where}: {value} overflows {stored.dtype}; {remedy}")
        raise NonFiniteError(f"{where}: the feature is {value}; extract this patch again or leave it out")
    if (vanished := _vanished(given, stored)).size:
        largest = np.abs(given[vanished[0]]).max()
        raise NonFiniteError(
            f"{where} {first_row + vanished[0]}: all features become 0 in {stored.dtype}, the largest is {largest}; "
            f"{remedy}"
        )


def interleave(
    features: Mapping[str, NDArray[Any]], teachers: Mapping[str, int], dtype: np.dtype[Any], first_row: int
) -> NDArray[Any]:
    """All teachers' features of n patches side by side, as stored: {teacher: [n, dim]} -> [n, sum of dims].

    Raises NonFiniteError, with the row counted from `first_row`, for NaN, infinity, masked entries, what overflows
    `dtype`, and rows that it turns into zeros.
    """
    out = np.empty((len(next(iter(features.values()))), sum(teachers.values())), dtype=dtype)
    column = 0
    for name, dim in teachers.items():
        block = np.asanyarray(features[name])
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            out[:, column : column + dim] = np.asarray(block)
        check_stored(name, block, out[:, column : column + dim], first_row)
        column += dim
    return out


def first_refused(features: Mapping[str, NDArray[Any]], dtype: str | np.dtype[Any]) -> int:
    """The first row that holds, of the first teacher that has one, what cannot be stored as `dtype`.

    Args:
        features: {teacher: [n, dim]}, not masked, of which one teacher has such a row.
        dtype: type of the archive.
    """
    for block in features.values():
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            stored = block.astype(dtype)
        infinite = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        refused = infinite if infinite.size else _vanished(block, stored)
        if refused.size:
            return int(refused[0])
    raise AssertionError("no row is refused")


def _vanished(given: NDArray[Any], stored: NDArray[Any]) -> NDArray[np.int64]:
    """Rows that were not all zero and are stored as zeros."""
    zero = np.flatnonzero(stored[:, 0] == 0)  # few rows: the whole is not looked at twice
    return zero[~stored[zero].any(axis=1) & given[zero].any(axis=1)]
