"""The cosine and Huber distillation losses of all N teachers, eqs. (5)-(7): one pass forward, one backward.

Forward reads the tokens once, reduces each pair (t, T_i) to its two losses and keeps the three or four numbers
that the gradients are linear in; backward reads the tokens once more and writes both gradients. Counted in token
rows of D numbers, a patch costs
    this                                            (N + 1) read forward, (N + 1) read + (N + 1) written backward
    gradients in forward, scaled in backward        (N + 1) read + (N + 1) written in either
3 (N + 1) against 4 (N + 1) rows: 7.5 against 10 KiB per patch at N = 4, D = 128 in float32, and 16 N bytes for what
is kept. The second way would come down to 2 (N + 1) only if the upstream gradient were known to be 1 before any
kernel runs. It would also hold (N + 1) rows per patch until backward, and in float16 it would round lam / B times a
gradient before the loss scale lifts it out of the subnormal range. So forward leaves the gradients to backward.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import accumulator, mask_arguments, require_mask, require_rows, require_tokens, token_tile
from .reference import EPSILON
from .token_tiles import tile_rows

HUBERS = ("norm", "elementwise")
FLOOR = tl.constexpr(EPSILON**2)  # squared norms below this count as this


# L_cos = 1 - c, c = t.T / (|t| |T|)
# L_hub = r^2 / 2 if r <= delta, else delta r - delta^2 / 2, with r = |t - T|; or the mean of that over the elements
# Kept: a = 1 / (|t| |T|), c / |t|^2, c / |T|^2 (0 where the norm is at its floor), h = min(1, delta / r).
@triton.jit(do_not_specialize=["B"])
def distillation_forward(
    fused_ptr, targets_ptr, present_ptr, losses_ptr, kept_ptr,
    stride_fused_b, stride_targets_b, stride_targets_n, stride_present_b, stride_present_n,
    B, lam, delta, delta_squared,
    N: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_B patches and a row of partial sums: N cosine losses, N Huber losses, lam times their sum."""
    dtype = losses_ptr.dtype.element_ty
    o_b, o_n, m_n = tile_rows(present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_N, BLOCK_B)

    b_tt = tl.zeros([1, BLOCK_B, 1], dtype)  # |t|^2
    b_TT = tl.zeros([BLOCK_N, BLOCK_B, 1], dtype)  # |T|^2
    b_tT = tl.zeros([BLOCK_N, BLOCK_B, 1], dtype)  # t.T
    b_far = tl.zeros([BLOCK_N, BLOCK_B, 1], dtype)  # r^2, or the elements' Huber losses
    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, None, :]
        b_t = tl.load(fused_ptr + o_b * stride_fused_b + o_d, mask=(o_b < B) & (o_d < D), other=0.0).to(dtype)
        b_T = tl.load(
            targets_ptr + o_b * stride_targets_b + o_n * stride_targets_n + o_d, mask=m_n & (o_d < D), other=0.0
        ).to(dtype)
        b_x = b_t - b_T
        b_near = b_x if NORM else tl.minimum(tl.maximum(b_x, -delta), delta)
        b_tt += tl.sum(b_t * b_t, axis=2, keep_dims=True)
        b_TT += tl.sum(b_T * b_T, axis=2, keep_dims=True)
        b_tT += tl.sum(b_t * b_T, axis=2, keep_dims=True)
        b_far += tl.sum(b_near * b_x if NORM else b_near * (b_x - 0.5 * b_near), axis=2, keep_dims=True)

    b_floor = tl.full([1, 1, 1], FLOOR, dtype)  # before Triton 3.9, tl.maximum would take a plain number as float32
    b_tt_floored = tl.maximum(b_tt, b_floor)
    b_TT_floored = tl.maximum(b_TT, b_floor)
    b_a = 1.0 / (tl.sqrt(b_tt_floored) * tl.sqrt(b_TT_floored))
    b_cosine = b_tT * b_a
    if NORM:
        m_near = b_far <= delta_squared
        b_r = tl.sqrt(tl.maximum(b_far, delta_squared))
        b_huber = tl.where(m_near, 0.5 * b_far, delta * b_r - 0.5 * delta_squared)
    else:
        b_huber = b_far / D
    b_losses_c = tl.sum(tl.where(m_n, 1.0 - b_cosine, 0.0), axis=1, keep_dims=True) / B  # [BLOCK_N, 1, 1]
    b_losses_h = tl.sum(tl.where(m_n, b_huber, 0.0), axis=1, keep_dims=True) / B  # [BLOCK_N, 1, 1]
    losses_ptr += tl.program_id(0).to(tl.int64) * (2 * N + 1)
    tl.store(losses_ptr + o_n, b_losses_c, mask=o_n < N)
    tl.store(losses_ptr + N + o_n, b_losses_h, mask=o_n < N)
    tl.store(losses_ptr + 2 * N, lam * tl.sum(b_losses_c + b_losses_h))

    if kept_ptr is not None:
        kept_ptr += (o_b * N + o_n) * 4
        tl.store(kept_ptr, b_a, mask=m_n)
        tl.store(kept_ptr + 1, tl.where(b_tt < FLOOR, 0.0, b_cosine / b_tt_floored), mask=m_n)
        tl.store(kept_ptr + 2, tl.where(b_TT < FLOOR, 0.0, b_cosine / b_TT_floored), mask=m_n)
        if NORM:
            tl.store(kept_ptr + 3, tl.where(m_near, 1.0, delta / b_r), mask=m_n)


