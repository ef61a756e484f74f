"""Features as users give them: checked, and brought side by side as archives store them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError, NonFiniteError


def as_features(teacher: str, block: Any) -> NDArray[Any]:
    """A teacher's features as an array.

    Args:
        teacher: its name, for messages.
        block: [rows, dim] as an array, a list, or a torch tensor of any type and device.

    Raises MismatchError when they are not numbers, or rows differ in length.

    >>> as_features("uni", [[1.0, 2.0]]).shape
    (1, 2)
    """
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
            raise MismatchError(f"teacher {name!r}: {dim} columns expected, found {width}")
        if len(features[name]) != len(features[first]):
            raise MismatchError(
                f"rows of two teachers do not match: {first!r} has {len(features[first])}, "
                f"{name!r} has {len(features[name])}"
            )
    return len(features[first])


def check_finite(teacher: str, given: NDArray[Any], stored: NDArray[Any], first_row: int) -> None:
    """Raise NonFiniteError if a stored feature is NaN or infinite, or became infinite in the type of the archive.

    Args:
        teacher: its name, for messages.
        given: [rows, dim] features as they were given.
        stored: [rows, dim] the same in the type of the archive.
        first_row: the first patch's row in the archive, for messages.
    """
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
    """The row that `interleave` refuses: the first teacher's first one with a value that is not finite as `dtype`.

    Args:
        features: {teacher: [n, dim]}, of which one teacher has such a value.
        dtype: type of the archive.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        refused = [~np.isfinite(block.astype(dtype)).all(axis=1) for block in features.values()]
    return next(int(bad.argmax()) for bad in refused if bad.any())
