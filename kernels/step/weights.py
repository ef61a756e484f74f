"""Gradients of the weights of the stack and of the head, and at once their step of AdamW: no gradient is written.

Programs own tiles of the weights. What a program reads of another's tile is read from a copy that `fold_maps` made.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from ..adamw import update
from ..row_tiles import times_map


@triton.jit
def left_by_right(
    left_ptr, stride_left, right_ptr, stride_right, rows, o_i,
    D: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """left^T right over all rows, of columns `o_i` of left and D columns of right. [I, D]."""
    o_d = tl.arange(0, D)
    b_sum = tl.zeros([o_i.shape[0], D], right_ptr.dtype.element_ty)
    for r in tl.range(0, rows, BLOCK_R, num_stages=3 if D <= 256 else 2):  # as the shared memory of sm_89 allows
        o_r = r + tl.arange(0, BLOCK_R)
        m_r = o_r < rows
        b_left = tl.load(left_ptr + o_r[None, :] * stride_left + o_i[:, None], mask=m_r[None, :], other=0.0)
        b_right = tl.load(right_ptr + o_r[:, None] * stride_right + o_d[None, :], mask=m_r[:, None], other=0.0)
        b_sum = tl.dot(b_left, b_right, b_sum, input_precision=PRECISION, out_dtype=b_sum.dtype)
    return b_sum


@triton.jit
def map_gradient(
    saved_ptr, d_products_ptr, layer, half, transposed, rows, o_i,
    D: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows `o_i` of a layer's dA (half 0) or dE (half 1), or of their transposes. [I, D]."""
    saved_ptr += layer.to(tl.int64) * rows * D
    d_products_ptr += layer.to(tl.int64) * rows * 2 * D + half * D
    if transposed:
        b_g = left_by_right(d_products_ptr, 2 * D, saved_ptr, D, rows, o_i, D, BLOCK_R, PRECISION)
    else:
        b_g = left_by_right(saved_ptr, D, d_products_ptr, 2 * D, rows, o_i, D, BLOCK_R, PRECISION)
    return b_g


