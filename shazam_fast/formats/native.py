"""The native archive: a directory with `archive.json` and safetensors parts, all teachers of a patch side by side."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError
from ..runtime.documents import Count, Json, Name, Record, Text, read_document
from ..runtime.jobs.part_directory import Part
from .geometry import Geometry
from .pieces import COLUMNS, ITEM_BYTES, UNKNOWN, Contents, DTypeName, Extents, FileStamp, stamp_file
from .records import teacher_records
from .safetensors import read_header
from .tensors import StoredTensor

FORMAT = "shazam_fast archive"
VERSION = 1
MANIFEST = "archive.json"
SAFETENSORS_NAMES = {
    "int64": "I64", "uint8": "U8", "int32": "I32", "float16": "F16", "float32": "F32", "bfloat16": "BF16",
}  # fmt: skip


@dataclass(frozen=True)
class StoredColumn:
    """A per-row column that lies in pieces in the parts, read whole or by range."""

    name: str
    files: tuple[str, ...]
    tensors: tuple[StoredTensor, ...]

    def __call__(self) -> NDArray[np.generic]:
        """All rows."""
        return self.read(0, sum(tensor.shape[0] for tensor in self.tensors))

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Rows [start, stop)."""
        dtype, shape = COLUMNS[self.name]
        out = np.empty((stop - start, *shape), dtype=dtype)
        first = 0  # row of the part
        for file, tensor in zip(self.files, self.tensors, strict=True):
            low, high = max(start, first), min(stop, first + tensor.shape[0])
            if low < high:
                part = out[low - start : high - start]
                part[:] = self._read_piece(file, tensor.offset + (low - first) * part[:1].nbytes, part)
            first += tensor.shape[0]
        return out

    def _read_piece(self, file: str, offset: int, like: NDArray[np.generic]) -> NDArray[np.generic]:
        with open(file, "rb") as stream:
            stream.seek(offset)
            content = stream.read(like.nbytes)
        if len(content) != like.nbytes:
            raise ArchiveError(f"{file}: ended inside column {self.name!r}: the file shrank after it was opened")
        return np.frombuffer(content, like.dtype).reshape(like.shape)


def is_native(path: Path) -> bool:
    """Whether the directory is a native archive, complete or interrupted."""
    return (path / MANIFEST).exists() or any(path.glob("part-[0-9][0-9][0-9][0-9][0-9].safetensors"))


class StoredTeacher(Record, frozen=True, kw_only=True):
    """A teacher in a manifest."""

    name: Name
    dim: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class Manifest(Record, frozen=True, kw_only=True):
    """`archive.json`. `job` holds the options that made the archive, `notes` what was recorded while it was written."""

    format: str
    version: int
    teachers: Annotated[list[StoredTeacher], msgspec.Meta(min_length=1)]
    dtype: DTypeName
    rows: Count
    classes: list[Text]
    slides: list[Text]
    groups: list[Text]
    parts: list[Part]
    job: Json = None
    notes: Json = None
    geometry: dict[str, Geometry] = msgspec.field(default_factory=dict)


def read_contents(path: Path) -> Contents:
    """Open the native archive at `path`; reads the manifest and the parts' headers, no features.

    The files' paths are absolute, so that they are found after a change of directory.

    Raises ArchiveError when something is missing, truncated, corrupt, or written by a newer version.
    """
    stamp = _stamp(path / MANIFEST)
    manifest = read_manifest(path)
    teachers = {teacher.name: teacher.dim for teacher in manifest.teachers}
    width = sum(teachers.values())
    files = tuple(os.path.join(os.path.abspath(path), part.file) for part in manifest.parts)
    stored = [
        _read_part(Path(file), part, width, manifest.dtype) for file, part in zip(files, manifest.parts, strict=True)
    ]
    item = ITEM_BYTES[manifest.dtype]
    table = [
        [i, tensors["features"].offset, part.rows, width * item]
        for i, (part, tensors) in enumerate(zip(manifest.parts, stored, strict=True))
    ]
    return Contents(
        path=path,
        stamp=stamp,
        teachers=teachers,
        blocks=(Extents(width, manifest.dtype, files, np.array(table, dtype=np.int64).reshape(-1, 4)),),
        classes=tuple(manifest.classes),
        slides=tuple(manifest.slides),
        groups=tuple(manifest.groups),
        geometry=manifest.geometry,
        records=teacher_records(manifest.job),
        columns={column: StoredColumn(column, files, tuple(t[column] for t in stored)) for column in COLUMNS},
        checksums={file: part.xxh3 for file, part in zip(files, manifest.parts, strict=True)},
    )


