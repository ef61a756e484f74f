"""What every format gives: sources, pieces, extents and per-patch columns.

A layout lists `Source`s without opening their files; reading one opens its file and returns a `Piece`. What there is
one of for every file is a msgspec.Struct, which is made several times as fast as a dataclass, and does not burden the
garbage collector: 100,000 files are opened in seconds.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError
from .geometry import NOT_KNOWN, Geometry

DTypeName = Literal["float16", "bfloat16", "float32"]
ITEM_BYTES: Mapping[DTypeName, int] = {"float16": 2, "bfloat16": 2, "float32": 4}


class FileState(NamedTuple):
    """What tells a file from one that was changed or replaced; two times in nanoseconds, of content and of inode."""

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of(cls, path: str) -> "FileState":
        """The state of a file as it is now. Raises OSError when it is gone."""
        status = os.stat(path)
        return tuple.__new__(cls, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))  # fast


class Place(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Where a matrix [rows, columns] lies in a file: `runs` as in `Piece`, `dtype` with its byte order ("<i4")."""

    runs: NDArray[np.int64]
    columns: int
    dtype: str

    def read(self, path: str | Path) -> NDArray[np.generic]:
        """The matrix. Raises ArchiveError when the file has become too short, OSError when it cannot be read."""
        dtype = np.dtype(self.dtype)
        rows, row_bytes = int(self.runs[:, 1].sum()), self.columns * dtype.itemsize
        parts = []
        with open(path, "rb", buffering=0) as file:
            for offset, run_rows, stride in self.runs.tolist():
                together = run_rows if stride == row_bytes else 1
                for start in range(offset, offset + run_rows * stride, together * stride):
                    parts.append(os.pread(file.fileno(), together * row_bytes, start))
        content = b"".join(parts)
        if len(content) != rows * row_bytes:
            missing = rows * row_bytes - len(content)
            raise ArchiveError(f"{path}: {missing} bytes missing: it shrank while it was read", "shrunk")
        return np.frombuffer(content, dtype).reshape(rows, self.columns)


