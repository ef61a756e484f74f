"""Rows of one matrix of an archive in order, whether its files can be mapped or have to be read."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import ArchiveError
from .foreign_files import Matrix, reading
from .layouts import ITEM_BYTES, Extents


class BlockReader:
    """Reads ranges of rows of one matrix [rows, columns].

    Args:
        block: where the rows lie; in an imaginary file where one cannot be mapped.
        loads: how to open the files that cannot be mapped, by name. The last one stays open.
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
                raise ArchiveError(str(error)) from None
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
            raise ArchiveError(f"{name}: rows {first} to {last} are not there any more: it changed after it was opened")
        out[:] = values[rows - first]