def _stamp(manifest: Path) -> FileStamp | None:
    try:
        return stamp_file(os.path.abspath(manifest))
    except OSError:
        return None  # reading it says why


def read_manifest(path: Path) -> Manifest:
    """The manifest of the native archive at `path`. Raises ArchiveError when it is missing or contradicts itself."""
    file = path / MANIFEST
    if not file.exists():
        raise ArchiveError(f"{path}: {MANIFEST} not found: its writing was interrupted; write it again", "missing")
    manifest = read_document(file, Manifest, format=FORMAT, version=VERSION)
    rows = sum(part.rows for part in manifest.parts)
    if manifest.rows != rows:
        raise ArchiveError(f"{file}: {manifest.rows} rows stated, the parts hold {rows}")
    for what, names in (
        ("teacher", [teacher.name for teacher in manifest.teachers]),
        ("class", manifest.classes),
        ("slide", manifest.slides),
        ("group", manifest.groups),
        ("part", [part.file for part in manifest.parts]),
    ):
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise ArchiveError(f"{file}: {what} {twice!r} is listed twice")
    return manifest


def _read_part(file: Path, part: Part, width: int, dtype: str) -> dict[str, StoredTensor]:
    tensors, rows = read_header(file), part.rows
    if (size := file.stat().st_size) != part.bytes:
        raise ArchiveError(f"{file}: {size} bytes, the manifest states {part.bytes}: part replaced?")
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"features": (dtype, (rows, width))}
    expected |= {name: (str(d), (rows, *shape)) for name, (d, shape) in COLUMNS.items()}
    for name, (stored_dtype, shape) in expected.items():
        if name not in tensors:
            raise ArchiveError(f"{file}: tensor {name!r} is missing; found {sorted(tensors)}")
        found = tensors[name]
        if (found.dtype, found.shape) != (stored_dtype, shape):
            raise ArchiveError(
                f"{file}: tensor {name!r} is {found.dtype} {list(found.shape)}, "
                f"the manifest makes it {stored_dtype} {list(shape)}"
            )
    return tensors


DATA_START = 4096  # byte at which the data of a part begin: the start of a memory page


class PartWriter:
    """Writes one safetensors file: features at once, the per-patch columns when it is closed.

    Args:
        path: where to write; a temporary name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        os.lseek(self._descriptor, DATA_START, os.SEEK_SET)
        self._columns: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
        self.n_rows = 0

    def append(self, features: NDArray[Any], columns: Mapping[str, NDArray[Any] | None]) -> None:
        """Add n rows.

        Args:
            features: [n, width] in the type of the archive.
            columns: column -> [n] or [n, 2]; None for unknown.
        """
        assert self._descriptor is not None
        _write_all(self._descriptor, features)
        for name, (dtype, shape) in COLUMNS.items():
            column = columns[name]
            if column is None:
                column = np.full((len(features), *shape), UNKNOWN[name])
            self._columns[name].append(column.astype(dtype))
        self.n_rows += len(features)

    def close(self, width: int, dtype: np.dtype[Any]) -> None:
        """Write columns and header, and sync the file."""
        assert self._descriptor is not None
        columns = {name: np.concatenate(chunks) for name, chunks in self._columns.items()}
        for column in columns.values():
            _write_all(self._descriptor, column)
        shapes = {"features": (dtype, (self.n_rows, width))}
        shapes |= {name: (column.dtype, column.shape) for name, column in columns.items()}
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        _write_all(self._descriptor, np.frombuffer(_safetensors_header(shapes), np.uint8))
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None

    def abort(self) -> None:
        """Remove the file if it still has its temporary name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self.path.unlink(missing_ok=True)


def _safetensors_header(shapes: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> bytes:
    entries: dict[str, object] = {}
    start = 0
    for name, (dtype, shape) in shapes.items():
        stop = start + dtype.itemsize * prod(shape)
        entries[name] = {
            "dtype": SAFETENSORS_NAMES[str(dtype)],
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
        start = stop
    header = json.dumps(entries).encode()
    return (DATA_START - 8).to_bytes(8, "little") + header.ljust(DATA_START - 8)


def _write_all(descriptor: int, array: NDArray[Any]) -> None:
    """os.write until everything is written: one call stops short at 2 GiB or on a full disk."""
    view = memoryview(np.ascontiguousarray(array).data).cast("B") if array.size else memoryview(b"")
    while view:
        view = view[os.write(descriptor, view) :]
