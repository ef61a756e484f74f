"""The native archive: a directory with `archive.json` and safetensors parts, all teachers of a patch side by side."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError
from . import ITEM_BYTES, Contents, DTypeName, Extents
from .safetensors_header import StoredTensor, read_header

FORMAT = "shazam_fast archive"
VERSION = 1
MANIFEST = "archive.json"

# column -> (dtype in the parts, trailing shape); written by writer.py, read here
COLUMNS: Mapping[str, tuple[np.dtype[np.generic], tuple[int, ...]]] = {
    "label": (np.dtype(np.int64), ()),  # -1 unknown
    "coords": (np.dtype(np.int32), (2,)),  # x, y at level 0, -1 unknown
    "slide": (np.dtype(np.int32), ()),  # index into the manifest's names, -1 unknown
    "group": (np.dtype(np.int32), ()),  # likewise; a group (patient) must stay in one split
    "split": (np.dtype(np.uint8), ()),  # see SPLITS
}
SPLITS = {"train": 0, "val": 1, "test": 2, "none": 255}
UNKNOWN = {"label": -1, "coords": -1, "slide": -1, "group": -1, "split": SPLITS["none"]}
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
    return (path / MANIFEST).exists() or any(path.glob("part-[0-9][0-9][0-9][0-9][0-9].*"))


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
        columns={column: StoredColumn(column, files, tuple(t[column] for t in stored)) for column in COLUMNS},
        checksums={file: part[3] for file, part in zip(files, parts, strict=True)},
        **names,
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
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"features": (SAFETENSORS_NAMES[dtype], (rows, width))}
    expected |= {name: (SAFETENSORS_NAMES[str(d)], (rows, *shape)) for name, (d, shape) in COLUMNS.items()}
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
