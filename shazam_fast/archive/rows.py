"""Rows of an archive: check row numbers, read columns, and describe where a row comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..annotation.columns import check_indices
from ..errors import ArchiveError, MismatchError, NonFiniteError
from ..formats.native import StoredColumn
from ..formats.pieces import COLUMNS, SPLITS, UNKNOWN, Contents
from .fingerprint import require_unchanged

RowKey = SupportsIndex | slice | ArrayLike


@dataclass(frozen=True)
class Batch:
    """Some patches of an archive: `rows` int64 [n], `features` [n, sum of dims], `labels` int64 [n].

    Features are float32 unless `stream` was given buffers of the stored dtype.
    """

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


def choose_rows(key: object, n_rows: int) -> NDArray[np.int64]:
    """Row numbers, int64 [n], that stand between the brackets of `archive[...]`.

    Args:
        key: a number (from the end if negative), a slice, row numbers, or a mask of booleans, one per row.
        n_rows: rows of the archive.

    Raises MismatchError for anything else, a number that is out of range, or a mask of another length.

    >>> choose_rows(slice(0, 6, 2), 5).tolist(), choose_rows(-1, 5).tolist()
    ([0, 2, 4], [4])
    """
    if isinstance(key, slice):
        return np.arange(*key.indices(n_rows))
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not -n_rows <= key < n_rows:
            raise MismatchError(f"row {key} of {n_rows} rows; they are numbered from 0")
        return np.array([key % n_rows])
    rows = np.asarray(key)
    if rows.dtype == np.bool_ and rows.ndim == 1:
        if len(rows) != n_rows:
            raise MismatchError(f"a mask of {n_rows} booleans expected, one per row, found {len(rows)}")
        return np.flatnonzero(rows)
    return as_rows(rows)


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


class PatchColumns:
    """Per-patch columns of an archive, read whole on first use, and read-only.

    Args:
        contents: what the archive is made of.
        n_rows: number of patches.
    """

    def __init__(self, contents: Contents, n_rows: int) -> None:
        self._contents, self.n_rows = contents, n_rows

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class index of every patch, int64 [n_rows], -1 unknown. Raises ArchiveError when one is out of range."""
        return self.column("label", 0, self.n_rows)

    @cached_property
    def splits(self) -> NDArray[np.uint8]:
        """Split of every patch, uint8 [n_rows]: 0 train, 1 val, 2 test, 255 none. Raises ArchiveError for others."""
        return self.column("split", 0, self.n_rows)

    @cached_property
    def slide_index(self) -> NDArray[np.int32]:
        """Index into `slides` of every patch, int32 [n_rows], -1 unknown. Raises ArchiveError as `labels`."""
        return self.column("slide", 0, self.n_rows)

    @cached_property
    def group_index(self) -> NDArray[np.int32]:
        """Index into `groups` of every patch, int32 [n_rows], -1 unknown. Raises ArchiveError as `labels`."""
        return self.column("group", 0, self.n_rows)

    @cached_property
    def coords(self) -> NDArray[np.int32] | NDArray[np.float32]:
        """x and y of every patch, int32 or float32 [n_rows, 2], in the unit that `geometry` names, -1 unknown."""
        return self.column("coords", 0, self.n_rows)

    def split(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Row numbers, int64 [n], of one split.

        Args:
            name: "train", "val", "test" or "none".
            start, stop: only rows in [start, stop); all by default.

        Raises MismatchError for another name.
        """
        if name not in SPLITS:
            raise MismatchError(f"no split is called {name!r}; splits are {', '.join(SPLITS)}")
        stop = self.n_rows if stop is None else stop
        codes = self.splits if (start, stop) == (0, self.n_rows) else self.column("split", start, stop)
        return start + np.flatnonzero(codes == SPLITS[name])

    def column(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of "label", "split", "slide", "group" or "coords", see `read_column`."""
        require_unchanged(self._contents)
        return read_column(self._contents, name, range(start, stop), self.n_rows)


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
