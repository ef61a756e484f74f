"""Eqs. (2)-(4): K attention layers over the teachers' tokens and the mean, of the bare and of the residual student.

With a handful of teachers PyTorch spends its time on dispatch and on batched matrices too small for it. On the CPU a
stack is one node of the autograd graph, and what lies between two products is one call of the compiled core, or, of the
bare stack where the core multiplies fastest, a whole pass. On an NVIDIA GPU a whole stack is one Triton kernel up to
D = 256 and 16 teachers; beyond, each layer's attention is one, between products of cuBLAS. `kernels/reference.py`
defines every result. Gradients can be taken once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .._core import attention_backward, attention_forward
from ..kernels import reference
from ..kernels.reference import ResidualMaps
from ..runtime.products import CORE_PRODUCTS, product, write_weight_gradient
from . import core_stack, folding, merged
from .limits import is_small
from .masks import hide_missing, mask_array, wants_gradient
from .merged import NORM_EPSILON


def bare_stack_cpu(tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """K bare attention layers and the mean, by the maps that take the fewest products for so many tokens.

    tokens [B, N, D], qkv [K, D, 3D], present bool [B, N] or None -> fused [B, D], and attention [B, K, N, N] or, where
    the maps are folded, the teacher shares [B, N]; neither carries a gradient.
    """
    if merged.is_worth(tokens, folding.WORTH) and not wants_gradient(tokens, qkv):
        return folding.bare_stack_folded(tokens, qkv, present)
    if CORE_PRODUCTS and merged.is_worth(tokens, core_stack.WORTH):
        return core_stack.bare_stack_core(tokens, qkv, present)
    if merged.is_worth(tokens, merged.BARE_WORTH):
        return merged.merged_bare_stack(hide_missing(tokens, present), qkv, present)
    if wants_gradient(tokens, qkv):
        fused, attention = _BareStack.apply(tokens, qkv, present)
        return fused, attention
    with torch.no_grad():
        return _stack_forward(tokens, qkv, present, None)


def bare_stack_triton(tokens: Tensor, qkv: Tensor, present: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    """The same by Triton kernels: fused [B, D], and the teacher shares [B, N] or the attention [B, K, N, N]."""
    from ..kernels.student_stack import bare_stack
    from ..kernels.token_attention import token_attention

    if is_small(tokens):
        return bare_stack(tokens, qkv, present, precision)
    attention = []
    tokens = hide_missing(tokens, present)
    for layer, weight in enumerate(qkv):
        q, k, v = (tokens @ weight).chunk(3, dim=-1)
        tokens, p = token_attention(q, k, v, present, pool=layer == len(qkv) - 1)
        attention.append(p.detach())
    return tokens, torch.stack(attention, dim=1)


def residual_stack_cpu(tokens: Tensor, maps: ResidualMaps, present: Tensor | None) -> Tensor:
    """K residual attention layers and the mean; see the definition. tokens [B, N, D] -> fused [B, D]."""
    tokens = hide_missing(tokens, present)
    if merged.is_worth(tokens, merged.RESIDUAL_WORTH):
        return reference.mean_pool(merged.merged_residual_stack(tokens, maps, present), present)
    return reference.mean_pool(_ResidualStack.apply(tokens, present, *maps), present)


def residual_stack_triton(tokens: Tensor, maps: ResidualMaps, present: Tensor | None, precision: str) -> Tensor:
    """The same by Triton kernels. -> fused [B, D]."""
    from ..kernels.student_stack import residual_stack
    from ..kernels.token_attention import token_attention

    if is_small(tokens):
        return residual_stack(tokens, maps, present, precision)
    tokens = hide_missing(tokens, present)
    for weight, bias, out, offset, gain, shift in zip(*maps, strict=True):
        q, k, v = (tokens @ weight + bias).chunk(3, dim=-1)
        attended, _ = token_attention(q, k, v, present)
        tokens = F.layer_norm(tokens + attended @ out + offset, gain.shape, gain, shift)
    return reference.mean_pool(tokens, present)


class _BareStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        saved: list[Tensor] = []
        fused, attention = _stack_forward(tokens, qkv, present, saved)
        ctx.save_for_backward(qkv, present, attention, *saved)
        ctx.mark_non_differentiable(attention)
        ctx.set_materialize_grads(False)
        return fused, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None]:
        if d_fused is None:
            return None, None, None
        qkv, present, attention, *saved = ctx.saved_tensors
        wants_tokens, wants_qkv, _ = ctx.needs_input_grad
        d_qkv = torch.empty_like(qkv) if wants_qkv else None
        d_projected = torch.empty_like(saved[1])
        mask, P, threads = mask_array(present), attention.numpy(), torch.get_num_threads()
        d_output = d_fused.contiguous()  # [B, D] of the last layer, [B, N, D] of the others
        for layer in reversed(range(qkv.shape[0])):
            x, projected = saved[2 * layer : 2 * layer + 2]
            attention_backward(projected.numpy(), mask, P[:, layer], d_output.numpy(), d_projected.numpy(), threads)
            if d_qkv is not None:
                write_weight_gradient(x.flatten(0, 1), d_projected, d_qkv[layer])
            if layer or wants_tokens:
                d_output = product(d_projected, qkv[layer].T).view_as(x)
        return hide_missing(d_output, present) if wants_tokens else None, d_qkv, None


def _stack_forward(
    tokens: Tensor, qkv: Tensor, present: Tensor | None, saved: list[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """`saved` gets what the backward pass needs: x [B, N, D] and x W [B*N, 3D] of every layer."""
    x = hide_missing(tokens.detach(), present).contiguous()
    B, N, D = x.shape
    K = qkv.shape[0]
    attention = x.new_empty(B, K, N, N)
    mask, P, threads = mask_array(present), attention.numpy(), torch.get_num_threads()
    for layer, weight in enumerate(qkv.detach()):
        projected = product(x.flatten(0, 1), weight)
        output = x.new_empty(B, D) if layer == K - 1 else torch.empty_like(x)
        attention_forward(projected.numpy(), mask, P[:, layer], output.numpy(), threads)
        if saved is not None:
            saved += [x, projected]
        x = output
    return x, attention


class _ResidualStack(torch.autograd.Function):
    """K times T -> LN(T + (P V) Wo + bo): tokens after the last layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, present: Tensor | None, *maps: Tensor) -> Tensor:
        mask, threads = mask_array(present), torch.get_num_threads()
        x, saved = x.detach().contiguous(), []
        B, N, D = x.shape
        for weight, bias, out, offset, gain, shift in zip(*(m.detach() for m in maps), strict=True):
            projected = product(x.flatten(0, 1), weight, bias)
            P, attended = x.new_empty(B, N, N), torch.empty_like(x)
            attention_forward(projected.numpy(), mask, P.numpy(), attended.numpy(), threads)
            r = product(attended.flatten(0, 1), out, offset).view_as(x).add_(x)
            y, mean, rstd = torch.native_layer_norm(r, [D], gain, shift, NORM_EPSILON)
            saved += [x, projected, P, attended, r, mean, rstd]
            x = y
        ctx.save_for_backward(present, *maps, *saved)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor | None, ...]:
        present, *maps = ctx.saved_tensors[:7]
        saved = ctx.saved_tensors[7:]
        d_maps = [torch.empty_like(m) for m in maps]
        mask, threads, D = mask_array(present), torch.get_num_threads(), d_x.shape[-1]
        for layer in reversed(range(len(maps[0]))):
            x, projected, P, attended, r, mean, rstd = saved[7 * layer : 7 * layer + 7]
            weight, _, out, _, gain, shift = (m[layer] for m in maps)
            d_r, d_gain, d_shift = torch.ops.aten.native_layer_norm_backward(
                d_x.contiguous(), r, [D], mean, rstd, gain, shift, [True, True, True]
            )
            d_rows = d_r.view(-1, D)
            d_attended, d_projected = product(d_rows, out.T).view_as(x), torch.empty_like(projected)
            attention_backward(projected.numpy(), mask, P.numpy(), d_attended.numpy(), d_projected.numpy(), threads)
            write_weight_gradient(x.view(-1, D), d_projected, d_maps[0][layer])
            write_weight_gradient(attended.view(-1, D), d_rows, d_maps[2][layer])
            sums = (d_projected.sum(0), d_rows.sum(0), d_gain, d_shift)
            for whole, part in zip((d_maps[1], *d_maps[3:]), sums, strict=True):
                whole[layer] = part
            d_x = product(d_projected, weight.T).view_as(x).add_(d_r)
        return d_x, None, *d_maps
