"""The folded bare stack for scoring on tensor cores: tokens and score maps in two float16 parts, three products each.

    x y = (x_high + x_low) (y_high + y_low) without x_low y_low, which is below what float32 keeps
A row of tokens has a power of two of its own. The products of the tokens of one patch with each other are taken out of
those of all rows of a program, so that no patch can spoil another. The N x N recurrence is float32.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import ROWS, mask_arguments, require_mask, require_row_tokens
from ..row_tiles import store_patch_sums
from .split import Halves

PROGRAM_ROWS = 2 * ROWS  # of a program; its maps are read from the second-level cache, half as often as for ROWS


@triton.jit
def _row_units(b_x):
    """Powers of two that bring each row's largest value to [2^14, 2^15), and their inverses. [R] each."""
    b_exponent = tl.max(tl.abs(b_x), axis=1).to(tl.int32, bitcast=True) >> 23
    b_exponent = tl.minimum(tl.maximum(b_exponent, 15), 253)  # where both powers are normal numbers
    b_up = ((268 - b_exponent) << 23).to(tl.float32, bitcast=True)
    return b_up, ((b_exponent - 14) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _halves(b_x):
    """x in two float16 parts."""
    b_high = b_x.to(tl.float16)
    return b_high, (b_x - b_high.to(tl.float32)).to(tl.float16)


@triton.jit
def _times(b_high, b_low, b_other_high, b_other_low):
    """(high + low) (other_high + other_low) without the product of both low parts, the small products first."""
    return tl.dot(b_high, b_other_high, tl.dot(b_high, b_other_low, tl.dot(b_low, b_other_high)))


@triton.jit
def _layer_scores(
    b_high, b_low, b_up, tokens_ptrs, m_x, high_ptrs, low_ptrs, D: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """(T B_l) T^T of all rows, with T times `b_up` and B_l over its unit. [R, R]."""
    R: tl.constexpr = b_high.shape[0]
    o_d = tl.arange(0, D)
    o_c = tl.arange(0, BLOCK_C)
    b_s = tl.zeros([R, R], tl.float32)
    for c in tl.range(0, D, BLOCK_C, num_stages=2):
        o_map = o_d[:, None] * D + c + o_c[None, :]
        b_y = _times(b_high, b_low, tl.load(high_ptrs + o_map), tl.load(low_ptrs + o_map))  # T B_l, [R, BLOCK_C]
        b_y_up, b_y_unit = _row_units(b_y)
        b_y_high, b_y_low = _halves(b_y * b_y_up[:, None])
        b_x = tl.load(tokens_ptrs + c + o_c[None, :], mask=m_x, other=0.0) * b_up[:, None]
        b_x_high, b_x_low = _halves(b_x)
        b_s += _times(b_y_high, b_y_low, tl.trans(b_x_high), tl.trans(b_x_low)) * b_y_unit[:, None]
    return b_s


@triton.jit
def _own_products(b_s, BLOCK_N: tl.constexpr):
    """Of [R, R] the entries whose row and column belong to one patch. [patches, BLOCK_N, BLOCK_N]."""
    P: tl.constexpr = b_s.shape[0] // BLOCK_N
    o_p = tl.arange(0, P)
    m_own = o_p[:, None, None, None] == o_p[None, None, :, None]
    return tl.sum(tl.where(m_own, tl.reshape(b_s, [P, BLOCK_N, P, BLOCK_N]), 0.0), axis=2)


@triton.jit
def _product(b_x, b_y):
    """x y of every patch, [P, N, N] each."""
    return tl.sum(b_x[:, :, :, None] * b_y[:, None, :, :], axis=2)


# M_0 = I; S_l = M_{l-1} (T B_l T^T) M_{l-1}^T; M_l = softmax(S_l) M_{l-1}; w = mean M_K; pooled = w T
@triton.jit(do_not_specialize=["B", "K"])
def folded_in_halves(
    tokens_ptr, present_ptr, stride_present_b, stride_present_n, high_ptr, low_ptr, units_ptr, pooled_ptr, shares_ptr,
    B, K, N: tl.constexpr, D: tl.constexpr, R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pooled token and teacher shares of a program's patches: R rows, each patch padded to BLOCK_N of them."""
    P: tl.constexpr = R // BLOCK_N
    o_r = tl.arange(0, R)
    o_b, o_n = tl.program_id(0).to(tl.int64) * P + o_r // BLOCK_N, o_r % BLOCK_N
    m_row, m_there = (o_b < B) & (o_n < N), o_n < N
    if present_ptr is not None:  # rows of patches beyond the last count as present: nothing divides by 0
        m_there &= tl.load(present_ptr + o_b * stride_present_b + o_n * stride_present_n, mask=m_row, other=1) != 0
    tokens_ptrs = tokens_ptr + (o_b * N + o_n)[:, None] * D
    m_x = (m_row & m_there)[:, None]
    o_d = tl.arange(0, D)
    b_x = tl.load(tokens_ptrs + o_d[None, :], mask=m_x, other=0.0)  # T, [R, D]
    b_up, b_unit = _row_units(b_x)
    b_high, b_low = _halves(b_x * b_up[:, None])
    b_row_unit = tl.reshape(b_unit, [P, BLOCK_N])
    m_there = tl.reshape(m_there, [P, BLOCK_N])
    o_i = tl.arange(0, BLOCK_N)
    m_identity = (o_i[:, None] == o_i[None, :])[None, :, :]
    m_visible = (m_there[:, :, None] & m_there[:, None, :]) | m_identity  # an absent teacher's row is its own
    b_m = tl.where(tl.broadcast_to(m_identity, [P, BLOCK_N, BLOCK_N]), 1.0, 0.0)  # M_l
    for layer in tl.range(0, K, num_stages=1):
        o_layer = layer * D * D
        b_s = _layer_scores(
            b_high, b_low, b_up, tokens_ptrs, m_x, high_ptr + o_layer, low_ptr + o_layer, D, BLOCK_C
        )  # fmt: skip
        b_s = _own_products(b_s, BLOCK_N) * (b_row_unit * tl.load(units_ptr + layer))[:, :, None]
        b_s = _product(b_m, b_s * b_row_unit[:, None, :])
        b_s = tl.sum(b_s[:, :, None, :] * b_m[:, None, :, :], axis=3)
        b_s = tl.where(m_visible, b_s, float("-inf"))
        b_p = tl.exp(b_s - tl.max(b_s, axis=2)[:, :, None])
        b_m = _product(b_p / tl.sum(b_p, axis=2)[:, :, None], b_m)
    b_share = tl.where(m_there, 1.0, 0.0) / tl.sum(m_there.to(tl.float32), axis=1)[:, None]  # of the mean, eq. (4)
    b_w = tl.reshape(tl.sum(b_share[:, :, None] * b_m, axis=1), [R])
    tl.store(shares_ptr + o_b * N + o_n, b_w, mask=m_row)
    b_x = tl.load(tokens_ptrs + o_d[None, :], mask=m_x, other=0.0)  # again: kept until here they would take registers
    store_patch_sums(pooled_ptr, b_w[:, None] * b_x, B, BLOCK_N)


def blocks(N: int, D: int) -> dict[str, int]:
    """Constexprs and warps for N teachers of width D; with fewer warps or more columns at a time it would spill."""
    block_n = triton.next_power_of_2(N)
    warps = 8 if block_n > 4 else 4
    return {"N": N, "D": D, "R": PROGRAM_ROWS, "BLOCK_N": block_n, "BLOCK_C": min(D, 32), "num_warps": warps}


@torch.no_grad()
def folded_stack(tokens: Tensor, score_maps: Halves, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `folded_scoring.folded_stack`, with score maps in two parts, [K*D, D], the layers one below the other.

    Args:
        tokens: float32 [B, N, D], N at most 16, D one of 16, 32, 64, 128.
        score_maps: all B_l.
        present: bool [B, N], at least one each; None when every teacher is there.

    Raises:
        ValueError: anything else than that, with what was expected and what was found.
    """
    B, N, D = require_row_tokens(tokens, "tf32")
    high, low, units = score_maps
    if tuple(high.shape) != (len(units) * D, D):
        raise ValueError(f"score_maps: [{len(units)} * {D}, {D}] expected, found {list(high.shape)}")
    require_mask(present, B, N, tokens)
    pooled, shares = tokens.new_empty(B, D), tokens.new_empty(B, N)
    options: dict[str, Any] = blocks(N, D)
    programs = triton.cdiv(B, options["R"] // options["BLOCK_N"])
    with torch.cuda.device_of(tokens):
        folded_in_halves[(programs,)](
            tokens.contiguous(), *mask_arguments(present), high, low, units, pooled, shares, B, len(units), **options
        )
    return pooled, shares
