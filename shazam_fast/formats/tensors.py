"""A tensor as it lies in a file, and what an archive takes from it: a matrix of features, labels, coordinates.

Shared by the layouts whose files hold whole tensors: .npy, safetensors, torch.save.
"""

from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError, NotInPlaceError
from ..runtime.files import open_regular
from .pieces import ITEM_BYTES, DTypeName, Piece

INTEGERS = frozenset({"bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"})
COORDINATES = INTEGERS - {"bool"} | {"float32", "float64"}
MAX_DIM = 2**63 - 1  # sizes beyond it fit no file


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: NumPy's name of its dtype ("bfloat16" besides), shape, strides, place.

    `stride` counts values, as in torch; `offset` is the byte of the first value, from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values, as they lie side by side in a contiguous tensor."""
        return prod(self.shape) * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)

    @property
    def span(self) -> int:
        """Values from the first to the last, whatever lies between the rows included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor of this shape in C order."""
    return tuple(accumulate(shape[:0:-1], mul, initial=1))[::-1][: len(shape)]


def read_values(path: Path, tensor: StoredTensor) -> NDArray[np.generic]:
    """A small tensor, read whole; for labels and coordinates, not for features."""
    dtype = np.dtype(tensor.dtype)
    needed = tensor.span * dtype.itemsize
    with open_regular(path) as file:
        file.seek(tensor.offset)
        content = file.read(needed)
    if len(content) != needed:
        raise ArchiveError(f"{path}: ended inside a tensor: the file shrank while it was opened")
    strides = tuple(step * dtype.itemsize for step in tensor.stride)
    return np.ndarray(tensor.shape, dtype, content, strides=strides).copy()


def read_labels(path: Path, tensor: StoredTensor, rows: int) -> NDArray[np.int64] | None:
    """Class labels int64 [rows], or None where the tensor holds none of the rows' own.

    Floating-point targets are those of a regression (Shazam's expression task), a single label is the whole slide's.
    """
    if tensor.dtype not in INTEGERS or (prod(tensor.shape) == 1 != rows):
        return None
    if tensor.shape not in ((rows,), ()):
        raise ArchiveError(f"{path}: labels of shape {list(tensor.shape)} for {rows} rows; expected [{rows}]")
    return read_values(path, tensor).astype(np.int64).reshape(rows)


def read_coords(path: Path, tensor: StoredTensor, rows: int) -> NDArray[np.generic]:
    """Coordinates [rows, 2] in the dtype of the file; columns after x and y (width, height, level) are left."""
    tensor = _without_leading_axis(tensor)
    if tensor.dtype not in COORDINATES or len(tensor.shape) != 2 or tensor.shape[0] != rows or tensor.shape[1] < 2:
        raise ArchiveError(
            f"{path}: coords are {tensor.dtype} {list(tensor.shape)}; expected numbers [{rows}, 2 or more], "
            "x and y for each row of the features"
        )
    return read_values(path, StoredTensor(tensor.dtype, (rows, 2), tensor.stride, tensor.offset))


def _without_leading_axis(tensor: StoredTensor) -> StoredTensor:
    """[1, rows, columns], as published UNI2-h features have it -> [rows, columns]."""
    if len(tensor.shape) != 3 or tensor.shape[0] != 1:
        return tensor
    return StoredTensor(tensor.dtype, tensor.shape[1:], tensor.stride[1:], tensor.offset)


def _as_matrix(path: Path, name: str, features: StoredTensor) -> tuple[int, int, int]:
    """Rows, columns, and values from one row to the next."""
    tensor = _without_leading_axis(features)
    if tensor.shape == (0,):  # how TRIDENT writes a slide without tissue
        return 0, 0, 0
    if len(tensor.shape) != 2:
        raise ArchiveError(f"{path}: {name} has shape {list(features.shape)}; expected [rows, columns]")
    rows, columns = tensor.shape
    if max(rows, columns) > MAX_DIM or (rows > 0 and columns == 0):
        raise ArchiveError(f"{path}: {name} has the impossible shape {list(features.shape)}")
    row_step = tensor.stride[0] if rows > 1 else columns
    if rows > 0 and ((columns > 1 and tensor.stride[1] != 1) or row_step < columns):
        raise NotInPlaceError(
            f"{path}: {name} of shape {list(features.shape)} is stored with strides {list(features.stride)}, so its "
            "rows do not lie one after another (transposed or expanded); save a contiguous copy, or convert the file "
            "with shazam_fast.convert"
        )
    return rows, columns, row_step


def feature_piece(
    path: Path,
    name: str,
    features: StoredTensor,
    labels: StoredTensor | None = None,
    coords: StoredTensor | None = None,
) -> Piece:
    """The matrix that lies in `features` [rows, columns] or [1, rows, columns]; `name` is what messages call it.

    Raises ArchiveError unless the values of each row lie side by side and no two rows overlap. An empty slide may be
    of any dtype, as numpy.array([]) is float64, and then passes as float32.
    """
    if features.dtype not in ITEM_BYTES and 0 in features.shape:
        features = replace(features, dtype="float32")
    if features.dtype in INTEGERS or features.dtype == "uint64":
        raise ArchiveError(
            f"{path}: {name} is {features.dtype}; features are float16, bfloat16 or float32: save them so", "dtype"
        )
    if features.dtype not in ITEM_BYTES:
        raise NotInPlaceError(
            f"{path}: {name} is {features.dtype}; features are float16, bfloat16 or float32: "
            "convert the file with shazam_fast.convert"
        )
    dtype = cast(DTypeName, features.dtype)
    rows, columns, row_step = _as_matrix(path, name, features)
    runs = [[features.offset, rows, row_step * ITEM_BYTES[dtype]]] if rows else []
    return Piece(
        columns,
        dtype,
        np.array(runs, dtype=np.int64).reshape(-1, 3),
        coords=read_coords(path, coords, rows) if coords else None,
        labels=read_labels(path, labels, rows) if labels else None,
    )
