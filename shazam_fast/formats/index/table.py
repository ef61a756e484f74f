"""An index in memory: columns unpacked with every number checked, and back to pieces."""

import sys
from collections.abc import Callable, Mapping

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

NO_ENTRY = -1  # the number of an entry that there is not


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
        self._first_state = self._state_bounds.tolist()
        states = np.stack([column(field, LARGEST, total) for field in FileState._fields])
        self._state_table = np.ascontiguousarray(states.T)
        self._states = list(zip(*states.tolist(), strict=True))
        size = states[0][starts_of(counts)]  # of the file itself
        dim, dtype = column("columns", MOST_COLUMNS), column("dtype", len(DTYPES))
        row_bytes = dim * np.array([ITEM_BYTES[name] for name in DTYPES])[dtype]
        self._runs, bounds = _unpack_runs("runs", columns, n, row_bytes, size)
        n_rows = _rows_of(self._runs, bounds)
        self._encoders = document.encoders
        self._geometries = [Geometry(*msgspec.structs.astuple(one)) for one in document.geometries]
        encoder, geometry = column("encoder", len(self._encoders)), column("geometry", len(self._geometries))
        coords = self._unpack_coords(document, columns, column, size, n_rows)
        numbers = (dim, dtype, encoder, geometry, bounds[:-1], bounds[1:], n_rows, *coords)
        self._entries = list(zip(*(values.tolist() for values in numbers), strict=True))

    def _unpack_coords(
        self,
        document: Document,
        columns: Mapping[str, Ints],
        column: Callable[[str, int], Ints],
        size: Ints,
        n_rows: Ints,
    ) -> tuple[Ints, ...]:
        """Kind, width and dtype of the positions of every entry, and where its places begin and end."""
        _require(all(not text or NUMBERS.fullmatch(text) for text in document.dtypes))
        dtypes = [np.dtype(text or "i1") for text in document.dtypes]
        native = [dtype.newbyteorder("=").str for dtype in dtypes]
        self._dtypes = list(zip(document.dtypes, native, strict=True))
        width, kind = column("coords_width", MOST_COLUMNS), column("coords_kind", IN_PLACE + 1)
        stored = column("coords_dtype", len(dtypes))
        row_bytes = width * np.array([dtype.itemsize for dtype in dtypes])[stored]
        self._places, bounds = _unpack_runs("places", columns, len(size), row_bytes, size)
        _require(bool((width[kind == IN_PLACE] >= 2).all()))
        _require(all(document.dtypes[number] for number in set(stored[kind != NO_COORDS].tolist())))
        _require(np.array_equal(np.where(kind == IN_PLACE, n_rows, 0), _rows_of(self._places, bounds)))
        _require(len(document.digests) == DIGEST_BYTES * len(size))
        self._digests = document.digests
        return kind, width, stored, bounds[:-1], bounds[1:]

    def states(self, number: int) -> list[tuple[int, ...]]:
        """The states that the files of an entry must have."""
        return self._states[self._first_state[number] : self._first_state[number + 1]]

    def are_in(self, numbers: Ints, states: Ints, counts: Ints) -> NDArray[np.bool_]:
        """Whether all files of each of n entries are in these states, bool [n].

        Args:
            numbers: of the entries [n], NO_ENTRY for none, which is in no state.
            states: of all their files now [sum of counts, 4], as of FileState; -1 for what cannot be looked at.
            counts: files of each entry [n], at least 1.
        """
        if not len(numbers) or not len(self._state_table):
            return np.zeros(len(numbers), np.bool_)
        bounds = self._state_bounds
        first = starts_of(counts)
        mine = np.repeat(bounds[numbers] - first, counts) + np.arange(len(states))
        same = (self._state_table[mine % len(self._state_table)] == states).all(axis=1)
        as_many = bounds[numbers + 1] - bounds[numbers] == counts
        found: NDArray[np.bool_] = (numbers != NO_ENTRY) & as_many & np.logical_and.reduceat(same, first)
        return found

    def piece(self, number: int, file: str, state: tuple[int, ...], reread: Callable[[], Piece]) -> Piece:
        """The piece of an entry.

        Args:
            number: of the entry.
            file, state: the file and its state now, which is that of the entry.
            reread: reads the piece from the file.
        """
        entry = self._entries[number]
        dim, dtype, encoder, geometry, begin, end, n_rows, kind, width, stored, first, last = entry
        in_file, native = self._dtypes[stored]
        coords: NDArray[np.generic] | StoredCoords | None = None
        place = None
        if kind == IN_PLACE:
            place = Place(self._places[first:last], width, in_file)
        if kind == EMPTY:
            coords = np.empty((0, 2), native)
        elif kind != NO_COORDS:
            digest = self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
            coords = StoredCoords(file, state, place, native, digest if digest.strip(b"\0") else b"", reread)
        piece = Piece(
            dim,
            DTYPES[dtype],
            self._runs[begin:end],
            coords,
            geometry=self._geometries[geometry],
            encoder=self._encoders[encoder],
            coords_place=place,
            modified=state[1],
        )
        vars(piece)["n_rows"] = n_rows  # which it would count
        return piece


def _require(holds: bool) -> None:
    if not holds:
        raise DamagedError("its numbers contradict each other")


def _bounds(counts: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)])


def _unpack_column(column: Column) -> Ints:
    return np.frombuffer(column.content, f"<{column.kind}").astype(np.int64)


def _unpack_runs(name: str, columns: Mapping[str, Ints], n: int, row_bytes: Ints, size: Ints) -> tuple[Ints, Ints]:
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


def _rows_of(runs: Ints, bounds: Ints) -> Ints:
    return np.diff(_bounds(runs[:, 1])[bounds])
