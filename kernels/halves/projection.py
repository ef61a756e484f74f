"""Eq. (1) for scoring, from float16 features as they are stored: two products on tensor cores per block of columns.

    T_i = sum over blocks of (F (high + low) unit - mean W) + b_i
The features' means are subtracted block by block, as their part of the token, so that sums stay about as small as those
of features from which the mean was subtracted first. A block's product is a sum of its own, added in float32: what
tensor cores cut off of a sum is cut off of a block's, not of the token's.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import alignment, first_columns, mask_arguments, require_mask, require_rows
from .split import BLOCK, TokenHalves


@triton.jit(do_not_specialize=["B"])
def projection_in_halves(
    features_ptr, stride_features, present_ptr, stride_present_b, stride_present_n, starts_ptr, blocks_ptr,
    high_ptr, low_ptr, units_ptr, means_ptr, bias_ptr, tokens_ptr,
    B, N: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_B patches, one teacher and BLOCK_D columns of its token.

    `starts_ptr`, `blocks_ptr`: the first column and the first block of each teacher; BLOCK_C columns are a block.
    """
    teacher = tl.program_id(1)
    o_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    o_d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_b, m_d = o_b < B, o_d < D
    m_row = m_b
    if present_ptr is not None:
        o_present = o_b.to(tl.int64) * stride_present_b + teacher * stride_present_n
        m_row &= tl.load(present_ptr + o_present, mask=m_b, other=0) != 0
    features_ptrs = features_ptr + o_b.to(tl.int64)[:, None] * stride_features
    start = tl.multiple_of(tl.load(starts_ptr + teacher), ALIGN)
    stop = tl.multiple_of(tl.load(starts_ptr + teacher + 1), ALIGN)
    first = tl.load(blocks_ptr + teacher)
    b_tokens = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for c in tl.range(start, stop, BLOCK_C, num_stages=3):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = o_c < stop
        block = first + (c - start) // BLOCK_C
        o_w, m_w = o_c[:, None] * D + o_d[None, :], m_c[:, None] & m_d[None, :]
        b_x = tl.load(features_ptrs + o_c[None, :], mask=m_row[:, None] & m_c[None, :], other=0.0)
        b_low = tl.load(low_ptr + o_w, mask=m_w, other=0.0)
        b_high = tl.load(high_ptr + o_w, mask=m_w, other=0.0)
        b_mean = tl.load(means_ptr + block * D + o_d, mask=m_d, other=0.0)
        b_block = tl.dot(b_x, b_high, tl.dot(b_x, b_low))
        b_tokens += b_block * tl.load(units_ptr + block) - b_mean[None, :]
    b_tokens = tl.where(m_row[:, None], b_tokens, 0.0)
    b_tokens += tl.load(bias_ptr + teacher * D + o_d, mask=m_d, other=0.0)[None, :]
    o_tokens = (o_b.to(tl.int64) * N + teacher)[:, None] * D + o_d[None, :]
    tl.store(tokens_ptr + o_tokens, b_tokens, mask=m_b[:, None] & m_d[None, :])


def blocks(D: int) -> dict[str, int]:
    """Constexprs and warps for width D: all of a token in one program where it fits, so that features are read once."""
    block_d = min(max(16, triton.next_power_of_2(D)), 128)
    return {"BLOCK_B": 128, "BLOCK_C": BLOCK, "BLOCK_D": block_d, "num_warps": 8 if block_d >= 64 else 4}


@cache
def first_blocks(dims: tuple[int, ...], device: torch.device) -> Tensor:
    """First block of every teacher."""
    counts = [-(-dim // BLOCK) for dim in dims]
    return torch.tensor([sum(counts[:i]) for i in range(len(dims))], dtype=torch.int32, device=device)


@torch.no_grad()
def project(features: Tensor, maps: TokenHalves, present: Tensor | None = None) -> Tensor:
    """Every teacher's columns through its own map in two parts: tokens float32 [B, N, D]; for inference, no gradient.

    Args:
        features: float16 [B, sum of dims], columns next to each other.
        maps: the maps.
        present: bool [B, N]; an absent teacher's features may hold anything, and its token is its bias.

    Raises:
        ValueError: anything else than that, with what was expected and what was found.
    """
    (high, low, units), means, bias, dims = maps
    B, (N, D) = len(features), bias.shape
    require_rows("features", features, (B, sum(dims)), high)
    require_mask(present, B, N, features)
    tokens = bias.new_empty(B, N, D)
    options: dict[str, Any] = blocks(D)
    grid = (triton.cdiv(B, options["BLOCK_B"]), N, triton.cdiv(D, options["BLOCK_D"]))
    with torch.cuda.device_of(features):
        projection_in_halves[grid](
            features, features.stride(0), *mask_arguments(present), first_columns(dims, features.device),
            first_blocks(dims, features.device), high, low, units, means, bias.contiguous(), tokens,
            B, N, D, alignment(dims, features.stride(0)), **options,
        )  # fmt: skip
    return tokens
