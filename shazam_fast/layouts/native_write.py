"""Writing the files of a native archive: parts in the safetensors format and the manifest, synced and renamed."""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import UNFINISHED, file_checksum
from .native import COLUMNS, SAFETENSORS_NAMES, UNKNOWN

DATA_START = 4096  # the parts' data begin on a page


class PartWriter:
    """One safetensors file in the making: features go straight to disk, the narrow columns wait for the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path.with_suffix(UNFINISHED)
        self._file = self._unfinished.open("w+b", buffering=0)
        self._file.seek(DATA_START)
        self._columns: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
        self.rows = 0

    def append(self, features: NDArray[Any], columns: Mapping[str, NDArray[Any] | None]) -> None:
        """Add features [n, width] and their narrow columns; None stands for unknown."""
        _write_all(self._file.fileno(), features)
        for name, (dtype, shape) in COLUMNS.items():
            column = columns[name]
            if column is None:
                column = np.full((len(features), *shape), UNKNOWN[name])
            self._columns[name].append(column.astype(dtype))
        self.rows += len(features)

    def close(self, width: int, dtype: np.dtype[Any]) -> dict[str, Any]:
        """Finish the file and return its entry in the manifest."""
        columns = {name: np.concatenate(chunks) for name, chunks in self._columns.items()}
        for column in columns.values():
            _write_all(self._file.fileno(), column)
        shapes = {"features": (dtype, (self.rows, width))}
        shapes |= {name: (column.dtype, column.shape) for name, column in columns.items()}
        self._file.seek(0)
        _write_all(self._file.fileno(), np.frombuffer(_safetensors_header(shapes), np.uint8))
        checksum = file_checksum(self._unfinished)
        size = os.fstat(self._file.fileno()).st_size
        os.fsync(self._file.fileno())
        self._file.close()
        self._unfinished.rename(self._path)
        return {"file": self._path.name, "rows": self.rows, "bytes": size, "xxh3": checksum}

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
