"""One file per on-disk layout; each only turns a path into extents and per-row columns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DTypeName = Literal["float16", "bfloat16", "float32"]
ITEM_BYTES: Mapping[DTypeName, int] = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Extents:
    """Rows of one matrix [rows, columns] as they lie in files.

    `table` is int64 [n, 4]: file index, byte offset, rows, row stride in bytes; the matrix is the extents' rows
    one after another.
    """

    columns: int
    dtype: DTypeName
    files: tuple[str, ...]
    table: NDArray[np.int64]


@dataclass(frozen=True)
class Contents:
    """What a layout found: the teachers side by side in one matrix, and how to read the per-row columns.

    `columns` maps a column name (label, split, slide, coords, group) to a function that reads it whole.
    """

    path: Path
    teachers: Mapping[str, int]
    matrix: Extents
    classes: tuple[str, ...]
    slides: tuple[str, ...]
    groups: tuple[str, ...]
    fingerprint: str
    columns: Mapping[str, Callable[[], NDArray[np.generic]]] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
