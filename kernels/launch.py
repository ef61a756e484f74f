"""What the launchers share: checks of a caller's tensors, block sizes, and limits of a compute capability.

Kernels of one layer or of the losses take a tile of tokens [BLOCK_N, BLOCK_B, BLOCK_D], teachers first: Triton gives
the last axis to the lanes of a warp and the axis before it to the warps, so the teachers of a patch lie in one
thread's registers, where sums over teachers need no exchange. `token_tile` chooses its sides.

Kernels of a whole stack take BLOCK_R rows, see `row_tiles`. `row_blocks` chooses their blocks.

The projection takes a table whose columns are the teachers', one teacher after another.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .precision import PRECISIONS, require_precision

MAX_TEACHERS = 32  # of a patch, for kernels that take a tile of tokens
ROWS = 16  # most rows of a program of a stack kernel, so the most teachers of a patch there
FEWEST_ROWS = 4
WIDTHS = (16, 32, 64, 128, 256)  # D that stack kernels take
STEP_WIDTHS = (*WIDTHS, 512)  # D that a step of the bare student takes
PART_COLUMNS = 256  # of a part of a teacher's columns; a multiple of what a program takes at a time
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Shared memory that one block may ask for, KiB per compute capability (CUDA C++ Programming Guide, "Compute
# Capabilities"). Every GPU offers 48.
_SHARED_KIB = {70: 96, 75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}


class Tile(NamedTuple):
    """Sides of a tile of tokens, all powers of two, and the number of warps that work on it."""

    N: int
    B: int
    D: int
    warps: int


def token_tile(N: int, D: int, itemsize: int) -> Tile:
    """The tile for N teachers of width D: 16 bytes of a row per thread, whole rows of several patches if they fit.

    One width for all rows that a kernel reads lets their values meet in registers. From 8 teachers on (16-bit) or 16 on
    (32-bit) it shrinks, so that no thread holds more than 32 numbers of a tile. These kernels need next to no shared
    memory: one choice serves every compute capability.
    """
    block_n = triton.next_power_of_2(N)
    vector = max(1, min(16 // itemsize, 32 // block_n))  # columns per thread
    block_d = min(triton.next_power_of_2(D), 256 * vector)
    block_b = max(1, min(128 * vector // block_d, 2048 // block_n**2))
    threads = max(block_b * block_d // vector, block_b * block_n**2 // 16)  # 16 scores each where D is tiny
    return Tile(block_n, block_b, block_d, max(1, threads // 32))


def choose_rows(B: int, N: int, precision: str, processors: int) -> int:
    """Rows of a program of a stack kernel for B patches of N teachers on a GPU of so many multiprocessors.

    A program takes all its layers one after another, so a batch that leaves multiprocessors idle is done sooner in
    more programs of fewer rows. Tensor cores multiply 16 rows at a time: only "ieee" gains.
    """
    rows, patch = ROWS, triton.next_power_of_2(N)
    while precision == "ieee" and rows > max(patch, FEWEST_ROWS) and triton.cdiv(B, rows // patch) < processors:
        rows //= 2
    return rows


@cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; without one, in the interpreter, those of an RTX 4090."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 128


def row_blocks(N: int, D: int, precision: str, itemsize: int, rows: int = ROWS) -> dict[str, int | str]:
    """Constexprs and warps of a stack kernel for N teachers of width D in programs of `rows` rows.

    One warp per slice of a product keeps its operands small. With these blocks, kernels of 4 teachers stay within the
    99 KiB of shared memory of sm_89 under Triton 3.6 to 3.9.
    """
    ieee = precision == "ieee"
    block_c, block_s, warps = min(D, 32 if precision == "tf32" else 64), 16, min(8, D // 8)
    if D == 256:
        block_c, block_s = (16, 64) if ieee else (16, 32)
    elif D == 512:
        block_c, block_s = 8, 64
    return {
        "N": N,
        "D": D,
        "BLOCK_R": rows,
        "BLOCK_N": triton.next_power_of_2(N),
        "BLOCK_C": block_c * 4 // itemsize,
        "BLOCK_S": block_s,
        "PRECISION": PRECISIONS[precision].dot,
        "num_warps": warps,
    }


def row_launch(tokens: Tensor, precision: str) -> tuple[int, dict[str, int | str]]:
    """Programs of a stack kernel for tokens [B, N, D], and its constexprs and warps."""
    B, N, D = tokens.shape
    rows = choose_rows(B, N, precision, _processors(tokens.device))
    blocks = row_blocks(N, D, precision, tokens.itemsize, rows)
    return int(triton.cdiv(B, rows // triton.next_power_of_2(N))), blocks


def shared_memory_limit(capability: int) -> int:
    """Bytes of shared memory that one block may use."""
    return 1024 * _SHARED_KIB.get(capability, 48)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a kernel computes in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def require_rows(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise ValueError unless `x` has this shape, unit column stride, and the dtype and device of `like`."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: shape {list(shape)} expected, found {list(x.shape)}")
    if x.dtype not in DTYPES or x.dtype != like.dtype:
        wanted = like.dtype if like.dtype in DTYPES else " or ".join(map(str, DTYPES))
        raise ValueError(f"{name}: dtype {wanted} expected, found {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name}: device {like.device} expected, found {x.device}")
    if shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name}: neighbouring columns expected (stride 1), found stride {x.stride(-1)}")


def require_tokens(name: str, x: Tensor) -> tuple[int, int, int]:
    """B, N, D of tokens that the kernels take; ValueError for anything else."""
    if x.ndim != 3 or 0 in x.shape or x.shape[1] > MAX_TEACHERS:
        raise ValueError(f"{name}: [B, N, D], none 0 and N at most {MAX_TEACHERS}, expected, found {list(x.shape)}")
    B, N, D = x.shape
    require_rows(name, x, (B, N, D), x)
    return B, N, D


def require_row_tokens(tokens: Tensor, precision: str) -> tuple[int, int, int]:
    """B, N, D of tokens that stack kernels take in this precision; ValueError for anything else."""
    require_precision(precision)
    if tokens.ndim != 3 or 0 in tokens.shape or tokens.shape[1] > ROWS or tokens.shape[2] not in WIDTHS:
        wanted = f"[B, N, D] with N at most {ROWS} and D one of {WIDTHS}"
        raise ValueError(f"tokens: {wanted} expected, found {list(tokens.shape)}")
    if tokens.dtype != torch.float32 and (tokens.dtype, precision) != (torch.float64, "ieee"):
        wanted = "torch.float32, or torch.float64 with precision 'ieee',"
        raise ValueError(f"tokens: {wanted} expected, found {tokens.dtype} with {precision!r}")
    B, N, D = tokens.shape
    return B, N, D


def require_mask(present: Tensor | None, B: int, N: int, like: Tensor) -> None:
    """Raise ValueError unless `present` is None or a bool mask [B, N] on the device of `like`."""
    if present is None:
        return
    found = f"{present.dtype} {list(present.shape)} on {present.device}"
    if (present.dtype, tuple(present.shape), present.device) != (torch.bool, (B, N), like.device):
        raise ValueError(f"present: torch.bool [{B}, {N}] on {like.device} expected, found {found}")


def mask_arguments(present: Tensor | None) -> tuple[Tensor | None, int, int]:
    """A mask as kernels take it: bytes and their strides; None and zeros where every teacher is present."""
    if present is None:
        return None, 0, 0
    return present.view(torch.uint8), present.stride(0), present.stride(1)


def alignment(dims: tuple[int, ...], stride: int) -> int:
    """What every teacher's first column and the table's row stride can be divided by, at most 16.

    The kernels cannot see it in `starts`, which they read from memory. Without it they would read float16 features two
    bytes at a time instead of sixteen, and wait for each.
    """
    return math.gcd(16, stride, *dims)


@cache
def first_columns(dims: tuple[int, ...], device: torch.device) -> Tensor:
    """First column of every teacher, and the end."""
    return torch.tensor([sum(dims[:i]) for i in range(len(dims) + 1)], dtype=torch.int32, device=device)


class Parts(NamedTuple):
    """Teachers' columns cut into parts, so that a small batch has more programs; their sums are the tokens."""

    starts: Tensor  # first column of every part, and the end, int32
    teachers: Tensor  # of every part
    firsts: Tensor  # first part of every teacher, and the end
    most: int  # parts of a teacher


@cache
def cut_columns(dims: tuple[int, ...], device: torch.device) -> Parts:
    """Parts of PART_COLUMNS columns; the last of a teacher has what is left."""
    counts = [-(-dim // PART_COLUMNS) for dim in dims]
    teachers = [teacher for teacher, count in enumerate(counts) for _ in range(count)]
    offsets = [part * PART_COLUMNS for count in counts for part in range(count)]
    starts = [sum(dims[:teacher]) + offset for teacher, offset in zip(teachers, offsets, strict=True)]
    firsts = [sum(counts[:teacher]) for teacher in range(len(dims) + 1)]
    numbers = [*starts, sum(dims)], teachers, firsts
    first, second, third = (torch.tensor(x, dtype=torch.int32, device=device) for x in numbers)
    return Parts(first, second, third, max(counts))