# dA = T^T dY, dE = T^T dV; dWq = dA Wk, dWk = dA^T Wq, dWv = dE
@triton.jit(do_not_specialize=["rows"])
def update_stack(
    saved_ptr, d_products_ptr, old_ptr, qkv_ptr, mean_ptr, square_ptr, factors_ptr, rows,
    D: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_I rows of one layer's query, key or value map.

    saved_ptr: T of every layer, [K, rows, D]. d_products_ptr: [dY | dV], [K, rows, 2D]. old_ptr: [Wq | Wk], [K, D, 2D].
    """
    o_i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    kind, layer = tl.program_id(1), tl.program_id(2)
    old_ptr += layer * 2 * D * D
    b_g = map_gradient(saved_ptr, d_products_ptr, layer, kind // 2, kind == 1, rows, o_i, D, BLOCK_R, PRECISION)
    if kind < 2:
        b_g = times_map(b_g, old_ptr + (1 - kind) * D, 2 * D, 1, BLOCK_C, BLOCK_S, PRECISION)
    offsets = layer * 3 * D * D + o_i[:, None] * 3 * D + kind * D + tl.arange(0, D)[None, :]
    update(qkv_ptr, mean_ptr, square_ptr, factors_ptr, offsets, b_g, o_i[:, None] < D)


@triton.jit(do_not_specialize=["B", "programs"])
def update_head(
    fused_ptr, normal_ptr, d_normed_ptr, d_hidden_ptr, d_logits_ptr, partial_losses_ptr, factors_ptr,
    first_ptr, first_mean_ptr, first_square_ptr, first_bias_ptr, first_bias_mean_ptr, first_bias_square_ptr,
    gain_ptr, gain_mean_ptr, gain_square_ptr, shift_ptr, shift_mean_ptr, shift_square_ptr,
    last_ptr, last_mean_ptr, last_square_ptr, last_bias_ptr, last_bias_mean_ptr, last_bias_square_ptr,
    losses_ptr, index_ptr, B, programs, D: tl.constexpr, C: tl.constexpr, TERMS: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_L: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_I hidden units; the first one also the last bias and the row of losses."""
    dtype: tl.constexpr = fused_ptr.dtype.element_ty
    o_i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    o_k = tl.arange(0, BLOCK_K)
    m_i, m_k = o_i < D, o_k < C
    b_gain, b_shift = tl.load(gain_ptr + o_i), tl.load(shift_ptr + o_i)
    b_last = tl.zeros([BLOCK_K, BLOCK_I], dtype)
    b_last_bias = tl.zeros([BLOCK_K], dtype)
    b_d_bias, b_d_gain = tl.zeros([BLOCK_I], dtype), tl.zeros([BLOCK_I], dtype)
    b_d_shift = tl.zeros([BLOCK_I], dtype)
    for r in range(0, B, BLOCK_R):
        o_r = r + tl.arange(0, BLOCK_R)
        m_r = o_r < B
        o_x = o_r[:, None] * D + o_i[None, :]
        b_n = tl.load(normal_ptr + o_x, mask=m_r[:, None], other=0.0)
        b_dy = tl.load(d_normed_ptr + o_x, mask=m_r[:, None], other=0.0)
        b_d_bias += tl.sum(tl.load(d_hidden_ptr + o_x, mask=m_r[:, None], other=0.0), axis=0)
        b_d_gain += tl.sum(b_dy * b_n, axis=0)
        b_d_shift += tl.sum(b_dy, axis=0)
        b_dz = tl.load(d_logits_ptr + o_r[None, :] * C + o_k[:, None], mask=m_r[None, :] & m_k[:, None], other=0.0)
        b_y = b_n * b_gain[None, :] + b_shift[None, :]
        b_last = tl.dot(b_dz, b_y, b_last, input_precision=PRECISION, out_dtype=dtype)
        b_last_bias += tl.sum(b_dz, axis=1)
    b_first = left_by_right(d_hidden_ptr, D, fused_ptr, D, B, o_i, D, BLOCK_R, PRECISION)
    tl.debug_barrier()  # gain and shift have been read by all warps
    o_first = o_i[:, None] * D + tl.arange(0, D)[None, :]
    update(first_ptr, first_mean_ptr, first_square_ptr, factors_ptr, o_first, b_first, m_i[:, None])
    update(first_bias_ptr, first_bias_mean_ptr, first_bias_square_ptr, factors_ptr, o_i, b_d_bias, m_i)
    update(gain_ptr, gain_mean_ptr, gain_square_ptr, factors_ptr, o_i, b_d_gain, m_i)
    update(shift_ptr, shift_mean_ptr, shift_square_ptr, factors_ptr, o_i, b_d_shift, m_i)
    o_last = o_k[:, None] * D + o_i[None, :]
    update(last_ptr, last_mean_ptr, last_square_ptr, factors_ptr, o_last, b_last, m_k[:, None])
    if tl.program_id(0) == 0:
        update(last_bias_ptr, last_bias_mean_ptr, last_bias_square_ptr, factors_ptr, o_k, b_last_bias, m_k)
        _end_step(partial_losses_ptr, losses_ptr, index_ptr, programs, TERMS, BLOCK_L)


# dW = T_n^T dz_n, db = sum of dz_n
@triton.jit(do_not_specialize=["B"])
def update_votes(
    tokens_ptr, d_votes_ptr, factors_ptr, votes_ptr, mean_ptr, square_ptr, bias_ptr, bias_mean_ptr, bias_square_ptr,
    B, N: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_I rows of one teacher's head; the first one also its bias."""
    dtype: tl.constexpr = tokens_ptr.dtype.element_ty
    teacher = tl.program_id(1)
    o_i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    o_k = tl.arange(0, BLOCK_K)
    m_k = o_k < C
    b_votes, b_bias = tl.zeros([BLOCK_I, BLOCK_K], dtype), tl.zeros([BLOCK_K], dtype)
    for r in range(0, B, BLOCK_R):
        o_r = r + tl.arange(0, BLOCK_R)
        m_r = o_r < B
        o_row = o_r.to(tl.int64) * N + teacher
        b_x = tl.load(tokens_ptr + o_row[None, :] * D + o_i[:, None], mask=m_r[None, :], other=0.0)
        b_dz = tl.load(d_votes_ptr + o_row[:, None] * C + o_k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0)
        b_votes = tl.dot(b_x, b_dz, b_votes, input_precision=PRECISION, out_dtype=dtype)
        b_bias += tl.sum(b_dz, axis=0)
    o_votes = (teacher * D + o_i[:, None]) * C + o_k[None, :]
    update(votes_ptr, mean_ptr, square_ptr, factors_ptr, o_votes, b_votes, m_k[None, :])
    m_first = m_k & (tl.program_id(0) == 0)
    update(bias_ptr, bias_mean_ptr, bias_square_ptr, factors_ptr, teacher * C + o_k, b_bias, m_first)


@triton.jit
def _end_step(partial_ptr, losses_ptr, index_ptr, programs, TERMS: tl.constexpr, BLOCK_L: tl.constexpr):
    """The sums of all partial losses into the step's row of losses, and on to the next step."""
    o_l = tl.arange(0, BLOCK_L)
    index = tl.load(index_ptr)
    b_losses = tl.zeros([BLOCK_L], losses_ptr.dtype.element_ty)
    for p in range(0, programs):
        b_losses += tl.load(partial_ptr + p * TERMS + o_l, mask=o_l < TERMS, other=0.0)
    tl.store(losses_ptr + index * TERMS + o_l, b_losses, mask=o_l < TERMS)
    tl.debug_barrier()  # all warps have read the index
    tl.store(index_ptr, index + 1)
