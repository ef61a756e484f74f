"""Attention among the N teachers of each patch, N at most 32: one kernel forward, one backward.

A patch has at most 32 x 32 scores. Its whole softmax stays in registers, unlike in attention over long sequences, and
backward reads the stored probabilities. Tokens may be any view with neighbouring columns, such as the slices of one
[B, N, 3D] projection. The arithmetic is float32 for every narrower dtype, products included.

An absent teacher's rows are never read. Its rows of the output, its rows and columns of the attention and all its
gradients are 0.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import accumulator, mask_arguments, require_mask, require_rows, require_tokens, token_tile
from .token_tiles import tile_rows


@triton.jit
def _teachers(m_present, o_n):
    """The teachers that each patch has, one bit each. [1, BLOCK_B, 1]."""
    return tl.sum(m_present.to(tl.int32) << o_n, axis=0, keep_dims=True)


@triton.jit
def _has(b_teachers, o_n):
    """Whether a patch has teacher `o_n`."""
    return ((b_teachers >> o_n) & 1) != 0


@triton.jit
def _count(m_i, dtype: tl.constexpr):
    """How many teachers a patch has; 1 where there is no such patch."""
    return tl.maximum(tl.sum(m_i.to(dtype), axis=0, keep_dims=True), 1.0)


@triton.jit
def _column(b_x, o_j, j):
    """Column j of [.., .., BLOCK_N]."""
    return tl.sum(tl.where(o_j == j, b_x, 0.0), axis=2, keep_dims=True)


@triton.jit
def _load_row(x_ptrs, stride_x_n, b_teachers, j, o_d, D: tl.constexpr, dtype: tl.constexpr):
    """Columns `o_d` of row j of every patch, 0 where a patch lacks teacher j. [1, BLOCK_B, BLOCK_D]."""
    m_x = _has(b_teachers, j) & (o_d < D)
    return tl.load(x_ptrs + j * stride_x_n + o_d, mask=m_x, other=0.0).to(dtype)


@triton.jit
def _products(
    x_ptrs, m_x, y_ptrs, stride_y_n, b_teachers, o_j,
    N: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """x_i . y_j of the rows at `x_ptrs` and of row j of every patch at `y_ptrs`. [rows of x, BLOCK_B, BLOCK_N]."""
    b_xy = tl.zeros([x_ptrs.shape[0], x_ptrs.shape[1], o_j.shape[2]], dtype)
    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, None, :]
        b_x = tl.load(x_ptrs + o_d, mask=m_x & (o_d < D), other=0.0).to(dtype)
        for j in tl.range(0, N, loop_unroll_factor=N if N <= 8 else 1):
            b_y = _load_row(y_ptrs, stride_y_n, b_teachers, j, o_d, D, dtype)
            b_xy += tl.where(o_j == j, tl.sum(b_x * b_y, axis=2, keep_dims=True), 0.0)
    return b_xy


# S = q k^T / sqrt(D), P = softmax(S) over the present teachers
# out = W v with W = P, or with the mean over the present rows of P: the same as the mean of their outputs.
@triton.jit(do_not_specialize=["B"])
def attention_forward(
    q_ptr, k_ptr, v_ptr, present_ptr, out_ptr, attention_ptr,
    stride_q_b, stride_q_n, stride_k_b, stride_k_n, stride_v_b, stride_v_n, stride_present_b, stride_present_n,
    B,
    N: tl.constexpr, D: tl.constexpr, POOL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_B patches."""
    dtype = attention_ptr.dtype.element_ty
    o_b, o_i, m_present = tile_rows(present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_N, BLOCK_B)
    o_j = tl.arange(0, BLOCK_N)[None, None, :]
    b_teachers = _teachers(m_present, o_i)
    m_i = _has(b_teachers, o_i)  # [BLOCK_N, BLOCK_B, 1]
    m_ij = m_i & _has(b_teachers, o_j)  # [BLOCK_N, BLOCK_B, BLOCK_N]

    q_ptrs, k_ptrs = q_ptr + o_b * stride_q_b + o_i * stride_q_n, k_ptr + o_b * stride_k_b
    b_s = _products(q_ptrs, m_i, k_ptrs, stride_k_n, b_teachers, o_j, N, D, BLOCK_D, dtype) * D**-0.5
    b_max = tl.max(tl.where(m_ij, b_s, float("-inf")), axis=2, keep_dims=True)
    b_e = tl.exp(tl.where(m_ij, b_s - b_max, float("-inf")))
    b_p = b_e / tl.maximum(tl.sum(b_e, axis=2, keep_dims=True), 1.0)  # a row without any key has the sum 0
    tl.store(attention_ptr + (o_b * N + o_i) * N + o_j, b_p, mask=(o_b < B) & (o_i < N) & (o_j < N))

    b_w = b_p
    if POOL:
        b_w = tl.sum(b_p, axis=0, keep_dims=True) / _count(m_i, dtype)
    OUT_N: tl.constexpr = 1 if POOL else N
    BLOCK_OUT: tl.constexpr = 1 if POOL else BLOCK_N
    o_out = tl.arange(0, BLOCK_OUT)[:, None, None]
    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, None, :]
        b_out = tl.zeros([BLOCK_OUT, BLOCK_B, BLOCK_D], dtype)
        for j in tl.range(0, N, loop_unroll_factor=N if N <= 8 else 1):
            b_v = _load_row(v_ptr + o_b * stride_v_b, stride_v_n, b_teachers, j, o_d, D, dtype)
            b_out += _column(b_w, o_j, j) * b_v
        m_out = (o_b < B) & (o_out < OUT_N) & (o_d < D)
        tl.store(out_ptr + (o_b * OUT_N + o_out) * D + o_d, b_out.to(out_ptr.dtype.element_ty), mask=m_out)


