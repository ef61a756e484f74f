"""Rows of an archive: which are asked for, and where one of them comes from."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import MismatchError
from ..formats.pieces import Contents


def as_rows(rows: ArrayLike) -> NDArray[np.int64]:
    """Row numbers int64 [n]. Raises MismatchError for a mask, fractions, or anything but a list of numbers.

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
