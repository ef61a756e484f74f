"""What the launchers share: checks of what a caller passes, block sizes, and limits of a compute capability.

A tile of tokens is [BLOCK_N, BLOCK_B, BLOCK_D], teachers first: Triton hands out lanes from the last axis, then
warps, so columns lie across the lanes, patches across the warps, and the teachers of a patch in one thread's
registers, where sums over teachers cost no exchange. `token_tile` chooses its sides.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

MAX_TEACHERS = 32
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Shared memory that one block may ask for, KiB per compute capability (CUDA C++ Programming Guide, "Compute
# Capabilities"). Every GPU offers 48.
_SHARED_KIB = {70: 96, 75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}


class Tile(NamedTuple):
    """Sides of a tile of tokens, all powers of two, and the warps that work on it."""

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
