"""Attention layers with the maps multiplied that follow one another: fewer products where a batch is large for D.

Only Q K^T is needed of queries and keys, so x Wq Wk^T takes the place of both and the keys are x itself; likewise a
residual layer's value and output maps are one. Query and key biases: what they add to a whole row of scores leaves its
softmax as it is, so a query bias alone stays, and the key bias moves nothing. Products of maps cost D^3 once per batch,
what they save costs D^2 for every token. Gradients can be taken once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._core import attention_backward, attention_forward
from ..kernels.reference import ResidualMaps
from ..runtime.products import product, write_weight_gradient
from .masks import mask_array, wants_gradient

BARE_WORTH = 4  # tokens per column of the maps, from which on merged maps are the faster way
RESIDUAL_WORTH = 2  # likewise; more is saved there
BLOCK_TOKENS = 2048  # that go through all layers together where no gradient is wanted
NORM_EPSILON = 1e-5  # of PyTorch's LayerNorm


def is_worth(tokens: Tensor, worth: int) -> bool:
    """Whether there are `worth` tokens per column of the maps, in [B, N, D]."""
    B, N, D = tokens.shape
    return worth * D <= B * N


def merged_bare_stack(tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `bare_stack_cpu`: tokens [B, N, D], qkv [K, D, 3D] -> fused [B, D], attention [B, K, N, N]."""
    q, k, v = qkv.chunk(3, dim=2)
    maps = torch.cat([q @ k.mT, v], dim=2)
    if wants_gradient(tokens, qkv):
        fused, attention = _BareStack.apply(tokens, maps, present)
        return fused, attention
    return _bare_forward(tokens.detach().contiguous(), maps.detach(), present, None)


def merged_residual_stack(tokens: Tensor, maps: ResidualMaps, present: Tensor | None) -> Tensor:
    """As `_ResidualStack` in stack.py: tokens [B, N, D] -> tokens after the last layer."""
    q, k, v = maps.qkv.chunk(3, dim=2)
    q_bias, _, v_bias = maps.qkv_bias[:, None].chunk(3, dim=2)
    weight = torch.cat([q @ k.mT, v @ maps.out_weight], dim=2)
    bias = torch.cat([q_bias @ k.mT, v_bias @ maps.out_weight + maps.out_bias[:, None]], dim=2)
    layers = weight, bias[:, 0], maps.norm_weight, maps.norm_bias
    if wants_gradient(tokens, *maps):
        found: Tensor = _ResidualStack.apply(tokens, present, *layers)
        return found
    tokens = tokens.detach()
    result, size = torch.empty_like(tokens, memory_format=torch.contiguous_format), BLOCK_TOKENS // tokens.shape[1]
    for start in range(0, len(tokens), size):  # values between two products stay in the cache
        part = slice(start, start + size)
        part_present = None if present is None else present[part]
        result[part] = _residual_forward(tokens[part].contiguous(), part_present, [x.detach() for x in layers], None)
    return result


