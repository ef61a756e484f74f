"""The entries of an index, packed to bytes as columns.

A column is one array of all entries, in the smallest integers that hold it, so that 100,000 entries load in a fraction
of a second. Runs of rows are kept as gaps between one run's end and the next one's start, which are small.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...runtime.documents import Record
from ..geometry import Geometry
from ..pieces import DTypeName, FileState, Piece, Place, StoredCoords

Value = TypeVar("Value")

DTYPES: tuple[DTypeName, ...] = ("float16", "bfloat16", "float32")
NUMBERS = re.compile(r"[<>|][iuf][1248]")  # dtypes of positions
DIGEST_BYTES = 16
MOST_COLUMNS = 1 << 31
LARGEST = (1 << 63) - 1  # inode or time that is kept
SEPARATOR = "\0\0"  # between keys, which hold single zero bytes
RUN_COLUMNS = ("count", "start", "gap", "rows", "turn")  # turn: by how much the stride differs from the run before
NO_COORDS, EMPTY, DECODED, IN_PLACE = range(4)  # where the positions of an entry are

Ints = NDArray[np.int64]


class Learned(NamedTuple):
    """What was learned of one file: the states of the file and of those beside it, and its piece with StoredCoords."""

    states: tuple[FileState, ...]
    piece: Piece


class Column(msgspec.Struct, frozen=True):
    """Integers of `kind`, little-endian."""

    kind: Literal["i1", "i2", "i4", "i8"]
    content: bytes


class StoredGeometry(msgspec.Struct, frozen=True, array_like=True):
    """`Geometry`, whose numbers stay whole where they are."""

    unit: Literal["pixels", "micrometres"] | None
    patch_size: int | float | None
    level: int | None
    mpp: int | float | None
    reader: str | None


class Document(Record, frozen=True, kw_only=True):
    """The body of an index file."""

    writer: str
    byte_order: str
    root: bytes
    written: int
    keys: bytes
    encoders: list[str]
    dtypes: list[str]
    geometries: list[StoredGeometry]
    digests: bytes
    columns: Mapping[str, Column]


def can_keep(learned: Learned) -> bool:
    """Whether an entry can hold all that was learned."""
    piece = learned.piece
    others = (piece.labels, piece.splits, piece.groups, piece.files or None)
    return (
        type(piece) is Piece
        and all(other is None for other in others)
        and piece.columns < MOST_COLUMNS
        and (piece.coords is None or NUMBERS.fullmatch(_stored_dtype(piece)) is not None)
        and all(0 <= number < LARGEST for state in learned.states for number in state)
    )


def _stored_dtype(piece: Piece) -> str:
    """The dtype in which a piece's positions lie in the file, or are handed out if they are not there as numbers."""
    coords = piece.coords
    if isinstance(coords, StoredCoords):
        return coords.dtype if coords.place is None else coords.place.dtype
    return "" if coords is None else coords.dtype.str


def pack(writer: str, root: bytes, written: int, entries: Mapping[str, Learned]) -> bytes:
    """The body of an index file. Raises UnicodeEncodeError for an encoder's name that is no text."""
    pieces = [entry.piece for entry in entries.values()]
    encoders, geometries, dtypes = _Numbering[str](), _Numbering[StoredGeometry](), _Numbering[str]()
    numbers: dict[str, Sequence[int] | Ints] = {
        **_pack_states([entry.states for entry in entries.values()]),
        "columns": [piece.columns for piece in pieces],
        "dtype": [DTYPES.index(piece.dtype) for piece in pieces],
        "encoder": [encoders.number(piece.encoder) for piece in pieces],
        "geometry": [geometries.number(_as_stored(piece.geometry)) for piece in pieces],
        **_pack_runs("runs", [piece.runs for piece in pieces]),
        "coords_kind": [_kind_of_coords(piece) for piece in pieces],
        "coords_dtype": [dtypes.number(_stored_dtype(piece)) for piece in pieces],
        **_pack_places([_place_of(piece) for piece in pieces]),
    }
    document = Document(
        writer=writer,
        byte_order=sys.byteorder,
        root=root,
        written=written,
        keys=SEPARATOR.join(entries).encode("utf-8", "surrogateescape"),
        encoders=list(encoders.seen),
        dtypes=list(dtypes.seen),
        geometries=list(geometries.seen),
        digests=b"".join(_digest_of(piece) for piece in pieces),
        columns={name: _pack_column(np.asarray(values, np.int64)) for name, values in numbers.items()},
    )
    return msgspec.msgpack.encode(document)


def _pack_states(states: Sequence[tuple[FileState, ...]]) -> dict[str, Sequence[int]]:
    single = [state for of_entry in states for state in of_entry]
    fields = {field: [getattr(state, field) for state in single] for field in FileState._fields}
    return {"n_states": [len(of_entry) for of_entry in states], **fields}


def _pack_places(places: Sequence[Place | None]) -> dict[str, Sequence[int] | Ints]:
    runs = [np.empty((0, 3), np.int64) if place is None else place.runs for place in places]
    return {"coords_width": [0 if place is None else place.columns for place in places], **_pack_runs("places", runs)}


def _place_of(piece: Piece) -> Place | None:
    return piece.coords.place if isinstance(piece.coords, StoredCoords) else None


def _digest_of(piece: Piece) -> bytes:
    """Zeros for positions that must be compared themselves, or are not there."""
    digest = piece.coords.digest if isinstance(piece.coords, StoredCoords) else b""
    return digest or bytes(DIGEST_BYTES)


class _Numbering(Generic[Value]):
    """Numbers of different values in the order in which they were seen."""

    def __init__(self) -> None:
        self.seen: dict[Value, int] = {}

    def number(self, value: Value) -> int:
        return self.seen.setdefault(value, len(self.seen))


def _as_stored(geometry: Geometry) -> StoredGeometry:
    return StoredGeometry(geometry.unit, geometry.patch_size, geometry.level, geometry.mpp, geometry.reader)


def _kind_of_coords(piece: Piece) -> int:
    coords = piece.coords
    if coords is None:
        return NO_COORDS
    if not isinstance(coords, StoredCoords):
        return EMPTY
    return DECODED if coords.place is None else IN_PLACE


def _pack_runs(name: str, runs: Sequence[Ints]) -> dict[str, Ints]:
    counts = np.array([len(one) for one in runs], dtype=np.int64)
    table = np.concatenate(runs) if runs else np.empty((0, 3), np.int64)
    offset, rows, stride = table.T
    gaps = np.diff(offset, prepend=0)
    gaps[1:] -= (rows * stride)[:-1]
    turns = np.diff(stride, prepend=0)
    first = starts_of(counts)[counts > 0]
    starts = offset[first]
    gaps[first] = 0
    packed = (counts, starts, gaps, rows, turns)
    return {f"{name}_{part}": values for part, values in zip(RUN_COLUMNS, packed, strict=True)}


def starts_of(counts: Ints) -> Ints:
    """Where each entry's values begin [n], given how many each entry has [n]."""
    return np.cumsum(counts) - counts


def _pack_column(values: Ints) -> Column:
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for kind in ("i1", "i2", "i4"):
        info = np.iinfo(kind)
        if info.min <= low and high <= info.max:
            return Column(kind, values.astype(f"<{kind}").tobytes())
    return Column("i8", values.astype("<i8").tobytes())
