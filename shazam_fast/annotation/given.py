"""Columns and teachers that are given for an archive, checked before anything is written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import MismatchError, ShazamError
from ..runtime.checks import require_count, require_name
from ..tables.reader import is_frame
from .columns import check_classes, encode_labels, encode_splits, names_of


def encode_columns(
    labels: ArrayLike | None,
    splits: ArrayLike | None,
    groups: ArrayLike | None,
    slides: ArrayLike | None,
    coords: ArrayLike | None,
    classes: Sequence[str] | None,
) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """Classes and columns of all rows, checked before anything is written."""
    columns: dict[str, NDArray[Any]] = {}
    classes = () if classes is None and labels is None else classes
    if labels is not None:
        classes, columns["labels"] = encode_labels(labels, classes)
    if splits is not None:
        columns["splits"] = encode_splits(splits)
    for name, given in (("groups", groups), ("slides", slides)):
        if given is not None:
            columns[name] = names_of(given, name)
    if coords is not None:
        columns["coords"] = as_coords(coords)
    assert classes is not None
    return check_classes(classes), columns


def as_coords(coords: Any) -> NDArray[Any]:
    """Positions [n, 2] as given: an array of x and y, or a DataFrame with the columns x and y in any order.

    Raises MismatchError for a DataFrame with other columns, and for masked entries.
    """
    if is_frame(coords):
        names = [str(name) for name in coords.columns]
        if sorted(names) != ["x", "y"]:
            raise MismatchError(
                f"coords: the DataFrame's columns are {', '.join(names)}; the columns x and y expected, and no other; "
                "give frame[['x', 'y']], after renaming them where they are called something else"
            )
        coords = np.stack([np.asarray(coords[name]) for name in ("x", "y")], axis=1)
    if np.ma.isMaskedArray(coords) and np.ma.getmaskarray(coords).any():
        row = int(np.argwhere(np.ma.getmaskarray(coords))[0][0])
        raise MismatchError(f"coords: row {row} is masked; give -1, -1 where the position is unknown")
    return np.asarray(coords)


def check_teachers(teachers: Mapping[str, int]) -> dict[str, int]:
    """Name -> dim, checked. Raises ShazamError unless every teacher has a name and a positive dim."""
    if not teachers:
        raise ShazamError("at least one teacher, with a name and a positive dim, expected, found none")
    return {
        require_name("teachers", name): require_count(f"dim of teacher {name!r}", dim) for name, dim in teachers.items()
    }