def _bare_forward(x: Tensor, maps: Tensor, present: Tensor | None, saved: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """`saved` gets what the backward pass needs: x [B, N, D] and x maps [B*N, 2D] of every layer."""
    (B, N, D), K = x.shape, len(maps)
    attention = x.new_empty(B, K, N, N)
    mask, P, threads = mask_array(present), attention.numpy(), torch.get_num_threads()
    for layer, weight in enumerate(maps):
        projected = product(x.flatten(0, 1), weight)
        output = x.new_empty(B, D) if layer == K - 1 else torch.empty_like(x)
        attention_forward(projected.numpy(), mask, P[:, layer], output.numpy(), threads, keys=x.numpy())
        if saved is not None:
            saved += [x, projected]
        x = output
    return x, attention


def _residual_forward(x: Tensor, present: Tensor | None, maps: Sequence[Tensor], saved: list[Tensor] | None) -> Tensor:
    """`saved` gets of every layer x, x maps, P, what is normalised, its mean and the inverse of its deviation."""
    mask, threads = mask_array(present), torch.get_num_threads()
    B, N, D = x.shape
    for weight, bias, gain, shift in zip(*maps, strict=True):
        projected = product(x.flatten(0, 1), weight, bias)
        P, r = x.new_empty(B, N, N), torch.empty_like(x)
        attention_forward(projected.numpy(), mask, P.numpy(), r.numpy(), threads, keys=x.numpy())
        y, mean, rstd = torch.native_layer_norm(r.add_(x), [D], gain, shift, NORM_EPSILON)
        if saved is not None:
            saved += [x, projected, P, r, mean, rstd]
        x = y
    return x


class _BareStack(torch.autograd.Function):
    """T -> P (T Wv) with P = softmax((T A) T^T / sqrt(D)), K times, the last one averaged."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, maps: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        saved: list[Tensor] = []
        fused, attention = _bare_forward(tokens.detach().contiguous(), maps.detach(), present, saved)
        ctx.save_for_backward(maps, present, attention, *saved)
        ctx.mark_non_differentiable(attention)
        ctx.set_materialize_grads(False)
        return fused, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if d_fused is None:
            return None, None, None
        maps, present, attention, *saved = ctx.saved_tensors
        wants_tokens, wants_maps, _ = ctx.needs_input_grad
        d_maps = torch.empty_like(maps) if wants_maps else None
        d_projected, d_keys = torch.empty_like(saved[1]), torch.empty_like(saved[0])
        mask, P, threads = mask_array(present), attention.numpy(), torch.get_num_threads()
        d_output = d_fused.contiguous()
        for layer in reversed(range(len(maps))):
            x, projected = saved[2 * layer : 2 * layer + 2]
            attention_backward(
                projected.numpy(), mask, P[:, layer], d_output.numpy(), d_projected.numpy(), threads,
                keys=x.numpy(), d_keys=d_keys.numpy(),
            )  # fmt: skip
            if d_maps is not None:
                write_weight_gradient(x.flatten(0, 1), d_projected, d_maps[layer])
            if layer or wants_tokens:
                d_output = product(d_projected, maps[layer].T).view_as(x).add_(d_keys)
        return d_output if wants_tokens else None, d_maps, None


class _ResidualStack(torch.autograd.Function):
    """T -> LN(T + P V) with P of T A + u and V = T Wv Wo + bias, K times: tokens after the last layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, present: Tensor | None, *maps: Tensor) -> Tensor:
        saved: list[Tensor] = []
        x = _residual_forward(x.detach().contiguous(), present, [m.detach() for m in maps], saved)
        ctx.save_for_backward(present, *maps, *saved)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor | None, ...]:
        present, *maps = ctx.saved_tensors[:5]
        saved = ctx.saved_tensors[5:]
        d_maps = [torch.empty_like(m) for m in maps]
        mask, threads, D = mask_array(present), torch.get_num_threads(), d_x.shape[-1]
        d_projected, d_keys = torch.empty_like(saved[1]), torch.empty_like(saved[0])
        for layer in reversed(range(len(maps[0]))):
            x, projected, P, r, mean, rstd = saved[6 * layer : 6 * layer + 6]
            weight, _, gain, shift = (m[layer] for m in maps)
            d_r, d_gain, d_shift = torch.ops.aten.native_layer_norm_backward(
                d_x.contiguous(), r, [D], mean, rstd, gain, shift, [True, True, True]
            )
            attention_backward(
                projected.numpy(), mask, P.numpy(), d_r.numpy(), d_projected.numpy(), threads,
                keys=x.numpy(), d_keys=d_keys.numpy(),
            )  # fmt: skip
            write_weight_gradient(x.view(-1, D), d_projected, d_maps[0][layer])
            for whole, part in zip(d_maps[1:], (d_projected.sum(0), d_gain, d_shift), strict=True):
                whole[layer] = part
            d_x = product(d_projected, weight.T).view_as(x).add_(d_keys).add_(d_r)
        return d_x, None, *d_maps
