"""An index in memory: columns unpacked with every number checked, and back to pieces."""

import sys
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..geometry import Geometry
from ..pieces import ITEM_BYTES, FileState, Piece, Place, StoredCoords
from .entries import (
    DIGEST_BYTES,
    DTYPES,
    EMPTY,
    IN_PLACE,
    LARGEST,
    MOST_COLUMNS,
    NO_COORDS,
    NUMBERS,
    RUN_COLUMNS,
    SEPARATOR,
    Column,
    Document,
    Ints,
    starts_of,
)  # fmt: skip


class DamagedError(Exception):
    """An index that cannot be used: damaged, of another version, machine or directory."""


class Table:
    """The entries of an index that was unpacked. Raises DamagedError for anything that `pack` does not write.

    Args:
        body: what `pack` gave.
        writer, root: what they must be.
    """

    def __init__(self, body: bytes, writer: str, root: bytes) -> None:
        try:
            document = msgspec.msgpack.decode(body, type=Document)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DamagedError(str(error)) from None
        if (document.writer, document.byte_order, document.root) != (writer, sys.byteorder, root):
            raise DamagedError("of another version, machine or directory")
        self.written = document.written
        keys = document.keys.decode("utf-8", "surrogateescape").split(SEPARATOR) if document.keys else []
        self.numbers = {key: number for number, key in enumerate(keys)}
        _require(len(self.numbers) == len(keys))
        try:
            self._unpack(document, len(keys))
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedError(str(error)) from None

    def _unpack(self, document: Document, n: int) -> None:
        columns = {name: _unpack_column(column) for name, column in document.columns.items()}

        def column(name: str, stop: int, length: int = n) -> Ints:
            values = columns[name]
            _require(len(values) == length and bool((values >= 0).all()) and bool((values < stop).all()))
            return values

        counts = column("n_states", 1 << 8)
        _require(bool((counts > 0).all()))
        total = int(counts.sum())
        self._state_bounds = _bounds(counts)
        states = np.stack([column(field, LARGEST, total) for field in FileState._fields])
        self._states = list(zip(*states.tolist(), strict=True))
        size = states[0][starts_of(counts)]  # of the file itself
        dim, dtype = column("columns", MOST_COLUMNS), column("dtype", len(DTYPES))
        row_bytes = dim * np.array([ITEM_BYTES[name] for name in DTYPES])[dtype]
        self._runs, self._run_bounds = _unpack_runs("runs", columns, n, row_bytes, size)
        self._n_rows = _rows_of(self._runs, self._run_bounds).tolist()
        self._columns, self._dtype = dim.tolist(), dtype.tolist()
        self._encoders, self._encoder = document.encoders, column("encoder", len(document.encoders)).tolist()
        self._geometries = [Geometry(*msgspec.structs.astuple(one)) for one in document.geometries]
        self._geometry = column("geometry", len(self._geometries)).tolist()
        self._unpack_coords(document, columns, column, size)

    def _unpack_coords(
        self, document: Document, columns: Mapping[str, Ints], column: Callable[[str, int], Ints], size: Ints
    ) -> None:
        _require(all(not text or NUMBERS.fullmatch(text) for text in document.dtypes))
        dtypes = [np.dtype(text or "i1") for text in document.dtypes]
        native = [dtype.newbyteorder("=").str for dtype in dtypes]
        self._dtypes = list(zip(document.dtypes, native, strict=True))
        width, kind = column("coords_width", MOST_COLUMNS), column("coords_kind", IN_PLACE + 1)
        stored = column("coords_dtype", len(dtypes))
        row_bytes = width * np.array([dtype.itemsize for dtype in dtypes])[stored]
        self._places, self._place_bounds = _unpack_runs("places", columns, len(size), row_bytes, size)
        _require(bool((width[kind == IN_PLACE] >= 2).all()))
        _require(all(document.dtypes[number] for number in set(stored[kind != NO_COORDS].tolist())))
        n_placed = _rows_of(self._places, self._place_bounds)
        _require(np.array_equal(np.where(kind == IN_PLACE, self._n_rows, 0), n_placed))
        _require(len(document.digests) == DIGEST_BYTES * len(size))
        self._digests = document.digests
        self._coords = list(zip(kind.tolist(), width.tolist(), stored.tolist(), strict=True))

    def states(self, number: int) -> list[tuple[int, ...]]:
        """The states that the files of an entry must have."""
        return self._states[self._state_bounds[number] : self._state_bounds[number + 1]]

    def piece(self, number: int, file: str, state: tuple[int, ...], reread: Callable[[], Piece]) -> Piece:
        """The piece of an entry.

        Args:
            number: of the entry.
            file, state: the file and its state now, which is that of the entry.
            reread: reads the piece from the file.
        """
        kind, width, stored = self._coords[number]
        in_file, native = self._dtypes[stored]
        coords: NDArray[np.generic] | StoredCoords | None = None
        place = None
        if kind == IN_PLACE:
            place = Place(self._places[self._place_bounds[number] : self._place_bounds[number + 1]], width, in_file)
        if kind == EMPTY:
            coords = np.empty((0, 2), native)
        elif kind != NO_COORDS:
            digest = self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
            coords = StoredCoords(file, state, place, native, digest if digest.strip(b"\0") else b"", reread)
        piece = Piece(
            self._columns[number],
            DTYPES[self._dtype[number]],
            self._runs[self._run_bounds[number] : self._run_bounds[number + 1]],
            coords,
            geometry=self._geometries[self._geometry[number]],
            encoder=self._encoders[self._encoder[number]],
            coords_place=place,
            modified=state[1],
        )
        vars(piece)["n_rows"] = self._n_rows[number]  # which it would count
        return piece


def _require(holds: bool) -> None:
    if not holds:
        raise DamagedError("its numbers contradict each other")


def _bounds(counts: Ints) -> list[int]:
    return [0, *np.cumsum(counts).tolist()]


def _unpack_column(column: Column) -> Ints:
    return np.frombuffer(column.content, f"<{column.kind}").astype(np.int64)


def _unpack_runs(name: str, columns: Mapping[str, Ints], n: int, row_bytes: Ints, size: Ints) -> tuple[Ints, list[int]]:
    """Runs [m, 3] of all entries, all within their files, and where each entry's begin [n + 1].

    row_bytes, size: [n] bytes of a row and of the file of every entry.
    """
    counts, starts, gaps, rows, turns = (columns[f"{name}_{part}"] for part in RUN_COLUMNS)
    total = len(rows)
    _require(len(counts) == n and bool((counts >= 0).all()) and bool((counts <= total).all()))
    _require(int(counts.sum()) == total == len(gaps) == len(turns) and len(starts) == np.count_nonzero(counts))
    stride = np.cumsum(turns)
    steps = gaps.copy()
    steps[1:] += (rows * stride)[:-1]
    filled = counts > 0
    first = starts_of(counts)[filled]
    steps[first] = 0
    offset = np.cumsum(steps)
    offset += np.repeat(starts - offset[first], counts[filled])
    item, end = np.repeat(row_bytes, counts), np.repeat(size, counts)
    room = end - offset - item
    _require(bool(((offset >= 0) & (offset <= end) & (item > 0) & (stride >= item) & (rows > 0) & (room >= 0)).all()))
    _require(bool((rows - 1 <= room // np.maximum(stride, 1)).all()))
    return np.stack([offset, rows, stride], axis=1), _bounds(counts)


def _rows_of(runs: Ints, bounds: Sequence[int]) -> Ints:
    ends = np.concatenate([[0], np.cumsum(runs[:, 1])])
    return np.diff(ends[bounds])
