"""Rows of an archive: check row numbers, read columns, and describe where a row comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..annotation.columns import check_indices
from ..errors import ArchiveError, MismatchError, NonFiniteError
from ..formats.native import StoredColumn
from ..formats.pieces import COLUMNS, SPLITS, UNKNOWN, Contents


@dataclass(frozen=True)
class Batch:
    """Some patches of an archive: `rows` int64 [n], `features` float32 [n, sum of dims], `labels` int64 [n]."""

    rows: NDArray[np.int64]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def as_rows(rows: ArrayLike) -> NDArray[np.int64]:
    """Row numbers as int64 [n]. Raises MismatchError for a mask, fractions, or anything but a list of numbers.

    >>> as_rows([2, 0]).tolist()
    [2, 0]
    """
    index = np.asarray(rows)
    if index.ndim != 1:
        raise MismatchError(f"rows: a list of row numbers [n] expected, found an array of shape {list(index.shape)}")
    if index.dtype == np.bool_:
        raise MismatchError("rows: row numbers expected, found a mask of booleans; use numpy.flatnonzero(mask)")
    if index.size and index.dtype.kind not in "iu":
        raise MismatchError(f"rows: whole numbers expected, found {index.dtype}; convert them with astype(numpy.int64)")
    return np.ascontiguousarray(index, dtype=np.int64)


def read_column(contents: Contents, name: str, rows: range, n_rows: int) -> NDArray[Any]:
    """Some rows of a per-patch column, as stored and checked; read-only, as archives keep what they give out.

    Args:
        contents: what the archive is made of.
        name: "label", "split", "slide", "group" or "coords".
        rows: the rows to read. Of native archives no others are read.
        n_rows: rows of the archive.

    Returns:
        [rows], of coords [rows, 2], in the types that `FeatureArchive` states; "unknown" where the archive has none.

    Raises MismatchError for rows that do not exist; ArchiveError when a value is out of range or a file unreadable.
    """
    start, stop = rows.start, rows.stop
    if not 0 <= start <= stop <= n_rows:
        raise MismatchError(f"{contents.path}: rows {start} to {stop} of {n_rows} rows")
    stored = contents.columns.get(name)
    column: NDArray[Any]
    try:
        if stored is None:
            column = np.full((stop - start, *COLUMNS[name][1]), UNKNOWN[name], dtype=COLUMNS[name][0])
        else:
            column = stored.read(start, stop) if isinstance(stored, StoredColumn) else stored()[start:stop]
    except OSError as error:
        raise ArchiveError(f"{contents.path}: column {name!r} cannot be read: {error}") from error
    names = {"label": contents.classes, "slide": contents.slides, "group": contents.groups}
    if name in names:
        check_indices(contents.path, name, column, len(names[name]), start)
    elif name == "split" and not (known := np.isin(column, list(SPLITS.values()))).all():
        row = int(np.argmin(known))
        raise ArchiveError(f"{contents.path}: split {column[row]} in row {start + row} is none of {SPLITS}")
    column.flags.writeable = False
    return column


def require_finite(contents: Contents, rows: Sequence[int] | NDArray[np.int64], features: NDArray[np.float32]) -> None:
    """Raise NonFiniteError, naming teacher, slide, file and row, for the first NaN or infinity in features.

    Args:
        contents: what the archive is made of.
        rows: [n] row numbers.
        features: float32 [n, width] of these rows.
    """
    finite = np.isfinite(features)
    if finite.all():
        return
    position, column = np.argwhere(~finite)[0]
    ends = np.cumsum(list(contents.teachers.values()))
    teacher = list(contents.teachers)[int(np.searchsorted(ends, column, side="right"))]
    row = int(rows[position])
    raise NonFiniteError(
        f"{contents.path}: teacher {teacher!r}, row {row} ({describe_row(contents, teacher, row)}): "
        f"the feature is {features[position, column]}; extract this patch again or leave it out"
    )


def describe_row(contents: Contents, teacher: str, row: int) -> str:
    """Words for where a teacher's feature of a row comes from: slide, file, row in the file, position."""
    names = list(contents.teachers)
    first = sum(contents.teachers[name] for name in names[: names.index(teacher)])
    start = 0
    for block in contents.blocks:
        if first < start + block.columns:
            break
        start += block.columns
    extent = int(np.searchsorted(np.cumsum(block.table[:, 2]), row, side="right"))
    file, offset, _, stride = block.table[extent].tolist()
    place = offset + (row - int(block.table[:extent, 2].sum())) * stride
    words = [f"file {block.files[file]}, row {_rank(block.table[block.table[:, 0] == file], place)} of its rows"]
    if "slide" in contents.columns and (slide := int(contents.columns["slide"]()[row])) >= 0:
        words.insert(0, f"slide {contents.slides[slide]!r}")
    if "coords" in contents.columns and (contents.columns["coords"]()[row] != -1).any():
        x, y = contents.columns["coords"]()[row].tolist()
        words.append(f"position ({x}, {y})")
    return ", ".join(words)


def _rank(table: NDArray[np.int64], place: int) -> int:
    """How many rows of a file lie before a byte of it; rows of several extents may interleave."""
    _, offset, count, stride = table.T
    before = np.where(place > offset, -(-(place - offset) // stride), 0)
    return int(np.minimum(before, count).sum())
