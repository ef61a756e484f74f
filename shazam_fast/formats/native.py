"""The native archive: a directory with `archive.json` and safetensors parts, all teachers of a patch side by side."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError
from ..runtime.files import UNFINISHED, file_checksum
from .geometry import Geometry, describe_geometry, parse_geometry
from .pieces import COLUMNS, ITEM_BYTES, UNKNOWN, Contents, DTypeName, Extents
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
    """Whether the directory is a native archive, or what an interrupted writing left of one."""
    return (path / MANIFEST).exists() or any(path.glob("part-[0-9][0-9][0-9][0-9][0-9].safetensors"))


def read_contents(path: Path) -> Contents:
    """Open the native archive at `path`; reads the manifest and the parts' headers, no features.

    Raises ArchiveError when something is missing, truncated, corrupt, or written by a newer version.
    """
    manifest, fingerprint = _read_manifest(path)
    try:
        teachers = {str(t["name"]): int(t["dim"]) for t in manifest["teachers"]}
        dtype = cast(DTypeName, str(manifest["dtype"]))
        parts = [(str(p["file"]), int(p["rows"]), int(p["bytes"]), str(p["xxh3"])) for p in manifest["parts"]]
        names = {key: tuple(str(n) for n in manifest[key]) for key in ("classes", "slides", "groups")}
        rows = int(manifest["rows"])
        geometry = parse_geometry(manifest.get("geometry", {}))  # absent in archives of version 0.1
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveError(f"{path / MANIFEST}: corrupt manifest: {error!r}") from None
    _check_manifest(path, teachers, dtype, rows, [part[1] for part in parts])

    width = sum(teachers.values())
    stored = [_read_part(path / file, part_rows, size, width, dtype) for file, part_rows, size, _ in parts]
    item = ITEM_BYTES[dtype]
    table = [[i, tensors["features"].offset, parts[i][1], width * item] for i, tensors in enumerate(stored)]
    files = tuple(str(path / part[0]) for part in parts)
    return Contents(
        path=path,
        teachers=teachers,
        blocks=(Extents(width, dtype, files, np.array(table, dtype=np.int64).reshape(-1, 4)),),
        fingerprint=fingerprint,
        classes=names["classes"],
        slides=names["slides"],
        groups=names["groups"],
        geometry=geometry,
        records=teacher_records(manifest.get("job")),
        columns={column: StoredColumn(column, files, tuple(t[column] for t in stored)) for column in COLUMNS},
        checksums={file: part[3] for file, part in zip(files, parts, strict=True)},
    )


def _read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = (path / MANIFEST).read_bytes()
        manifest = json.loads(text)
    except FileNotFoundError:
        raise ArchiveError(f"{path}: {MANIFEST} not found: its writing was interrupted; write it again") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArchiveError(f"{path / MANIFEST}: corrupt manifest: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArchiveError(f"{path / MANIFEST}: not a manifest of a {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise ArchiveError(
            f"{path / MANIFEST}: format version {manifest.get('version')!r}; "
            f"this release reads version {VERSION}: update shazam_fast"
        )
    return manifest, hashlib.sha256(text).hexdigest()


def _check_manifest(path: Path, teachers: dict[str, int], dtype: str, rows: int, part_rows: list[int]) -> None:
    if dtype not in ITEM_BYTES:
        raise ArchiveError(f"{path / MANIFEST}: unknown dtype {dtype!r}; expected one of {list(ITEM_BYTES)}")
    if not teachers or min(teachers.values()) < 1:
        raise ArchiveError(f"{path / MANIFEST}: every teacher needs a positive dim, found {teachers}")
    if rows != sum(part_rows) or min(part_rows, default=0) < 0:
        raise ArchiveError(f"{path / MANIFEST}: {rows} rows stated, the parts hold {sum(part_rows)}")


def _read_part(file: Path, rows: int, size: int, width: int, dtype: str) -> dict[str, StoredTensor]:
    tensors = read_header(file)
    if file.stat().st_size != size:
        raise ArchiveError(f"{file}: {file.stat().st_size} bytes, the manifest states {size}: part replaced?")
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


DATA_START = 4096  # the parts' data begin on a page


class PartWriter:
    """One safetensors file in the making: features go straight to disk, the narrow columns wait for the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path.with_suffix(UNFINISHED)
        self._file = self._unfinished.open("w+b", buffering=0)
        self._file.seek(DATA_START)
        self._columns: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
        self.n_rows = 0

    def append(self, features: NDArray[Any], columns: Mapping[str, NDArray[Any] | None]) -> None:
        """Add features [n, width] and their narrow columns; None stands for unknown."""
        _write_all(self._file.fileno(), features)
        for name, (dtype, shape) in COLUMNS.items():
            column = columns[name]
            if column is None:
                column = np.full((len(features), *shape), UNKNOWN[name])
            self._columns[name].append(column.astype(dtype))
        self.n_rows += len(features)

    def close(self, width: int, dtype: np.dtype[Any]) -> dict[str, Any]:
        """Finish the file and return its entry in the manifest."""
        columns = {name: np.concatenate(chunks) for name, chunks in self._columns.items()}
        for column in columns.values():
            _write_all(self._file.fileno(), column)
        shapes = {"features": (dtype, (self.n_rows, width))}
        shapes |= {name: (column.dtype, column.shape) for name, column in columns.items()}
        self._file.seek(0)
        _write_all(self._file.fileno(), np.frombuffer(_safetensors_header(shapes), np.uint8))
        checksum = file_checksum(self._unfinished)
        size = os.fstat(self._file.fileno()).st_size
        os.fsync(self._file.fileno())
        self._file.close()
        self._unfinished.rename(self._path)
        return {"file": self._path.name, "rows": self.n_rows, "bytes": size, "xxh3": checksum}

    def abort(self) -> None:
        """Remove the unfinished file."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)


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


def manifest_content(
    teachers: Mapping[str, int],
    dtype: np.dtype[Any],
    classes: Sequence[str],
    slides: Sequence[str],
    groups: Sequence[str],
    parts: Sequence[Mapping[str, Any]],
    record: Mapping[str, object],
    geometry: Mapping[str, Geometry] = MappingProxyType({}),
) -> bytes:
    """What archive.json says; `record` is what else it is to say."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "teachers": [{"name": name, "dim": dim} for name, dim in teachers.items()],
        "dtype": str(dtype),
        "rows": sum(part["rows"] for part in parts),
        "classes": list(classes),
        "slides": list(slides),
        "groups": list(groups),
        "geometry": describe_geometry(geometry),
        "parts": list(parts),
        **record,
    }
    return json.dumps(manifest, indent=1).encode()
