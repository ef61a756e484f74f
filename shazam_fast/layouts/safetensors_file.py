"""Feature matrices in safetensors files, opened in place."""

from itertools import islice
from pathlib import Path

from ..errors import ArchiveError
from . import ITEM_BYTES, Piece
from .safetensors_header import read_header
from .strided import StoredTensor, contiguous, feature_piece

FEATURES = ("features", "feats")
LABELS = ("labels", "label")
COORDS = ("coords",)
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip


def _read_places(path: Path) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(DTYPES[tensor.dtype], tensor.shape, contiguous(tensor.shape), tensor.offset)
        for name, tensor in read_header(path).items()
    }


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
    tensors = _read_places(path)
    return {name: _make_piece(path, name, tensors) for name in _matrices(tensors)}


def read_piece(path: Path, name: str | None = None) -> Piece:
    """The matrix called `name`; without one, `features`, else `feats`, else the only matrix in the file."""
    tensors = _read_places(path)
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