# dW = dout v^T, dP = dW (divided by the number of rows for a mean), dS = P * (dP - rowsum(P * dP)) / sqrt(D)
# dq = dS k, dk = dS^T q, dv = W^T dout
@triton.jit(do_not_specialize=["B"])
def attention_backward(
    q_ptr, k_ptr, v_ptr, present_ptr, attention_ptr, d_out_ptr, d_attention_ptr, d_q_ptr, d_k_ptr, d_v_ptr,
    stride_q_b, stride_q_n, stride_k_b, stride_k_n, stride_v_b, stride_v_n, stride_present_b, stride_present_n,
    B,
    N: tl.constexpr, D: tl.constexpr, POOL: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_B patches."""
    OUT_N: tl.constexpr = 1 if POOL else N
    UNROLL: tl.constexpr = N if N <= 8 else 1
    BLOCK_OUT: tl.constexpr = 1 if POOL else BLOCK_N
    dtype = attention_ptr.dtype.element_ty
    o_b, o_i, m_present = tile_rows(present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_N, BLOCK_B)
    o_j = tl.arange(0, BLOCK_N)[None, None, :]
    b_teachers = _teachers(m_present, o_i)
    m_i = _has(b_teachers, o_i)  # [BLOCK_N, BLOCK_B, 1]
    m_out = (o_b < B) if POOL else m_i

    d_out_ptrs = d_out_ptr + (o_b * OUT_N + tl.arange(0, BLOCK_OUT)[:, None, None]) * D
    v_ptrs = v_ptr + o_b * stride_v_b
    b_dw = _products(d_out_ptrs, m_out, v_ptrs, stride_v_n, b_teachers, o_j, N, D, BLOCK_D, dtype)

    # Column by column: a load of so few numbers then has the layout of what uses them.
    b_p = tl.zeros([BLOCK_N, BLOCK_B, BLOCK_N], dtype)
    b_dp = tl.zeros([BLOCK_N, BLOCK_B, BLOCK_N], dtype)
    for j in tl.range(0, N, loop_unroll_factor=UNROLL):
        o_p = (o_b * N + o_i) * N + j
        m_p = m_i & _has(b_teachers, j)
        b_p += tl.where(o_j == j, tl.load(attention_ptr + o_p, mask=m_p, other=0.0), 0.0)
        if d_attention_ptr is not None:
            b_dp += tl.where(o_j == j, tl.load(d_attention_ptr + o_p, mask=m_p, other=0.0), 0.0)
    b_w = b_p
    if POOL:
        b_w = tl.sum(b_p, axis=0, keep_dims=True) / _count(m_i, dtype)
        b_dw = b_dw / _count(m_i, dtype)
    b_dp += b_dw
    b_ds = b_p * (b_dp - tl.sum(b_p * b_dp, axis=2, keep_dims=True)) * D**-0.5

    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, None, :]
        b_q = tl.load(q_ptr + o_b * stride_q_b + o_i * stride_q_n + o_d, mask=m_i & (o_d < D), other=0.0).to(dtype)
        b_dout = tl.load(d_out_ptrs + o_d, mask=m_out & (o_d < D), other=0.0).to(dtype)
        b_dq = tl.zeros([BLOCK_N, BLOCK_B, BLOCK_D], dtype)
        for j in tl.range(0, N, loop_unroll_factor=UNROLL):
            b_k = _load_row(k_ptr + o_b * stride_k_b, stride_k_n, b_teachers, j, o_d, D, dtype)
            b_ds_j = _column(b_ds, o_j, j)
            b_dq += b_ds_j * b_k
            b_dk = tl.sum(b_ds_j * b_q, axis=0, keep_dims=True)
            b_dv = tl.sum(_column(b_w, o_j, j) * b_dout, axis=0, keep_dims=True)
            m_store = (o_b < B) & (o_d < D)
            o_jd = (o_b * N + j) * D + o_d
            tl.store(d_k_ptr + o_jd, b_dk.to(d_k_ptr.dtype.element_ty), mask=m_store)
            tl.store(d_v_ptr + o_jd, b_dv.to(d_v_ptr.dtype.element_ty), mask=m_store)
        m_dq = (o_b < B) & (o_i < N) & (o_d < D)
        tl.store(d_q_ptr + (o_b * N + o_i) * D + o_d, b_dq.to(d_q_ptr.dtype.element_ty), mask=m_dq)


def _launch_forward(q: Tensor, k: Tensor, v: Tensor, present: Tensor | None, pool: bool) -> tuple[Tensor, Tensor]:
    B, N, D = q.shape
    tile = token_tile(N, D, q.element_size())
    mask, *mask_strides = mask_arguments(present)
    out = q.new_empty((B, D) if pool else (B, N, D))
    attention = q.new_empty((B, N, N), dtype=accumulator(q.dtype))
    with torch.cuda.device_of(q):
        attention_forward[(triton.cdiv(B, tile.B),)](
            q, k, v, mask, out, attention,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *mask_strides,
            B,
            N, D, pool, tile.N, tile.B, tile.D, num_warps=tile.warps,
        )  # fmt: skip
    return out, attention


def _launch_backward(
    saved: tuple[Tensor, ...], present: Tensor | None, pool: bool, d_out: Tensor, d_attention: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, attention = saved
    B, N, D = q.shape
    tile = token_tile(N, D, q.element_size())
    mask, *mask_strides = mask_arguments(present)
    d_q, d_k, d_v = (q.new_empty((B, N, D)) for _ in range(3))
    d_out = d_out.contiguous()
    d_attention = None if d_attention is None else d_attention.contiguous()
    with torch.cuda.device_of(q):
        attention_backward[(triton.cdiv(B, tile.B),)](
            q, k, v, mask, attention, d_out, d_attention, d_q, d_k, d_v,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *mask_strides,
            B,
            N, D, pool, tile.N, tile.B, tile.D, num_warps=tile.warps,
        )  # fmt: skip
    return d_q, d_k, d_v


class _TokenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, present: Tensor | None, pool: bool) -> tuple[Tensor, Tensor]:
        out, attention = _launch_forward(q, k, v, present, pool)
        ctx.save_for_backward(q, k, v, attention, present)
        ctx.pool = pool
        ctx.set_materialize_grads(False)
        return out, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_attention: Tensor | None) -> tuple[Tensor | None, ...]:
        *saved, present = ctx.saved_tensors
        if d_out is None:
            q = saved[0]
            d_out = q.new_zeros((len(q), q.shape[-1]) if ctx.pool else q.shape)
        return *_launch_backward(tuple(saved), present, ctx.pool, d_out, d_attention), None, None


def token_attention(
    q: Tensor, k: Tensor, v: Tensor, present: Tensor | None = None, pool: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention among the teachers of each patch, eqs. (2) and (3), and with `pool` their mean, eq. (4).

    Args:
        q, k, v: [B, N, D], N at most 32, columns next to each other; float32, float16, bfloat16 or float64.
        present: bool [B, N], which teachers a patch has, at least one each; None when it has all.
        pool: give the mean over the present teachers instead of all N rows.

    Returns:
        out [B, N, D], or [B, D] with `pool`, in the dtype of q, and the attention [B, N, N] in float32 (float64 for
        float64); both can be differentiated.

    Raises:
        ValueError: anything else than that, with what was expected and what was found.
    """
    B, N, D = require_tokens("q", q)
    require_rows("k", k, (B, N, D), q)
    require_rows("v", v, (B, N, D), q)
    require_mask(present, B, N, q)
    out, attention = _TokenAttention.apply(q, k, v, present, pool)
    return out, attention
