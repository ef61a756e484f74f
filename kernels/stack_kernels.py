"""The kernels of the student's attention stack: K layers from tokens to the fused feature, forward and backward.

A program has 4 to 16 rows: as many patches as fit, each padded to a power of two of teachers, kept apart by masks.
Their tokens stay in registers through all layers; the layers' maps are read block by block.

Query and key maps are only ever used as Wq Wk^T, and a linear map after the values can be multiplied into theirs, so
a layer needs two D x D maps A and E, which torch makes and differentiates:
    [Y | V] = T [A | E] + [a | e],  P = softmax(Y T^T / sqrt(D)),  Z = P V = (P T) E + e
    bare      A = Wq Wk^T, E = Wv, no offsets, T <- Z                                          eqs. (2), (3)
    residual  A = Wq Wk^T, a = Wk bq, E = Wv Wo, e = bv Wo + bo, T <- LN(T + Z)
(a key bias adds the same number to all scores of a row, which the softmax does not change).

Backward reads T and P of every layer, 4 (D + N) bytes per row and layer in float32. Products of a row with a D x D map,
per layer: forward 2; backward 3 (residual 4, since it makes Z again) and 2 for the gradients of A and E, which torch
takes as one batched product over all rows: no atomics, the same bits every time. Plain Q, K and V, with Q and K made
again, would take 3, 5 and 3 (residual, with V and Wo's product again too, 4, 8 and 4).
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from .row_tiles import (
    identity_and_visible,
    inner_products,
    mean_share,
    mix_rows,
    program_rows,
    row_softmax,
    standardise_back,
    standardise_rows,
    store_patch_sums,
    times_map,
)


@triton.jit
def _sum_of_parts(
    tokens_ptr, parts_ptr, bias_ptr, o_b, o_n, o_d, m_x,
    PARTS: tl.constexpr, MOST: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Columns `o_d` of the tokens of teachers `o_n` of patches `o_b`, 0 where `m_x` says so."""
    if parts_ptr is None:
        b_x = tl.load(tokens_ptr + (o_b * N + o_n)[:, None] * D + o_d[None, :], mask=m_x[:, None], other=0.0)
    else:
        b_x = tl.load(bias_ptr + o_n[:, None] * D + o_d[None, :], mask=m_x[:, None], other=0.0)
        o_part = tl.load(parts_ptr + o_n, mask=m_x, other=0)
        o_end = tl.load(parts_ptr + o_n + 1, mask=m_x, other=0)
        for _ in range(0, MOST):
            o_tokens = (o_b * PARTS + o_part)[:, None] * D + o_d[None, :]
            b_x += tl.load(tokens_ptr + o_tokens, mask=(m_x & (o_part < o_end))[:, None], other=0.0)
            o_part += 1
    return b_x


