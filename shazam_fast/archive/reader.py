"""Features and columns to be converted, whether or not their files can be memory-mapped."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..annotation.annotations import Given, annotate
from ..annotation.splits import GroupedSplit
from ..errors import ArchiveError, MismatchError
from ..formats.pieces import ITEM_BYTES, UNKNOWN, Contents, Extents
from ..layouts.unmapped import Matrix, reading
from .archive import FeatureArchive
from .matrices import Loads
from .opening import OnError, read_features
from .rows import describe_row

FLOAT_STEPS = 4  # steps between neighbouring float32 numbers that a position may be away from a whole one


class Readable:
    """Patches in order, from any source; arguments and errors are those of `shazam_fast.convert`.

    `archive` holds the columns. Its own `gather` fails where a file cannot be memory-mapped; `features` does not.
    """

    def __init__(
        self,
        source: str | Path | Mapping[str, str | Path],
        labels: Given,
        splits: Given | GroupedSplit,
        groups: Given,
        classes: Sequence[str] | None,
        teachers: Sequence[str] | None,
        slides: Sequence[str] | None = None,
        on_error: OnError = "raise",
        label_column: str | None = None,
    ) -> None:
        loads: Loads = {}
        contents = read_features(source, teachers, slides, on_error, loads)
        self._contents = contents = annotate(contents, labels, splits, groups, classes, label_column)
        self.archive = FeatureArchive(contents)
        _require_whole_positions(contents, self.archive.coords)
        names = list(contents.teachers) if loads else [""] * len(contents.blocks)
        self._readers = [
            BlockReader(block, {file: load for (teacher, file), load in loads.items() if teacher == name})
            for name, block in zip(names, contents.blocks, strict=True)
        ]

    def features(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Features [n, dim] of every teacher for the patches [start, stop), float16 where stored so, else float32."""
        blocks = [reader.read(start, stop) for reader in self._readers]
        features, block, column = {}, 0, 0
        for teacher, dim in self.archive.teachers.items():
            features[teacher] = blocks[block][:, column : column + dim]
            column += dim
            if column == blocks[block].shape[1]:
                block, column = block + 1, 0
        return features

    def columns(self, start: int, stop: int) -> dict[str, NDArray[Any] | None]:
        """Labels, splits and positions of the patches [start, stop), as archives store them.

        Positions are whole numbers; one that is no number is unknown (-1, -1).
        """
        archive = self.archive
        return {
            "label": archive.labels[start:stop],
            "split": archive.splits[start:stop],
            "coords": _whole_positions(archive.coords[start:stop]),
        }


def _require_whole_positions(contents: Contents, coords: NDArray[Any]) -> None:
    """Raise MismatchError unless all positions are whole numbers, but for the rounding of float32."""
    if coords.dtype.kind != "f":
        return
    known = np.where(np.isfinite(coords), coords, 0)
    away = np.abs(known - np.rint(known)) > FLOAT_STEPS * np.spacing(np.maximum(np.abs(known), 1))
    if len(rows := np.flatnonzero(away.any(axis=1))):
        row, first = int(rows[0]), next(iter(contents.teachers))
        raise MismatchError(
            f"{contents.path}: row {row} ({describe_row(contents, first, row)}): its position is not whole, as that of "
            f"{len(rows)} of {len(coords)} patches, and archives hold whole numbers; open these features in place with "
            "shazam_fast.open, or round the positions in their files if that is what you want"
        )


def _whole_positions(coords: NDArray[Any]) -> NDArray[np.int64]:
    """Positions [n, 2] as whole numbers, both -1 where one of them is NaN or infinite."""
    known = np.isfinite(coords).all(axis=1, keepdims=True)
    return np.where(known, np.rint(np.where(known, coords, 0)), UNKNOWN["coords"]).astype(np.int64)


class BlockReader:
    """Reads ranges of rows of one matrix [rows, columns].

    Args:
        block: where the rows lie, with virtual offsets in files that cannot be memory-mapped.
        loads: name -> opener of each file that cannot be memory-mapped. The file read last stays open.
    """

    def __init__(self, block: Extents, loads: Mapping[str, Callable[[], Matrix]]) -> None:
        self._block, self._loads = block, loads
        self._store = _core.FeatureStore(block.columns, block.dtype, block.files, block.table)
        self._first_row = np.cumsum(block.table[:, 2]) - block.table[:, 2]  # [extents]
        unmapped = np.array([file in loads for file in block.files], dtype=bool)
        self._file = np.where(unmapped[block.table[:, 0]], block.table[:, 0], -1)  # [extents], -1 where mapped
        self._threads = len(os.sched_getaffinity(0))
        self._opened: tuple[int, Matrix] | None = None

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop): float16 where they are stored so, else float32. Raises ArchiveError naming the file."""
        half = self._block.dtype == "float16"
        out = np.empty((stop - start, self._block.columns), dtype=np.float16 if half else np.float32)
        for file, first, last in self._spans(start, stop):
            target = out[first - start : last - start]
            if file >= 0:
                self._read_unmapped(file, first, last, target)
                continue
            try:
                self._store.read(first, last, target, self._threads)
            except _core.StoreError as error:
                raise ArchiveError(str(error), error.kind) from None
        return out

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(file or -1, first, last): rows [start, stop), cut where a file that must be opened begins or ends."""
        low = int(np.searchsorted(self._first_row, start, side="right")) - 1
        high = int(np.searchsorted(self._first_row, stop - 1, side="right"))
        cuts = low + 1 + np.flatnonzero(np.diff(self._file[low:high]))
        bounds = [start, *self._first_row[cuts].tolist(), stop]
        for index, extent in enumerate([low, *cuts.tolist()]):
            yield int(self._file[extent]), bounds[index], bounds[index + 1]

    def _read_unmapped(self, file: int, start: int, stop: int, out: NDArray[Any]) -> None:
        """Fill `out` with rows [start, stop), all of one file, from the range of its rows that spans them."""
        wanted = np.arange(start, stop)
        extents = np.searchsorted(self._first_row, wanted, side="right") - 1
        _, offset, _, stride = self._block.table[extents].T
        row_bytes = self._block.columns * ITEM_BYTES[self._block.dtype]
        rows = (offset + (wanted - self._first_row[extents]) * stride) // row_bytes
        first, last = int(rows.min()), int(rows.max()) + 1
        name = self._block.files[file]
        with reading(Path(name)):
            if self._opened is None or self._opened[0] != file:
                self._opened = (file, self._loads[name]())
            values = self._opened[1][first:last]
        if values.shape != (last - first, self._block.columns):
            raise ArchiveError(f"{name}: rows {first} to {last} are no longer there: it changed after it was opened")
        out[:] = values[rows - first]
