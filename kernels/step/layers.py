"""A bare stack of wide tokens, one kernel per layer and direction: forward, mean, backward.

A program of a kernel of the whole stack would read every map for its few rows: at D = 512, 2 MB per layer from the
second-level cache, whose rate to one multiprocessor then decides. Here the maps' columns are shared out, and only the
products with them: the attention of a patch, a hundredth of the work, is made again by every program that needs it.
    forward   [Y | V] = T [A | E] of a layer, with T = P V of the one before, P = softmax(Y T^T / sqrt(D)) of that
    backward  dV = P^T dZ; dS = P (dP - row sums of dP P) / sqrt(D), dP = dZ V^T; dY = dS T
              dT = dS^T Y + dY A^T + dV E^T, which is dZ of the layer before
Rows are those of `row_tiles`. Columns are read a block at a time, so nothing is as wide as D.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from ..row_tiles import identity_and_visible, mean_share, mix_rows, program_rows, row_softmax
from ..stack_kernels import load_tokens


@triton.jit
def _attention(
    saved_ptr, products_ptr, attention_ptr, o_b, o_row, m_row, m_visible, owner,
    N: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """P = softmax(Y T^T / sqrt(D)) of a layer, stored by its `owner`. [R, R]."""
    R: tl.constexpr = o_row.shape[0]
    b_s = tl.zeros([R, R], saved_ptr.dtype.element_ty)
    for d in range(0, D, BLOCK_S):
        o_d = d + tl.arange(0, BLOCK_S)
        b_y = tl.load(products_ptr + o_row[:, None] * 2 * D + o_d[None, :], mask=m_row[:, None], other=0.0)
        b_x = tl.load(saved_ptr + o_row[:, None] * D + o_d[None, :], mask=m_row[:, None], other=0.0)
        b_s = tl.dot(b_y, tl.trans(b_x), b_s, input_precision="ieee", out_dtype=b_s.dtype)
    b_p = row_softmax(b_s * D**-0.5, m_visible)
    m_p = (o_b[:, None] == o_b[None, :]) & m_row[:, None] & m_row[None, :] & owner
    tl.store(attention_ptr + o_row[:, None] * N + tl.arange(0, R)[None, :] % BLOCK_N, b_p, mask=m_p)
    return b_p


@triton.jit(do_not_specialize=["B", "layer"])
def layer_forward(
    tokens_ptr, parts_ptr, bias_ptr, factors_ptr, present_ptr, stride_present_b, stride_present_n, maps_ptr,
    saved_ptr, products_ptr, attention_ptr, B, layer,
    PARTS: tl.constexpr, MOST: tl.constexpr, N: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """T of a layer, P of the one before, and BLOCK_C columns of [Y | V] for a program's rows.

    `tokens_ptr`: in the first layer, T, see `load_tokens`; None in the others.
    saved_ptr: T of every layer, [K, rows, D]. products_ptr: [Y | V], [K, rows, 2D]. attention_ptr: P, [K, rows, N].
    """
    o_b, o_row, m_row, m_present, m_mean = program_rows(
        present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_R, BLOCK_N
    )
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    owner = tl.program_id(1) == 0
    o_n = o_row - o_b * N
    rows = B.to(tl.int64) * N
    o_here = layer * rows + o_row
    o_before = o_here - rows
    if tokens_ptr is None:
        _, m_visible = identity_and_visible(m_present, m_mean, BLOCK_R)
        before = (layer - 1) * rows
        b_p = _attention(
            saved_ptr + before * D, products_ptr + before * 2 * D, attention_ptr + before * N, o_b, o_row, m_row,
            m_visible, owner, N, D, BLOCK_N, BLOCK_S,
        )  # fmt: skip
    maps_ptr += layer * 2 * D * D
    b_y = tl.zeros([BLOCK_R, BLOCK_C], saved_ptr.dtype.element_ty)
    for d in range(0, D, BLOCK_S):
        o_d = d + tl.arange(0, BLOCK_S)
        if tokens_ptr is None:
            v_ptrs = products_ptr + o_before[:, None] * 2 * D + D + o_d[None, :]
            b_x = mix_rows(b_p, tl.load(v_ptrs, mask=m_row[:, None], other=0.0), PRECISION)
        else:
            m_x = m_row & m_present
            b_x = load_tokens(tokens_ptr, parts_ptr, bias_ptr, factors_ptr, o_b, o_n, o_d, m_x, B, PARTS, MOST, N, D)
        tl.store(saved_ptr + o_here[:, None] * D + o_d[None, :], b_x, mask=m_row[:, None] & owner)
        b_w = tl.load(maps_ptr + o_d[:, None] * 2 * D + o_c[None, :])
        b_y = tl.dot(b_x, b_w, b_y, input_precision=PRECISION, out_dtype=b_y.dtype)
    tl.store(products_ptr + o_here[:, None] * 2 * D + o_c[None, :], b_y, mask=m_row[:, None])


@triton.jit(do_not_specialize=["B", "layer"])
def last_layer(
    saved_ptr, products_ptr, attention_ptr, present_ptr, stride_present_b, stride_present_n, fused_ptr, B, layer,
    N: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """P of the last layer, and the mean of P V, eq. (4). A program has BLOCK_R rows."""
    o_b, o_row, m_row, m_present, m_mean = program_rows(
        present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_R, BLOCK_N
    )
    _, m_visible = identity_and_visible(m_present, m_mean, BLOCK_R)
    before = layer * B.to(tl.int64) * N
    products_ptr += before * 2 * D
    b_p = _attention(
        saved_ptr + before * D, products_ptr, attention_ptr + before * N, o_b, o_row, m_row, m_visible, True, N, D,
        BLOCK_N, BLOCK_S,
    )  # fmt: skip
    b_share = tl.where(m_mean, mean_share(m_present, m_mean, b_p.dtype)[None, :], 0.0)
    b_w = mix_rows(b_share, b_p, "ieee")  # all rows of a patch alike
    m_first = m_row & (o_row == o_b * N)
    for d in range(0, D, BLOCK_S):
        o_d = d + tl.arange(0, BLOCK_S)
        b_v = tl.load(products_ptr + o_row[:, None] * 2 * D + D + o_d[None, :], mask=m_row[:, None], other=0.0)
        tl.store(fused_ptr + o_b[:, None] * D + o_d[None, :], mix_rows(b_w, b_v, "ieee"), mask=m_first[:, None])


@triton.jit
def _of_result(d_fused_ptr, d_above_ptr, o_b, o_row, o_d, m_row, b_share, D: tl.constexpr):
    """Columns `o_d` of the gradient of a layer's result. [R, len(o_d)]."""
    if d_fused_ptr is not None:
        b_d = tl.load(d_fused_ptr + o_b[:, None] * D + o_d[None, :], mask=m_row[:, None], other=0.0)
        b_d *= b_share[:, None]
    else:
        b_d = tl.load(d_above_ptr + o_row[:, None] * D + o_d[None, :], mask=m_row[:, None], other=0.0)
    return b_d


