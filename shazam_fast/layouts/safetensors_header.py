"""The header of a safetensors file, read without reading the tensors.

Format: 8 bytes little-endian header length, JSON header, tensor data (github.com/huggingface/safetensors).
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..errors import ArchiveError

ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
ITEM_BYTES |= {"I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}
MAX_AXES = 64
MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: dtype in the format's spelling, shape, absolute byte offset in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Name -> place of every tensor in the file at `path`.

    Raises ArchiveError when the file is missing, truncated, overlong, or its header is corrupt.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise ArchiveError(
                    f"{path}: the header claims {length} bytes but the file has {size}; "
                    "it is truncated or not a safetensors file"
                )
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise ArchiveError(f"{path}: file not found") from None
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise ArchiveError(f"{path}: corrupt safetensors header: {error}") from None
    if not isinstance(header, dict):
        raise ArchiveError(f"{path}: corrupt safetensors header: a JSON object was expected")
    header.pop("__metadata__", None)
    tensors = {name: _parse_entry(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_coverage(path, tensors, 8 + length, size)
    return tensors


def _parse_entry(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            pass
        case _:
            raise ArchiveError(f"{path}: corrupt header entry of tensor {name!r}")
    if dtype not in ITEM_BYTES:
        raise ArchiveError(f"{path}: tensor {name!r} has unknown dtype {dtype!r}")
    if len(shape) > MAX_AXES or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise ArchiveError(f"{path}: tensor {name!r} has an impossible shape")
    if not 0 <= start <= stop < 2**63:
        raise ArchiveError(f"{path}: tensor {name!r} has impossible offsets")
    tensor = StoredTensor(dtype, tuple(shape), data_start + start)
    if stop - start != tensor.nbytes:
        raise ArchiveError(
            f"{path}: tensor {name!r} of shape {shape} and dtype {dtype} needs {tensor.nbytes} bytes, "
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