# With x = t - T, its pull p = h x (norm) or clamp(x, -delta, delta) / D, and upstream gradients g_c, g_h per teacher:
# dt = sum over teachers of g_c (t c / |t|^2 - a T) + g_h p,  dT = g_c (T c / |T|^2 - a t) - g_h p
@triton.jit(do_not_specialize=["B"])
def distillation_backward(
    fused_ptr, targets_ptr, present_ptr, kept_ptr, d_cosine_ptr, d_huber_ptr, d_fused_ptr, d_targets_ptr,
    stride_fused_b, stride_targets_b, stride_targets_n, stride_present_b, stride_present_n,
    stride_d_cosine, stride_d_huber,
    B, lam, delta,
    N: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_B patches and BLOCK_D columns; `lam` is a factor of both upstream gradients."""
    dtype = kept_ptr.dtype.element_ty
    o_b, o_n, m_n = tile_rows(present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_N, BLOCK_B)
    o_d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D))[None, None, :]
    m_t = (o_b < B) & (o_d < D)

    b_gc = lam * tl.load(d_cosine_ptr + o_n * stride_d_cosine, mask=o_n < N, other=0.0) / B  # [BLOCK_N, 1, 1]
    b_gh = lam * tl.load(d_huber_ptr + o_n * stride_d_huber, mask=o_n < N, other=0.0) / B
    kept_ptr += (o_b * N + o_n) * 4
    b_a = tl.load(kept_ptr, mask=m_n, other=0.0)  # [BLOCK_N, BLOCK_B, 1]
    b_ct = tl.load(kept_ptr + 1, mask=m_n, other=0.0)
    b_cT = tl.load(kept_ptr + 2, mask=m_n, other=0.0)
    b_t = tl.load(fused_ptr + o_b * stride_fused_b + o_d, mask=m_t, other=0.0).to(dtype)
    b_T = tl.load(
        targets_ptr + o_b * stride_targets_b + o_n * stride_targets_n + o_d, mask=m_n & (o_d < D), other=0.0
    ).to(dtype)
    b_x = b_t - b_T
    if NORM:
        b_pull = b_gh * tl.load(kept_ptr + 3, mask=m_n, other=0.0) * b_x
    else:
        b_pull = tl.where(m_n, b_gh / D * tl.minimum(tl.maximum(b_x, -delta), delta), 0.0)
    b_dt = tl.sum(b_gc * (b_ct * b_t - b_a * b_T) + b_pull, axis=0, keep_dims=True)
    tl.store(d_fused_ptr + o_b * D + o_d, b_dt.to(d_fused_ptr.dtype.element_ty), mask=m_t)
    if d_targets_ptr is not None:
        b_dT = b_gc * (b_cT * b_T - b_a * b_t) - b_pull
        o_nd = (o_b * N + o_n) * D + o_d
        tl.store(d_targets_ptr + o_nd, b_dT.to(d_targets_ptr.dtype.element_ty), mask=m_t & (o_n < N))


class _Terms(NamedTuple):
    """What is not a tensor: lam, delta, and whether the Huber loss is of the norm."""

    lam: float
    delta: float
    norm: bool


def _launch_forward(
    fused: Tensor, targets: Tensor, present: Tensor | None, terms: _Terms, differentiable: bool
) -> tuple[Tensor, Tensor | None]:
    """The losses [2N + 1] (cosine, Huber, lam times the sum of all), and for backward [B, N, 4] where wanted."""
    B, N, D = targets.shape
    tile = token_tile(N, D, targets.element_size())
    mask, *mask_strides = mask_arguments(present)
    programs = triton.cdiv(B, tile.B)
    losses = targets.new_empty((programs, 2 * N + 1), dtype=accumulator(targets.dtype))
    kept = losses.new_empty((B, N, 4)) if differentiable else None
    with torch.cuda.device_of(targets):
        distillation_forward[(programs,)](
            fused, targets, mask, losses, kept,
            fused.stride(0), *targets.stride()[:2], *mask_strides,
            B, terms.lam, terms.delta, terms.delta * terms.delta,
            N, D, terms.norm, tile.N, tile.B, tile.D, num_warps=tile.warps,
        )  # fmt: skip
    return losses.sum(dim=0), kept


def _launch_backward(ctx: Any, d_cosine: Tensor, d_huber: Tensor, lam: float) -> tuple[Tensor, Tensor | None]:
    """Gradients of the fused token and, where one is needed, of the targets."""
    fused, targets, present, kept = ctx.saved_tensors
    B, N, D = targets.shape
    tile = token_tile(N, D, targets.element_size())
    mask, *mask_strides = mask_arguments(present)
    d_fused = fused.new_empty((B, D))
    d_targets = targets.new_empty((B, N, D)) if ctx.needs_input_grad[1] else None
    strides_of_losses = (g.stride(0) if g.ndim else 0 for g in (d_cosine, d_huber))
    with torch.cuda.device_of(targets):
        distillation_backward[(triton.cdiv(B, tile.B), triton.cdiv(D, tile.D))](
            fused, targets, mask, kept, d_cosine, d_huber, d_fused, d_targets,
            fused.stride(0), *targets.stride()[:2], *mask_strides, *strides_of_losses,
            B, lam, ctx.terms.delta,
            N, D, ctx.terms.norm, tile.N, tile.B, tile.D, num_warps=tile.warps,
        )  # fmt: skip
    return d_fused, d_targets


def _forward(ctx: Any, fused: Tensor, targets: Tensor, present: Tensor | None, terms: _Terms) -> tuple[Tensor, ...]:
    """Cosine losses [N], Huber losses [N], total []."""
    losses, kept = _launch_forward(fused, targets, present, terms, any(ctx.needs_input_grad))
    ctx.save_for_backward(fused, targets, present, kept)
    ctx.terms = terms
    N = targets.shape[1]
    # Tensors of their own rather than views of one another: either may be changed in place.
    return losses[:N].data, losses[N : 2 * N].data, losses[2 * N].data


class _PerTeacher(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fused: Tensor, targets: Tensor, present: Tensor | None, terms: _Terms
    ) -> tuple[Tensor, Tensor]:
        cosine, huber, _ = _forward(ctx, fused, targets, present, terms)
        return cosine, huber

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_cosine: Tensor, d_huber: Tensor) -> tuple[Tensor | None, ...]:
        return *_launch_backward(ctx, d_cosine, d_huber, 1.0), None, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fused: Tensor, targets: Tensor, present: Tensor | None, terms: _Terms
    ) -> tuple[Tensor, Tensor, Tensor]:
        cosine, huber, total = _forward(ctx, fused, targets, present, terms)
        ctx.mark_non_differentiable(cosine, huber)
        ctx.set_materialize_grads(False)
        return total, cosine, huber

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if d_total is None:
            return None, None, None, None
        return *_launch_backward(ctx, d_total, d_total, ctx.terms.lam), None, None


def _check(fused: Tensor, targets: Tensor, delta: float, huber: str, present: Tensor | None) -> None:
    B, N, D = require_tokens("targets", targets)
    require_rows("fused", fused, (B, D), targets)
    require_mask(present, B, N, targets)
    if huber not in HUBERS:
        raise ValueError(f"huber: one of {HUBERS} expected, found {huber!r}")
    if not delta > 0:
        raise ValueError(f"delta: above 0 expected, found {delta}")


def distillation_losses(
    fused: Tensor, targets: Tensor, delta: float, huber: str, present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and Huber losses of every teacher, averaged over the batch, eqs. (5)-(7).

    Args:
        fused: [B, D], columns next to each other; float32, float16, bfloat16 or float64.
        targets: [B, N, D], N at most 32, in the dtype of `fused`.
        delta: where the Huber loss turns from quadratic to linear. It reaches the kernel as float32, in float64 too.
        huber: "norm", of the distance |t - T_i|, or "elementwise", the mean over the elements.
        present: bool [B, N], which teachers a patch has; an absent one adds 0. None when it has all.

    Returns:
        cosine [N] and Huber [N], float32 (float64 for float64).

    Raises:
        ValueError: anything else than that, with what was expected and what was found.
    """
    _check(fused, targets, delta, huber, present)
    cosine, far = _PerTeacher.apply(fused, targets, present, _Terms(1.0, delta, huber == "norm"))
    return cosine, far


def distillation_loss(
    fused: Tensor, targets: Tensor, lam: float, delta: float, huber: str, present: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """lam times the sum of all of `distillation_losses`, to be minimised, and these losses, to be read.

    Arguments and errors as there, `lam` is float32 as `delta` is; the total [] alone can be differentiated.
    """
    _check(fused, targets, delta, huber, present)
    total, cosine, far = _Total.apply(fused, targets, present, _Terms(lam, delta, huber == "norm"))
    return total, cosine, far
