"""The header of a safetensors file, read without reading the tensors.

Format: 8 bytes little-endian header length, JSON header, tensor data (github.com/huggingface/safetensors).
"""

import os
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec

from ..errors import ArchiveError
from ..runtime.files import open_regular
from .pieces import ITEM_BYTES, Piece
from .tensors import StoredTensor, contiguous, feature_piece

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip
MAX_AXES = 64
MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
METADATA = "__metadata__"

Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Entry(msgspec.Struct):
    """A tensor in the header."""

    dtype: str
    shape: Annotated[list[Size], msgspec.Meta(max_length=MAX_AXES)]
    data_offsets: tuple[Size, Size]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Name -> place of every tensor in the file at `path`.

    Raises ArchiveError when the file is missing, truncated, overlong, or its header is corrupt.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise ArchiveError(
                f"{path}: the header claims {length} bytes but the file has {size}; "
                "it is truncated or not a safetensors file",
                "truncated",
            )
        content = file.read(length)
    try:
        header = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArchiveError(f"{path}: corrupt safetensors header: {error}") from None
    header.pop(METADATA, None)
    tensors = {name: _parse_entry(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_coverage(path, tensors, 8 + length, size)
    return tensors


def _parse_entry(path: Path, name: str, content: msgspec.Raw, data_start: int) -> StoredTensor:
    try:
        entry = msgspec.json.decode(content, type=_Entry)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArchiveError(f"{path}: corrupt header entry of tensor {name!r}: {error}") from None
    if entry.dtype not in DTYPES:
        raise ArchiveError(f"{path}: tensor {name!r} has unknown dtype {entry.dtype!r}", "dtype")
    start, stop = entry.data_offsets
    shape = tuple(entry.shape)
    tensor = StoredTensor(DTYPES[entry.dtype], shape, contiguous(shape), data_start + start)
    if stop - start != tensor.nbytes:
        raise ArchiveError(
            f"{path}: tensor {name!r} of shape {list(shape)} and dtype {entry.dtype} needs {tensor.nbytes} bytes, "
            f"its offsets {start}..{stop} hold {stop - start}"
        )
    return tensor


def _check_coverage(path: Path, tensors: dict[str, StoredTensor], data_start: int, size: int) -> None:
    """The tensors must fill the file without gap or overlap, as the format demands."""
    expected = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != expected:
            raise ArchiveError(f"{path}: tensor {name!r} starts at byte {tensor.offset}, expected {expected}")
        expected += tensor.nbytes
    if size != expected:
        kind = "truncated" if size < expected else "overlong"
        raise ArchiveError(f"{path}: {kind} file: {expected} bytes expected, {size} found")


FEATURES = ("features", "feats")
LABELS = ("labels", "label")
COORDS = ("coords",)


def _matrices(tensors: dict[str, StoredTensor]) -> list[str]:
    """Names of the tensors that may be features."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.dtype in ITEM_BYTES and name not in LABELS + COORDS
        if len(tensor.shape) == 2 or (len(tensor.shape) == 3 and tensor.shape[0] == 1)
    ]


def _list_names(tensors: dict[str, StoredTensor]) -> str:
    shown = [f"{name!r} {tensor.dtype} {list(tensor.shape)}" for name, tensor in islice(tensors.items(), 10)]
    return ", ".join(shown + ["..."] * (len(tensors) > len(shown))) or "nothing"


def _first(tensors: dict[str, StoredTensor], names: tuple[str, ...]) -> StoredTensor | None:
    return next((tensors[name] for name in names if name in tensors), None)


def _make_piece(path: Path, name: str, tensors: dict[str, StoredTensor]) -> Piece:
    labels, coords = _first(tensors, LABELS), _first(tensors, COORDS)
    return feature_piece(path, f"tensor {name!r}", tensors[name], labels, coords)


def read_tensors(path: Path) -> dict[str, Piece]:
    """Every matrix of features in the file: float16, bfloat16 or float32, [rows, columns] or [1, rows, columns].

    An integer tensor `labels` or `label` [rows] and a tensor `coords` [rows, 2 or more] belong to all of them.
    """
    tensors = read_header(path)
    return {name: _make_piece(path, name, tensors) for name in _matrices(tensors)}


def list_teachers(path: Path) -> list[str]:
    """Names of the matrices in a file that holds several and none called as features are; otherwise none."""
    tensors = read_header(path)
    names = _matrices(tensors)
    return names if len(names) > 1 and not any(name in tensors for name in FEATURES) else []


def read_piece(path: Path, name: str | None = None) -> Piece:
    """The matrix called `name`; without one, `features`, else `feats`, else the only matrix in the file."""
    tensors = read_header(path)
    if name is None:
        matrices = _matrices(tensors)
        named = [key for key in FEATURES if key in tensors]
        if not named and len(matrices) != 1:
            raise ArchiveError(
                f"{path}: no tensor 'features' or 'feats', and {len(matrices)} others could be features; "
                f"it holds {_list_names(tensors)}: choose one by its name"
            )
        name = (named or matrices)[0]
    if name not in tensors:
        raise ArchiveError(f"{path}: no tensor {name!r}; it holds {_list_names(tensors)}")
    return _make_piece(path, name, tensors)
