"""The maps of the residual stack as its kernels read them, and the step of AdamW of what they are made of.

    A = Wq Wk^T, a = Wk bq, E = Wv Wo, e = bv Wo + bo
    dWq = dA Wk, dWk = dA^T Wq + da^T bq, dWv = dE Wo^T, dWo = Wv^T dE + bv^T de
    dbq = da Wk, dbk = 0, dbv = de Wo^T, dbo = de
A map and its partner, the other one of a product, lie side by side in a copy that `fold_residual_maps` makes, since
programs that own tiles of one read all of the other: [Wq | Wk | Wv | Wo^T] and [bq | bv]. Then gradients of Wq and Wv
are (T^T dX) partner, and of Wk and Wo^T (dX^T T) partner, dX being the half of the products' gradients that is theirs.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from ..adamw import update
from ..row_tiles import times_map
from .weights import map_gradient


@triton.jit
def fold_residual_maps(
    qkv_ptr, qkv_bias_ptr, out_ptr, out_bias_ptr, maps_ptr, offsets_ptr, old_ptr, old_bias_ptr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[A | E] and [a | e], of which a program has BLOCK_R rows and twice as many numbers of one layer; the copies."""
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, D)
    layer = tl.program_id(1)
    qkv_ptr += layer * 3 * D * D
    out_ptr += layer * D * D
    q_ptrs = qkv_ptr + o_r[:, None] * 3 * D + o_d[None, :]
    o_old = layer * 4 * D * D + o_r[:, None] * 4 * D + o_d[None, :]
    o_maps = layer * 2 * D * D + o_r[:, None] * 2 * D + o_d[None, :]
    dtype = maps_ptr.dtype.element_ty

    b_q = tl.load(q_ptrs)
    tl.store(old_ptr + o_old, b_q)
    b_a = times_map(b_q, qkv_ptr + D, 1, 3 * D, BLOCK_C, BLOCK_S, PRECISION)
    tl.store(maps_ptr + o_maps, b_a.to(dtype))
    b_v = tl.load(q_ptrs + 2 * D)
    tl.store(old_ptr + o_old + 2 * D, b_v)
    b_e = times_map(b_v, out_ptr, D, 1, BLOCK_C, BLOCK_S, PRECISION)
    tl.store(maps_ptr + o_maps + D, b_e.to(dtype))

    b_k = tl.load(q_ptrs + D)
    tl.store(old_ptr + o_old + D, b_k)
    b_o = tl.load(out_ptr + o_d[None, :] * D + o_r[:, None])  # rows of Wo^T
    tl.store(old_ptr + o_old + 3 * D, b_o)
    b_bq = tl.load(qkv_bias_ptr + layer * 3 * D + o_d)
    b_bv = tl.load(qkv_bias_ptr + layer * 3 * D + 2 * D + o_d)
    o_pair = layer * 2 * D + o_r
    tl.store(offsets_ptr + o_pair, tl.sum(b_k * b_bq[None, :], axis=1))
    b_offset = tl.sum(b_o * b_bv[None, :], axis=1) + tl.load(out_bias_ptr + layer * D + o_r)
    tl.store(offsets_ptr + o_pair + D, b_offset)
    tl.store(old_bias_ptr + o_pair, tl.load(qkv_bias_ptr + layer * 3 * D + o_r))
    tl.store(old_bias_ptr + o_pair + D, tl.load(qkv_bias_ptr + layer * 3 * D + 2 * D + o_r))


@triton.jit
def _row_sums(x_ptr, stride_x, rows, o_c, BLOCK_R: tl.constexpr):
    """Columns `o_c` of x summed over all rows."""
    b_sum = tl.zeros([o_c.shape[0]], x_ptr.dtype.element_ty)
    for r in range(0, rows, BLOCK_R):
        o_r = r + tl.arange(0, BLOCK_R)
        x_ptrs = x_ptr + o_r.to(tl.int64)[:, None] * stride_x + o_c[None, :]
        b_sum += tl.sum(tl.load(x_ptrs, mask=(o_r < rows)[:, None], other=0.0), axis=0)
    return b_sum


