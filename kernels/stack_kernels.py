"""The kernels of the student's attention stack: K layers from tokens to the fused feature, forward and backward.

A program owns 16 rows: as many patches as fit, each padded to a power of two of teachers, kept apart by a
block-diagonal mask. Their tokens stay in registers through all layers while the layers' maps stream past.

Query and key maps only ever meet as Wq Wk^T, and a linear map after the values can be multiplied into theirs, so a
layer needs two D x D maps A and E, which torch makes and differentiates:
    [Y | V] = T [A | E] + [a | e],  P = softmax(Y T^T / sqrt(D)),  Z = P V = (P T) E + e
    bare      A = Wq Wk^T, E = Wv, no offsets, T <- Z                                          eqs. (2), (3)
    residual  A = Wq Wk^T, a = Wk bq, E = Wv Wo, e = bv Wo + bo, T <- LN(T + Z)
(a key bias shifts whole rows of the scores, which the softmax does not see).

Backward reads T and P of every layer, 4 (D + N) bytes per row and layer in float32. Products of a row with a D x D map,
per layer: forward 2; backward 3 (residual 4, since it makes Z again) and 2 for the gradients of A and E, which torch
takes as one batched product over all rows: no atomics, the same bits every time. Plain Q, K and V, with Q and K made
again, would take 3, 5 and 3 (residual, with V and Wo's product again too, 4, 8 and 4).
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

NORM_EPS = tl.constexpr(1e-5)


@triton.jit
def _rows(present_ptr, stride_b, stride_n, B, N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    """Patch and number of a program's rows; which exist, whose teacher is there, and of which each takes its mean."""
    o_r = tl.arange(0, BLOCK_R)
    o_b = tl.program_id(0).to(tl.int64) * (BLOCK_R // BLOCK_N) + o_r // BLOCK_N
    o_n = o_r % BLOCK_N
    m_row = (o_b < B) & (o_n < N)
    m_there = o_n < N
    if present_ptr is not None:
        m_there &= tl.load(present_ptr + o_b * stride_b + o_n * stride_n, mask=m_row, other=1) != 0
    m_mean = (o_b[:, None] == o_b[None, :]) & m_there[None, :]
    return o_b, o_b * N + o_n, m_row, m_there, m_mean


@triton.jit
def _share(m_there, m_mean, DTYPE: tl.constexpr):
    """Each row's share of its patch's mean: 1 / number of rows that are there, eq. (4)."""
    count = tl.sum(m_mean.to(tl.int32), axis=1).to(DTYPE)
    return tl.where(m_there, 1.0 / count, 0.0)


@triton.jit
def _slices(x, SLICE: tl.constexpr):
    """The columns of x [R, D] in slices, [D / SLICE, R, SLICE]."""
    return tl.permute(tl.reshape(x, [x.shape[0], x.shape[1] // SLICE, SLICE]), [1, 0, 2])


@triton.jit
def _times(x, w_ptr, stride_in, stride_out, BLOCK_C: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr):
    """x W, [R, D] by [D, D], with W streamed in blocks of BLOCK_C columns."""
    R: tl.constexpr = x.shape[0]
    D: tl.constexpr = x.shape[1]
    S: tl.constexpr = D // SLICE
    o_d = tl.arange(0, D)
    o_c = tl.arange(0, BLOCK_C)
    o_s = tl.arange(0, S)[:, None, None] * SLICE + tl.arange(0, SLICE)[None, :, None]
    w_ptrs = w_ptr + o_s * stride_in + o_c[None, None, :] * stride_out
    y = tl.zeros([R, D], dtype=x.dtype)
    x_s = _slices(x, SLICE).to(w_ptr.dtype.element_ty)
    for c in tl.range(0, D, BLOCK_C, num_stages=3):
        b_w = tl.load(w_ptrs + c * stride_out)  # [S, SLICE, BLOCK_C]
        b_y = tl.sum(tl.dot(x_s, b_w, input_precision=PRECISION, out_dtype=x.dtype), axis=0)  # [R, BLOCK_C]
        b_y = tl.reshape(tl.broadcast_to(b_y[:, None, :], [R, D // BLOCK_C, BLOCK_C]), [R, D])
        y = tl.where((o_d // BLOCK_C == c // BLOCK_C)[None, :], b_y, y)
    return y


@triton.jit
def _inner(x, y, SLICE: tl.constexpr, PRECISION: tl.constexpr):
    """x y^T, [R, D] by [D, R]; slices of D are summed last, as one long product would spill."""
    y = tl.permute(_slices(y, SLICE), [0, 2, 1])
    return tl.sum(tl.dot(_slices(x, SLICE), y, input_precision=PRECISION, out_dtype=x.dtype), axis=0)


@triton.jit
def _mix(p, x, PRECISION: tl.constexpr):
    """p x, [R, R] by [R, D] or [R, R]."""
    return tl.dot(p, x, input_precision=PRECISION, out_dtype=x.dtype)


@triton.jit
def _normalise(r):
    """(r - mean) / sqrt(var + eps) of every row, and 1 / sqrt(var + eps)."""
    D: tl.constexpr = r.shape[1]
    r -= (tl.sum(r, axis=1) / D)[:, None]
    rstd = 1.0 / tl.sqrt(tl.sum(r * r, axis=1) / D + NORM_EPS)
    return r * rstd[:, None], rstd


# T_0 = tokens; P_l = softmax((T A + a) T^T / sqrt(D)); T_l = (P_l T) E, residual LN(T + (P_l T) E + e)
# fused t = mean T_K; weights w = mean P_K ... P_1 (bare)
@triton.jit(do_not_specialize=["B", "K"])
def stack_forward(
    tokens_ptr, present_ptr, stride_present_b, stride_present_n, maps_ptr, offsets_ptr, gain_ptr, shift_ptr,
    fused_ptr, weights_ptr, saved_ptr, attention_ptr, B, K, N: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Fused feature and shares of a program's patches; T and P of every layer if there is room for them."""
    RESIDUAL: tl.constexpr = gain_ptr is not None
    G: tl.constexpr = BLOCK_R // BLOCK_N
    o_b, row, m_row, m_there, m_mean = _rows(present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_R, BLOCK_N)
    o_r = tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, D)
    o_x = row[:, None] * D + o_d[None, :]
    x = tl.load(tokens_ptr + o_x, mask=(m_row & m_there)[:, None], other=0.0)  # T, [R, D]
    share = _share(m_there, m_mean, x.dtype)
    # A row that is not there sees itself alone, so that its softmax is defined; nobody sees it.
    m_self = o_r[:, None] == o_r[None, :]
    m_sees = (m_mean & m_there[:, None]) | m_self
    m = tl.where(m_self, 1.0, 0.0).to(x.dtype)  # P_l ... P_1, [R, R]
    for layer in tl.range(0, K, num_stages=1):
        a_ptr = maps_ptr + layer * 2 * D * D
        y = _times(x, a_ptr, 2 * D, 1, BLOCK_C, SLICE, PRECISION)
        if RESIDUAL:
            y += tl.load(offsets_ptr + layer * 2 * D + o_d)[None, :]
        s = tl.where(m_sees, _inner(y, x, SLICE, "ieee") * D**-0.5, float("-inf"))
        s = tl.exp(s - tl.max(s, axis=1)[:, None])
        p = s / tl.sum(s, axis=1)[:, None]  # [R, R]
        if saved_ptr is not None:
            o_layer = layer * B.to(tl.int64) * N
            tl.store(saved_ptr + o_layer * D + o_x, x, mask=m_row[:, None])
            o_p = (o_layer + row[:, None]) * N + o_r[None, :] % BLOCK_N
            tl.store(attention_ptr + o_p, p, mask=(o_b[:, None] == o_b[None, :]) & m_row[:, None] & m_row[None, :])
        z = _times(_mix(p, x, PRECISION), a_ptr + D, 2 * D, 1, BLOCK_C, SLICE, PRECISION)
        if RESIDUAL:
            z += tl.load(offsets_ptr + layer * 2 * D + D + o_d)[None, :]
            z, _ = _normalise(x + z)
            z = z * tl.load(gain_ptr + layer * D + o_d)[None, :] + tl.load(shift_ptr + layer * D + o_d)[None, :]
        else:
            m = _mix(p, m, "ieee")
        x = z
    if weights_ptr is not None:
        tl.store(weights_ptr + row, tl.sum(share[:, None] * m, axis=0), mask=m_row)
    fused = tl.sum(tl.reshape(share[:, None] * x, [G, BLOCK_N, D]), axis=1)  # [G, D]
    o_g = tl.program_id(0).to(tl.int64) * G + tl.arange(0, G)
    tl.store(fused_ptr + o_g[:, None] * D + o_d[None, :], fused, mask=(o_g < B)[:, None])


# dZ = dT_l, residual through LN; dV = P^T dZ; dP = (dZ E^T) T^T; dS = P (dP - row sums of dP P) / sqrt(D); dY = dS T
# dT = dV E^T + dY A^T + (dS^T T) A, residual + dZ + (row sums of dS^T) a
@triton.jit(do_not_specialize=["B", "K"])
def stack_backward(
    d_fused_ptr, saved_ptr, attention_ptr, present_ptr, stride_present_b, stride_present_n, maps_ptr, offsets_ptr,
    gain_ptr, d_tokens_ptr, d_products_ptr, d_norm_ptr, B, K, N: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a program's tokens and of their products with the maps; its part of those of gain and shift."""
    RESIDUAL: tl.constexpr = gain_ptr is not None
    o_b, row, m_row, m_there, m_mean = _rows(present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_R, BLOCK_N)
    o_r = tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, D)
    o_x = row[:, None] * D + o_d[None, :]
    m_p = (o_b[:, None] == o_b[None, :]) & m_row[:, None] & m_row[None, :]
    d_x = tl.load(d_fused_ptr + o_b[:, None] * D + o_d[None, :], mask=m_row[:, None], other=0.0)
    d_x *= _share(m_there, m_mean, d_x.dtype)[:, None]  # dT, [R, D]
    for back in tl.range(0, K, num_stages=1):
        layer = K - 1 - back
        o_layer = layer * B.to(tl.int64) * N
        a_ptr = maps_ptr + layer * 2 * D * D
        e_ptr = a_ptr + D
        p = tl.load(attention_ptr + (o_layer + row[:, None]) * N + o_r[None, :] % BLOCK_N, mask=m_p, other=0.0)
        d_z = d_x
        if RESIDUAL:
            x = tl.load(saved_ptr + o_layer * D + o_x, mask=m_row[:, None], other=0.0)
            z = _times(_mix(p, x, PRECISION), e_ptr, 2 * D, 1, BLOCK_C, SLICE, PRECISION)
            z += tl.load(offsets_ptr + layer * 2 * D + D + o_d)[None, :]
            normal, rstd = _normalise(x + z)
            o_norm = (tl.program_id(0).to(tl.int64) * K + layer) * 2 * D + o_d
            tl.store(d_norm_ptr + o_norm, tl.sum(d_x * normal, axis=0))
            tl.store(d_norm_ptr + o_norm + D, tl.sum(d_x, axis=0))
            d_z *= tl.load(gain_ptr + layer * D + o_d)[None, :]
            along = tl.sum(d_z * normal, axis=1) / D
            d_z = (d_z - (tl.sum(d_z, axis=1) / D)[:, None] - normal * along[:, None]) * rstd[:, None]
        o_products = (o_layer + row[:, None]) * 2 * D + o_d[None, :]
        d_v = _mix(tl.trans(p), d_z, PRECISION)
        tl.store(d_products_ptr + o_products + D, d_v, mask=m_row[:, None])
        u = _times(d_z, e_ptr, 1, 2 * D, BLOCK_C, SLICE, PRECISION)  # dZ E^T
        # Loaded where it is needed, and again, rather than held meanwhile: registers are what is short.
        x = tl.load(saved_ptr + o_layer * D + o_x, mask=m_row[:, None], other=0.0)
        d_p = _inner(u, x, SLICE, PRECISION)
        d_s = p * (d_p - tl.sum(d_p * p, axis=1)[:, None]) * D**-0.5  # [R, R]
        d_x = _mix(tl.trans(p), u, PRECISION)
        if RESIDUAL:
            d_x += d_z + tl.sum(d_s, axis=0)[:, None] * tl.load(offsets_ptr + layer * 2 * D + o_d)[None, :]
        d_y = _mix(d_s, x, PRECISION)
        tl.store(d_products_ptr + o_products, d_y, mask=m_row[:, None])
        d_x += _times(d_y, a_ptr, 1, 2 * D, BLOCK_C, SLICE, PRECISION)
        d_k = _mix(tl.trans(d_s), x, PRECISION)
        d_x += _times(d_k, a_ptr, 2 * D, 1, BLOCK_C, SLICE, PRECISION)
    tl.store(d_tokens_ptr + o_x, d_x, mask=m_row[:, None])