class StoredCoords(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Positions x, y [rows, 2] that were read once, and are read again when they are asked for.

    `state` is the FileState of the file when they were read. `place` is None where they do not lie in the file as
    numbers; then `reread` reads the piece anew. `digest` is equal for equal positions, whatever their dtype, and b""
    where only the positions themselves can be compared.
    """

    file: str
    state: tuple[int, ...]
    place: Place | None
    dtype: str
    digest: bytes
    reread: Callable[[], "Piece"]

    def read(self) -> NDArray[np.generic]:
        """The positions. Raises ArchiveError when the file was changed since they were first read, or is gone."""
        try:
            same = FileState.of(self.file) == self.state
            coords = self._read() if same else None
        except OSError as error:
            raise ArchiveError(f"{self.file}: positions cannot be read: {error.strerror or error}", "system") from None
        if coords is None:
            raise ArchiveError(f"{self.file}: was written or replaced after it was opened; open it again", "changed")
        return coords

    def _read(self) -> NDArray[np.generic]:
        if self.place is None:
            return read_coords(self.reread().coords)
        return np.ascontiguousarray(self.place.read(self.file)[:, :2], dtype=self.dtype)


Coords = NDArray[np.generic] | StoredCoords


def read_coords(coords: Coords | None) -> NDArray[np.generic]:
    """Positions [rows, 2] that a piece has."""
    assert coords is not None
    return coords.read() if isinstance(coords, StoredCoords) else coords


class Piece(msgspec.Struct, frozen=True, eq=False, dict=True):
    """The rows that one teacher has of one slide, as they lie in one file.

    `runs` is int64 [n, 3]: byte offset, rows and row stride in bytes of rows that lie evenly; the piece is the runs'
    rows one after another. `columns` is 0 where an empty slide does not say how wide it would be.
    `coords` [rows, 2] (x, y as the tool stores them), `labels` int64 [rows] (-1 unknown), `splits` uint8 [rows] (codes
    of SPLITS) and `groups` str [rows] ("" unknown) are None where the file has none. `geometry` says what the
    coordinates mean; `encoder` is the name of the teacher that the file itself gives, "" where it gives none.
    `files` is the file of each run where they lie in several (a native archive's parts), empty where all lie in the
    source's file. `coords_place` is where the coordinates lie in an HDF5 file; None where they must be decoded.
    `modified` is when the source's file was last written, in nanoseconds, as of before it was read; 0: not known.
    """

    columns: int
    dtype: DTypeName
    runs: NDArray[np.int64]
    coords: Coords | None = None
    labels: NDArray[np.int64] | None = None
    splits: NDArray[np.uint8] | None = None
    groups: NDArray[np.str_] | None = None
    geometry: Geometry = NOT_KNOWN
    encoder: str = ""
    files: tuple[str, ...] = ()
    coords_place: Place | None = None
    modified: int = 0

    @cached_property
    def n_rows(self) -> int:
        """Patches in the piece."""
        return int(self.runs[:, 1].sum())


class Source(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Where one teacher's features of one slide are; `slide` is "" where the layout knows no slides.

    `path` is that of the file, as text, since a Path is slow to make; `file` is the same as a Path.
    `part` tells several files of one slide apart: the class folder of an annotation, an image of the slide.
    `read` opens the file and raises ArchiveError, naming it, when it is not what the layout says, and NotInPlaceError
    when its rows cannot be mapped. `load` reads it in that case: an `Unmapped`, from unmapped.py; None for files that
    are read by their suffix. `asks` tells what `read` takes from the file and from those `beside` it, so that the
    piece can be kept in an index; None if it is not to be kept.
    """

    teacher: str
    slide: str
    path: str
    read: Callable[[], Piece]
    part: str = ""
    load: Callable[[], Piece] | None = None
    asks: str | None = None
    beside: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """The file."""
        return Path(self.path)


@dataclass(frozen=True)
class Extents:
    """Rows of one matrix [rows, columns] as they lie in files.

    `table` is int64 [n, 4]: file index, byte offset, rows, row stride in bytes; the matrix is the extents' rows one
    after another. `modified` is int64 [files], when each file was last written, in nanoseconds, as of when its layout
    was read; 0: not known. None where that is known of no file.
    """

    columns: int
    dtype: DTypeName
    files: tuple[str, ...]
    table: NDArray[np.int64]
    modified: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class FileStamp:
    """A file as it was when it was read: absolute path, modification time in nanoseconds, inode."""

    path: str
    time: int
    inode: int


def stamp_file(path: str) -> FileStamp:
    """The stamp of a file as it is now. Raises OSError when it is gone."""
    state = FileState.of(path)
    return FileStamp(path, state.modified, state.inode)


@dataclass(frozen=True)
class Contents:
    """What an archive is made of: matrices of the same rows side by side, and how to read the per-row columns.

    The columns of `blocks`, in order, are those of `teachers` (name -> dim), in order. `columns` maps a column name
    (label, split, slide, coords, group) to a function that reads it whole; one that is missing is unknown for all rows.
    `stamp` is that of a native archive's manifest. `geometry` maps slides to where their patches lie, "" to it where
    the archive names no slides; slides of which nothing is known are absent. `left_out` maps slides that could not be
    read or joined to the reason. `records` says of teachers how their features were made, see `teacher_records`.
    """

    path: Path
    teachers: Mapping[str, int]
    blocks: tuple[Extents, ...]
    classes: tuple[str, ...] = ()
    slides: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    columns: Mapping[str, Callable[[], NDArray[np.generic]]] = field(default_factory=dict)
    geometry: Mapping[str, Geometry] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    checksums: Mapping[str, str] = field(default_factory=dict)
    stamp: FileStamp | None = None
    records: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def folders(self) -> NDArray[np.str_]:
        """The name of the folder that the file of each row is in, of the first teacher. [rows]."""
        block = self.blocks[0]
        names = np.array([os.path.basename(os.path.dirname(file)) for file in block.files])
        return np.repeat(names[block.table[:, 0]], block.table[:, 2])


class CoordsColumn:
    """The column of positions of several pieces, in the form of `Contents.columns`; read at its first use.

    Args:
        parts: one per piece, None where it has no positions.
        rows: patches of every piece.
        join: makes one column [rows, 2] of the parts.
    """

    def __init__(
        self,
        parts: Sequence[Coords | None],
        rows: Sequence[int],
        join: Callable[[Sequence[NDArray[np.generic] | None], Sequence[int]], NDArray[np.generic]],
    ) -> None:
        self._given = (parts, rows, join)
        self._column: NDArray[np.generic] | None = None

    def __reduce__(self) -> tuple[type["CoordsColumn"], tuple[object, ...]]:
        return CoordsColumn, self._given

    def __call__(self) -> NDArray[np.generic]:
        """All rows. Raises ArchiveError when a file was changed or is gone."""
        if self._column is None:
            parts, rows, join = self._given
            self._column = join([None if part is None else read_coords(part) for part in parts], rows)
        return self._column


@dataclass(frozen=True)
class InMemory:
    """A column in memory, in the form of `Contents.columns`."""

    column: NDArray[np.generic]

    def __call__(self) -> NDArray[np.generic]:
        """All rows."""
        return self.column


# column -> (dtype in the parts, trailing shape); as PartWriter writes them
COLUMNS: Mapping[str, tuple[np.dtype[np.generic], tuple[int, ...]]] = {
    "label": (np.dtype(np.int64), ()),  # -1 unknown
    "coords": (np.dtype(np.int32), (2,)),  # x, y at level 0, -1 unknown
    "slide": (np.dtype(np.int32), ()),  # index into the manifest's names, -1 unknown
    "group": (np.dtype(np.int32), ()),  # likewise; a group (patient) must stay in one split
    "split": (np.dtype(np.uint8), ()),  # see SPLITS
}
SPLITS = {"train": 0, "val": 1, "test": 2, "none": 255}
UNKNOWN = {"label": -1, "coords": -1, "slide": -1, "group": -1, "split": SPLITS["none"]}
