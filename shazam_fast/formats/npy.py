"""NumPy's .npy: a text header and one array, opened in place. Format 1.0, 2.0 and 3.0 (numpy.lib.format)."""

import ast
import os
import re
from math import prod
from pathlib import Path

from ..errors import ArchiveError, NotInPlaceError
from ..runtime.files import open_regular
from .pieces import Piece
from .tensors import MAX_DIM, StoredTensor, contiguous, feature_piece

MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}  # version -> width of the header's length
MAX_HEADER_BYTES = 10_000  # the limit of numpy.load; only structured arrays need more
MAX_AXES = 64  # NumPy's own limit
USUAL_HEADER = re.compile(
    r"\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \((0|[1-9]\d{0,11}), (0|[1-9]\d{0,8})\), \} *\n?\Z",
    re.ASCII,
)
DTYPES = {
    "<f2": ("float16", 2), "<f4": ("float32", 4), "<f8": ("float64", 8), "|b1": ("bool", 1), "|i1": ("int8", 1),
    "|u1": ("uint8", 1), "<i2": ("int16", 2), "<u2": ("uint16", 2), "<i4": ("int32", 4), "<u4": ("uint32", 4),
    "<i8": ("int64", 8), "<u8": ("uint64", 8),
}  # fmt: skip


def _read_header(path: Path) -> tuple[str, int, int]:
    """The header's text, the byte at which the values start, and the bytes of the file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12 + MAX_HEADER_BYTES)
    if head[:6] != MAGIC:
        raise ArchiveError(f"{path}: not a .npy file: it starts with {head[:6]!r}, expected {MAGIC!r}")
    version = tuple(head[6:8])
    if version not in LENGTH_BYTES:
        raise ArchiveError(f"{path}: .npy format version {list(version)}; expected one of {list(LENGTH_BYTES)}")
    start = 8 + LENGTH_BYTES[version]
    length = int.from_bytes(head[8:start], "little")
    if start + length > size:
        raise ArchiveError(f"{path}: truncated: the header claims {length} bytes but the file has {size}")
    if length > MAX_HEADER_BYTES:
        raise ArchiveError(
            f"{path}: a header of {length} bytes, expected at most {MAX_HEADER_BYTES}: it is corrupt or describes a "
            "structured array; save plain float16 or float32 features"
        )
    encoding = "utf-8" if version == (3, 0) else "latin-1"
    return head[start : start + length].decode(encoding, errors="replace"), start + length, size


def _parse_header(path: Path, text: str) -> tuple[object, bool, tuple[int, ...]]:
    """The dtype's description, whether in Fortran order, and the shape."""
    if usual := USUAL_HEADER.match(text):  # as numpy.save writes it; faster than parsing Python
        return usual[1], False, (int(usual[2]), int(usual[3]))
    try:
        header = ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        header = None
    match header:
        case {"descr": descr, "fortran_order": bool(fortran), "shape": tuple(shape)} if len(header) == 3:
            if len(shape) <= MAX_AXES and all(type(n) is int and 0 <= n <= MAX_DIM for n in shape):
                return descr, fortran, shape
    raise ArchiveError(f"{path}: corrupt .npy header: {text.strip()[:200]!r}")


def _check_dtype(path: Path, descr: object) -> tuple[str, int]:
    """NumPy's name of the dtype and the bytes of a value."""
    if isinstance(descr, str) and descr in DTYPES:
        return DTYPES[descr]
    if isinstance(descr, str) and "O" in descr:
        raise ArchiveError(f"{path}: holds pickled Python objects; refused: save an array of numbers with numpy.save")
    expected = f"{path}: the array has dtype {repr(descr)[:80]}, expected little-endian float16 '<f2' or float32 '<f4'"
    if isinstance(descr, str) and descr[1:2] == "f":
        raise NotInPlaceError(f"{expected}: convert the file with shazam_fast.convert")
    raise ArchiveError(f"{expected}: save it so with numpy.save", "dtype")


def read_tensor(path: Path) -> StoredTensor:
    """Where the array lies; numbers of any usual dtype, in C order. Reads the header only."""
    text, start, size = _read_header(path)
    descr, fortran, shape = _parse_header(path, text)
    dtype, item = _check_dtype(path, descr)
    if fortran and sum(n > 1 for n in shape) > 1:
        raise NotInPlaceError(
            f"{path}: the array is in Fortran order, column after column; save numpy.ascontiguousarray of it, or "
            "convert the file with shazam_fast.convert"
        )
    expected = start + prod(shape) * item
    if size != expected:
        kind = "truncated" if size < expected else "overlong"
        raise ArchiveError(f"{path}: {kind} file: {expected} bytes expected, {size} found")
    return StoredTensor(dtype, shape, contiguous(shape), start)


def read_piece(path: Path) -> Piece:
    """Features [rows, columns] or [1, rows, columns], float16 or float32 in C order; reads the header only."""
    return feature_piece(path, "the array", read_tensor(path))