@triton.jit(do_not_specialize=["B", "layer"])
def layer_backward(
    d_fused_ptr, d_above_ptr, d_targets_ptr, saved_ptr, products_ptr, attention_ptr,
    present_ptr, stride_present_b, stride_present_n, maps_ptr, d_products_ptr, d_below_ptr, B, layer,
    N: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[dY | dV] of a layer and BLOCK_C columns of dT for a program's rows.

    `d_fused_ptr`: of the last layer, whose result is the fused feature; None for the others, which have `d_above_ptr`.
    `d_targets_ptr`: gradients that tokens have as targets already, added; None: none.
    """
    o_b, o_row, m_row, m_present, m_mean = program_rows(
        present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_R, BLOCK_N
    )
    o_r = tl.arange(0, BLOCK_R)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    owner = tl.program_id(1) == 0
    m_x = m_row[:, None]
    before = layer * B.to(tl.int64) * N
    saved_ptr += before * D
    products_ptr += before * 2 * D
    d_products_ptr += before * 2 * D
    maps_ptr += layer * 2 * D * D
    m_p = (o_b[:, None] == o_b[None, :]) & m_x & m_row[None, :]
    b_p = tl.load(attention_ptr + (before + o_row[:, None]) * N + o_r[None, :] % BLOCK_N, mask=m_p, other=0.0)
    b_share = mean_share(m_present, m_mean, b_p.dtype)
    b_dp = tl.zeros([BLOCK_R, BLOCK_R], b_p.dtype)
    for d in range(0, D, BLOCK_S):
        o_d = d + tl.arange(0, BLOCK_S)
        b_dz = _of_result(d_fused_ptr, d_above_ptr, o_b, o_row, o_d, m_row, b_share, D)
        b_v = tl.load(products_ptr + o_row[:, None] * 2 * D + D + o_d[None, :], mask=m_x, other=0.0)
        b_dp = tl.dot(b_dz, tl.trans(b_v), b_dp, input_precision=PRECISION, out_dtype=b_p.dtype)
    b_ds = b_p * (b_dp - tl.sum(b_dp * b_p, axis=1)[:, None]) * D**-0.5
    b_y = tl.load(products_ptr + o_row[:, None] * 2 * D + o_c[None, :], mask=m_x, other=0.0)
    b_dx = mix_rows(tl.trans(b_ds), b_y, PRECISION)
    for d in range(0, D, BLOCK_S):
        o_d = d + tl.arange(0, BLOCK_S)
        b_x = tl.load(saved_ptr + o_row[:, None] * D + o_d[None, :], mask=m_x, other=0.0)
        b_dy = mix_rows(b_ds, b_x, PRECISION)
        b_dz = _of_result(d_fused_ptr, d_above_ptr, o_b, o_row, o_d, m_row, b_share, D)
        b_dv = mix_rows(tl.trans(b_p), b_dz, PRECISION)
        o_products = o_row[:, None] * 2 * D + o_d[None, :]
        tl.store(d_products_ptr + o_products, b_dy, mask=m_x & owner)
        tl.store(d_products_ptr + o_products + D, b_dv, mask=m_x & owner)
        w_ptrs = maps_ptr + o_c[None, :] * 2 * D + o_d[:, None]
        b_dx = tl.dot(b_dy, tl.load(w_ptrs), b_dx, input_precision=PRECISION, out_dtype=b_p.dtype)
        b_dx = tl.dot(b_dv, tl.load(w_ptrs + D), b_dx, input_precision=PRECISION, out_dtype=b_p.dtype)
    o_x = o_row[:, None] * D + o_c[None, :]
    if d_targets_ptr is not None:
        b_dx += tl.load(d_targets_ptr + o_x, mask=m_x, other=0.0)
    tl.store(d_below_ptr + o_x, b_dx, mask=m_x)
