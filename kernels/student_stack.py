"""The student's whole attention stack as one operation, bare and residual: see `stack_kernels`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import mask_arguments, require_mask, require_row_tokens, require_rows, row_launch
from .precision import PRECISIONS
from .reference import ResidualMaps
from .stack_kernels import stack_backward, stack_forward


class Maps(NamedTuple):
    """[A | E] [K, D, 2D]; a residual stack also has [a | e] [K, 2D] and the norms' gain and shift [K, D]."""

    products: Tensor
    offsets: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None


def _launch_forward(
    tokens: Tensor, present: Tensor | None, maps: Maps, precision: str, keep: bool
) -> tuple[Tensor | None, ...]:
    """fused [B, D], shares [B, N] (bare), and if kept T [K, B*N, D] and P [K, B, N, N] of every layer."""
    B, N, D = tokens.shape
    K = len(maps.products)
    fused = tokens.new_empty(B, D)
    shares = tokens.new_empty(B, N) if maps.gain is None else None
    saved = tokens.new_empty(K, B * N, D) if keep else None
    attention = tokens.new_empty(K, B, N, N) if keep else None
    programs, blocks = row_launch(tokens, precision)
    with torch.cuda.device_of(tokens):
        stack_forward[(programs,)](
            tokens,
            *mask_arguments(present),
            *maps,
            None,
            None,
            None,
            fused,
            shares,
            saved,
            attention,
            B,
            K,
            1,
            1,
            **blocks,
        )
    return fused, shares, saved, attention


def _launch_backward(
    d_fused: Tensor, saved: Tensor, attention: Tensor, present: Tensor | None, maps: Maps, precision: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dT_0 [B, N, D], [dY | dV] [K, B*N, 2D] and each program's part of the gain's and shift's gradients."""
    K, B, N, _ = attention.shape
    D = saved.shape[-1]
    d_tokens = saved.new_empty(B, N, D)
    d_products = saved.new_empty(K, B * N, 2 * D)
    programs, blocks = row_launch(d_tokens, precision)
    d_norm = None if maps.gain is None else saved.new_empty(programs, K, 2, D)
    with torch.cuda.device_of(saved):
        stack_backward[(programs,)](
            d_fused.contiguous(), None, saved, attention, *mask_arguments(present), *maps[:3],
            d_tokens, d_products, d_norm, B, K, **blocks,
        )  # fmt: skip
    return d_tokens, d_products, d_norm


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, present: Tensor | None, precision: str, keep: bool, *maps: Tensor
    ) -> tuple[Tensor | None, ...]:
        products, *others = (x if x is None else x.contiguous() for x in maps)
        rounded = Maps(products.to(PRECISIONS[precision].operand or tokens.dtype), *others)
        fused, shares, saved, attention = _launch_forward(tokens, present, rounded, precision, keep)
        ctx.save_for_backward(saved, attention, present, *rounded)
        ctx.precision = precision
        ctx.set_materialize_grads(False)  # shares carry no gradient: no zeros for them
        if shares is not None:
            ctx.mark_non_differentiable(shares)
        return fused, shares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if d_fused is None:
            return (None,) * 8
        saved, attention, present, *maps = ctx.saved_tensors
        d_tokens, d_products, d_norm = _launch_backward(d_fused, saved, attention, present, Maps(*maps), ctx.precision)
        d_maps = saved.mT @ d_products
        if d_norm is None:
            return d_tokens, None, None, None, d_maps, None, None, None
        return d_tokens, None, None, None, d_maps, d_products.sum(1), *d_norm.sum(0).unbind(1)


def run_stack(tokens: Tensor, maps: Maps, present: Tensor | None, precision: str) -> tuple[Tensor, Tensor | None]:
    """fused [B, D] and, without residual, shares [B, N] of a stack of maps; differentiable in tokens and maps."""
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (tokens, *maps))
    fused, shares = _Stack.apply(tokens.contiguous(), present, precision, keep, *maps)
    return fused, shares


def require_stack(tokens: Tensor, qkv: Tensor, present: Tensor | None, precision: str) -> tuple[int, int]:
    """K and D; ValueError for what the kernels cannot take."""
    B, N, D = require_row_tokens(tokens, precision)
    if qkv.ndim != 3 or len(qkv) == 0:
        raise ValueError(f"qkv: [K, D, 3D] with at least one layer expected, found {list(qkv.shape)}")
    require_rows("qkv", qkv, (len(qkv), D, 3 * D), tokens)
    require_mask(present, B, N, tokens)
    return len(qkv), D


def bare_stack(
    tokens: Tensor, qkv: Tensor, present: Tensor | None = None, precision: str = "ieee"
) -> tuple[Tensor, Tensor]:
    """K bare attention layers and the mean, eqs. (2)-(4): fused [B, D] and the teachers' exact shares in it [B, N].

    Args:
        tokens: [B, N, D], float32 (float64 with "ieee"), N at most 16, D one of 16, 32, 64, 128, 256.
        qkv: [K, D, 3D], query, key and value maps side by side.
        present: bool [B, N], at least one each; None when every teacher is there. An absent teacher's token may hold
            anything and gets a gradient of 0.
        precision: how products with the maps are taken: "ieee" float32; "tf32"; operands rounded to "bf16" or "fp16".
            Attention times tokens is tf32 except with "ieee". Scores, softmax, sums and gradients stay float32.

    The shares carry no gradient.
    """
    _, D = require_stack(tokens, qkv, present, precision)
    with torch.autocast(tokens.device.type, enabled=False):
        wq, wk, wv = qkv.split(D, dim=-1)
        maps = torch.cat([wq @ wk.mT, wv], dim=-1)
    fused, shares = run_stack(tokens, Maps(maps), present, precision)
    assert shares is not None  # a stack without norms has them
    return fused, shares


def residual_stack(
    tokens: Tensor, maps: ResidualMaps, present: Tensor | None = None, precision: str = "ieee"
) -> Tensor:
    """K residual attention layers T <- LN(T + (P V) Wo + bo) and the mean: fused [B, D].

    Args:
        tokens: [B, N, D], float32 (float64 with "ieee"), N at most 16, D one of 16, 32, 64, 128, 256.
        maps: of the K layers, see `reference.ResidualMaps`.
        present: as for `bare_stack`.
        precision: as for `bare_stack`.
    """
    qkv, qkv_bias, out_weight, out_bias, norm_weight, norm_bias = maps
    K, D = require_stack(tokens, qkv, present, precision)
    require_rows("qkv_bias", qkv_bias, (K, 3 * D), tokens)
    require_rows("out_weight", out_weight, (K, D, D), tokens)
    vectors = {"out_bias": out_bias, "norm_weight": norm_weight, "norm_bias": norm_bias}
    for name, vector in vectors.items():
        require_rows(name, vector, (K, D), tokens)
    with torch.autocast(tokens.device.type, enabled=False):
        wq, wk, wv = qkv.split(D, dim=-1)
        bq, _, bv = qkv_bias[:, None].split(D, dim=-1)  # [K, 1, D]; the softmax does not see the key bias
        products = torch.cat([wq @ wk.mT, wv @ out_weight], dim=-1)  # [A | E]
        offsets = torch.cat([bq @ wk.mT, torch.baddbmm(out_bias[:, None], bv, out_weight)], dim=-1)  # [a | e]
    folded = Maps(products, offsets.squeeze(1), norm_weight, norm_bias)
    fused, _ = run_stack(tokens, folded, present, precision)
    return fused