@triton.jit(do_not_specialize=["rows", "programs"])
def update_residual_stack(
    saved_ptr, d_products_ptr, old_ptr, old_bias_ptr, d_norm_ptr, factors_ptr,
    qkv_ptr, qkv_mean_ptr, qkv_square_ptr, qkv_bias_ptr, qkv_bias_mean_ptr, qkv_bias_square_ptr,
    out_ptr, out_mean_ptr, out_square_ptr, out_bias_ptr, out_bias_mean_ptr, out_bias_square_ptr,
    gain_ptr, gain_mean_ptr, gain_square_ptr, shift_ptr, shift_mean_ptr, shift_square_ptr,
    rows, programs, D: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_I rows of one layer's Wq, Wk, Wv or Wo^T, and as many numbers of its vectors.

    saved_ptr, d_products_ptr: as for `update_stack`. d_norm_ptr: parts of the gradients of the norms' gain and shift,
    [programs, K, 2, D].
    """
    o_i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    o_d = tl.arange(0, D)
    kind, layer = tl.program_id(1), tl.program_id(2)
    half = kind // 2
    d_half_ptr = d_products_ptr + layer.to(tl.int64) * rows * 2 * D + half * D
    partner_ptr = old_ptr + layer * 4 * D * D + (kind ^ 1) * D
    b_g = map_gradient(saved_ptr, d_products_ptr, layer, half, kind % 2 == 1, rows, o_i, D, BLOCK_R, PRECISION)
    b_g = times_map(b_g, partner_ptr, 4 * D, 1, BLOCK_C, BLOCK_S, PRECISION)
    if kind % 2 == 0:
        b_sum = _row_sums(d_half_ptr, 2 * D, rows, o_d, BLOCK_R)
        b_partner = tl.load(partner_ptr + o_d[:, None] * 4 * D + o_i[None, :])
        b_db = tl.sum(b_sum[:, None] * b_partner, axis=0)
    else:
        b_db = _row_sums(d_half_ptr, 2 * D, rows, o_i, BLOCK_R)
        b_g += b_db[:, None] * tl.load(old_bias_ptr + (layer * 2 + half) * D + o_d)[None, :]
    m_i = o_i < D
    if kind == 3:
        o_out = layer * D * D + o_d[None, :] * D + o_i[:, None]
        update(out_ptr, out_mean_ptr, out_square_ptr, factors_ptr, o_out, b_g, m_i[:, None])
        update(out_bias_ptr, out_bias_mean_ptr, out_bias_square_ptr, factors_ptr, layer * D + o_i, b_db, m_i)
    else:
        if kind == 1:
            b_db *= 0.0  # scores of a row all get the same from a key bias, which the softmax does not see
            o_norm = layer * D + o_i
            b_d_gain = _row_sums(d_norm_ptr + layer * 2 * D, tl.num_programs(2) * 2 * D, programs, o_i, BLOCK_R)
            b_d_shift = _row_sums(d_norm_ptr + layer * 2 * D + D, tl.num_programs(2) * 2 * D, programs, o_i, BLOCK_R)
            update(gain_ptr, gain_mean_ptr, gain_square_ptr, factors_ptr, o_norm, b_d_gain, m_i)
            update(shift_ptr, shift_mean_ptr, shift_square_ptr, factors_ptr, o_norm, b_d_shift, m_i)
        o_qkv = layer * 3 * D * D + o_i[:, None] * 3 * D + kind * D + o_d[None, :]
        update(qkv_ptr, qkv_mean_ptr, qkv_square_ptr, factors_ptr, o_qkv, b_g, m_i[:, None])
        o_bias = layer * 3 * D + kind * D + o_i
        update(qkv_bias_ptr, qkv_bias_mean_ptr, qkv_bias_square_ptr, factors_ptr, o_bias, b_db, m_i)