@triton.jit
def load_tokens(
    tokens_ptr, parts_ptr, bias_ptr, factors_ptr, o_b, o_n, o_d, m_x, B,
    PARTS: tl.constexpr, MOST: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Columns `o_d` of the tokens of teachers `o_n` of patches `o_b`, 0 where `m_x` says so. [len(o_b), len(o_d)].

    `parts_ptr`: the first part of each teacher, and the end; then a token is its teacher's bias and the sum of its
    parts, at most MOST of PARTS. `factors_ptr`: with it, a patch's token is factors[3] of its own and factors[4] of
    that of the patch at the same distance from the batch's other end.
    """
    b_x = _sum_of_parts(tokens_ptr, parts_ptr, bias_ptr, o_b, o_n, o_d, m_x, PARTS, MOST, N, D)
    if factors_ptr is not None:
        b_other = _sum_of_parts(tokens_ptr, parts_ptr, bias_ptr, B - 1 - o_b, o_n, o_d, m_x, PARTS, MOST, N, D)
        b_x = tl.load(factors_ptr + 3) * b_x + tl.load(factors_ptr + 4) * b_other
    return b_x


# T_0 = tokens; P_l = softmax((T A + a) T^T / sqrt(D)); T_l = (P_l T) E, residual LN(T + (P_l T) E + e)
# fused t = mean T_K; shares w = mean P_K ... P_1 (bare)
@triton.jit(do_not_specialize=["B", "K"])
def stack_forward(
    tokens_ptr, present_ptr, stride_present_b, stride_present_n, maps_ptr, offsets_ptr, gain_ptr, shift_ptr,
    factors_ptr, parts_ptr, bias_ptr, fused_ptr, shares_ptr, saved_ptr, attention_ptr,
    B, K, PARTS: tl.constexpr, MOST: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fused feature and teacher shares of a program's patches; T and P of every layer where they are kept.

    `factors_ptr`, `parts_ptr`: whether tokens are mixed, and come in parts, see `load_tokens`.
    """
    o_b, o_row, m_row, m_present, m_mean = program_rows(
        present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_R, BLOCK_N
    )
    o_r = tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, D)
    o_x = o_row[:, None] * D + o_d[None, :]
    o_n = o_row - o_b * N
    m_x = m_row & m_present
    b_x = load_tokens(
        tokens_ptr, parts_ptr, bias_ptr, factors_ptr, o_b, o_n, o_d, m_x, B, PARTS, MOST, N, D
    )  # T, [R, D]
    b_share = mean_share(m_present, m_mean, b_x.dtype)
    m_identity, m_visible = identity_and_visible(m_present, m_mean, BLOCK_R)
    b_m = tl.where(m_identity, 1.0, 0.0).to(b_x.dtype)  # P_l ... P_1, [R, R]
    RESIDUAL: tl.constexpr = gain_ptr is not None
    for layer in tl.range(0, K, num_stages=1):
        a_ptr = maps_ptr + layer * 2 * D * D
        b_y = times_map(b_x, a_ptr, 2 * D, 1, BLOCK_C, BLOCK_S, PRECISION)
        if RESIDUAL:
            b_y += tl.load(offsets_ptr + layer * 2 * D + o_d)[None, :]
        b_p = row_softmax(inner_products(b_y, b_x, BLOCK_S, "ieee") * D**-0.5, m_visible)
        if saved_ptr is not None:
            o_layer = layer * B.to(tl.int64) * N
            tl.store(saved_ptr + o_layer * D + o_x, b_x, mask=m_row[:, None])
            o_p = (o_layer + o_row[:, None]) * N + o_r[None, :] % BLOCK_N
            tl.store(attention_ptr + o_p, b_p, mask=(o_b[:, None] == o_b[None, :]) & m_row[:, None] & m_row[None, :])
        b_z = times_map(mix_rows(b_p, b_x, PRECISION), a_ptr + D, 2 * D, 1, BLOCK_C, BLOCK_S, PRECISION)
        if RESIDUAL:
            b_z += tl.load(offsets_ptr + layer * 2 * D + D + o_d)[None, :]
            b_z, _ = standardise_rows(b_x + b_z)
            b_z *= tl.load(gain_ptr + layer * D + o_d)[None, :]
            b_z += tl.load(shift_ptr + layer * D + o_d)[None, :]
        else:
            b_m = mix_rows(b_p, b_m, "ieee")
        b_x = b_z
    if shares_ptr is not None:
        tl.store(shares_ptr + o_row, tl.sum(b_share[:, None] * b_m, axis=0), mask=m_row)
    store_patch_sums(fused_ptr, b_share[:, None] * b_x, B, BLOCK_N)


# dZ = dT_l, residual through LN; dV = P^T dZ; dP = (dZ E^T) T^T; dS = P (dP - row sums of dP P) / sqrt(D); dY = dS T
# dT = dV E^T + dY A^T + (dS^T T) A, residual + dZ + (row sums of dS^T) a
@triton.jit(do_not_specialize=["B", "K"])
def stack_backward(
    d_fused_ptr, d_targets_ptr, saved_ptr, attention_ptr,
    present_ptr, stride_present_b, stride_present_n, maps_ptr, offsets_ptr, gain_ptr,
    d_tokens_ptr, d_products_ptr, d_norm_ptr,
    B, K, N: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a program's tokens and of their products with the maps; its part of those of gain and shift.

    `d_targets_ptr`: gradients that tokens have as targets already, added to those of the tokens; None: none.
    """
    RESIDUAL: tl.constexpr = gain_ptr is not None
    o_b, o_row, m_row, m_present, m_mean = program_rows(
        present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_R, BLOCK_N
    )
    o_r = tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, D)
    o_x = o_row[:, None] * D + o_d[None, :]
    m_p = (o_b[:, None] == o_b[None, :]) & m_row[:, None] & m_row[None, :]
    b_dx = tl.load(d_fused_ptr + o_b[:, None] * D + o_d[None, :], mask=m_row[:, None], other=0.0)
    b_dx *= mean_share(m_present, m_mean, b_dx.dtype)[:, None]  # dT, [R, D]
    for back in tl.range(0, K, num_stages=1):
        layer = K - 1 - back
        o_layer = layer * B.to(tl.int64) * N
        a_ptr = maps_ptr + layer * 2 * D * D
        e_ptr = a_ptr + D
        b_p = tl.load(attention_ptr + (o_layer + o_row[:, None]) * N + o_r[None, :] % BLOCK_N, mask=m_p, other=0.0)
        b_dz = b_dx
        if RESIDUAL:
            b_x = tl.load(saved_ptr + o_layer * D + o_x, mask=m_row[:, None], other=0.0)
            b_z = times_map(mix_rows(b_p, b_x, PRECISION), e_ptr, 2 * D, 1, BLOCK_C, BLOCK_S, PRECISION)
            b_z += tl.load(offsets_ptr + layer * 2 * D + D + o_d)[None, :]
            b_normal, b_rstd = standardise_rows(b_x + b_z)
            o_norm = (tl.program_id(0).to(tl.int64) * K + layer) * 2 * D + o_d
            tl.store(d_norm_ptr + o_norm, tl.sum(b_dx * b_normal, axis=0))
            tl.store(d_norm_ptr + o_norm + D, tl.sum(b_dx, axis=0))
            b_dz *= tl.load(gain_ptr + layer * D + o_d)[None, :]
            b_dz = standardise_back(b_dz, b_normal, b_rstd)
        o_products = (o_layer + o_row[:, None]) * 2 * D + o_d[None, :]
        b_dv = mix_rows(tl.trans(b_p), b_dz, PRECISION)
        tl.store(d_products_ptr + o_products + D, b_dv, mask=m_row[:, None])
        b_u = times_map(b_dz, e_ptr, 1, 2 * D, BLOCK_C, BLOCK_S, PRECISION)  # dZ E^T
        # T is read again where it is needed: keeping it in registers until here would spill.
        b_x = tl.load(saved_ptr + o_layer * D + o_x, mask=m_row[:, None], other=0.0)
        b_dp = inner_products(b_u, b_x, BLOCK_S, PRECISION)
        b_ds = b_p * (b_dp - tl.sum(b_dp * b_p, axis=1)[:, None]) * D**-0.5  # [R, R]
        b_dx = mix_rows(tl.trans(b_p), b_u, PRECISION)
        if RESIDUAL:
            b_dx += b_dz + tl.sum(b_ds, axis=0)[:, None] * tl.load(offsets_ptr + layer * 2 * D + o_d)[None, :]
        b_dy = mix_rows(b_ds, b_x, PRECISION)
        tl.store(d_products_ptr + o_products, b_dy, mask=m_row[:, None])
        b_dx += times_map(b_dy, a_ptr, 1, 2 * D, BLOCK_C, BLOCK_S, PRECISION)
        b_dk = mix_rows(tl.trans(b_ds), b_x, PRECISION)
        b_dx += times_map(b_dk, a_ptr, 2 * D, 1, BLOCK_C, BLOCK_S, PRECISION)
    if d_targets_ptr is not None:
        b_dx += tl.load(d_targets_ptr + o_x, mask=m_row[:, None], other=0.0)
    tl.store(d_tokens_ptr + o_x, b_dx, mask=m_row[:, None])


# M_0 = I; S_l = M_{l-1} (T B_l T^T) M_{l-1}^T; M_l = softmax(S_l) M_{l-1}; w = mean M_K; pooled = w T
@triton.jit(do_not_specialize=["B", "K"])
def folded_forward(
    tokens_ptr, present_ptr, stride_present_b, stride_present_n, maps_ptr, pooled_ptr, shares_ptr, B, K,
    N: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Pooled token and teacher shares of a program's patches, for `folded_scoring`."""
    _, o_row, m_row, m_present, m_mean = program_rows(
        present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_R, BLOCK_N
    )
    o_d = tl.arange(0, D)
    m_x = (m_row & m_present)[:, None]
    b_x = tl.load(tokens_ptr + o_row[:, None] * D + o_d[None, :], mask=m_x, other=0.0)  # T, [R, D]
    m_identity, m_visible = identity_and_visible(m_present, m_mean, BLOCK_R)
    b_m = tl.where(m_identity, 1.0, 0.0).to(b_x.dtype)  # M_l, [R, R]
    for layer in tl.range(0, K, num_stages=1):
        b_y = times_map(b_x, maps_ptr + layer * D, K * D, 1, BLOCK_C, BLOCK_S, PRECISION)  # T B_l
        b_s = mix_rows(b_m, inner_products(b_y, b_x, BLOCK_S, "ieee"), "ieee")
        b_p = row_softmax(mix_rows(b_s, tl.trans(b_m), "ieee"), m_visible)
        b_m = mix_rows(b_p, b_m, "ieee")
    b_w = tl.sum(mean_share(m_present, m_mean, b_x.dtype)[:, None] * b_m, axis=0)  # [R]
    tl.store(shares_ptr + o_row, b_w, mask=m_row)
    store_patch_sums(pooled_ptr, b_w[:, None] * b_x, B, BLOCK_N)
