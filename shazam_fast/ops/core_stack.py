"""The bare stack as one call of the compiled core per pass: every thread takes its patches through all layers.

What lies between two products stays in a thread's caches, and threads wait for each other a few times per pass, not
some thirty times. Query and key maps are multiplied first, as in merged.py. The scores' rows are taken relative to the
first teacher, which leaves the softmax as it is and saves that teacher's product; so they are less exact where that
teacher's tokens are more than ten times as long as the others'. Gradients of gradients cannot be taken.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._core import bare_stack_backward, bare_stack_forward, bare_stack_space
from .masks import hide_missing, mask_array, wants_gradient

WORTH = 1  # tokens per column of the maps, from which on it is the fastest way


def bare_stack_core(tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `bare_stack_cpu`: tokens [B, N, D], qkv [K, D, 3D] -> fused [B, D], attention [B, K, N, N]."""
    if wants_gradient(tokens, qkv):
        fused, attention = _CoreStack.apply(tokens, qkv, present)
        return fused, attention
    fused, attention, *_ = _forward(tokens, qkv, present, kept=False)
    return fused, attention


def _forward(
    tokens: Tensor, qkv: Tensor, present: Tensor | None, *, kept: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fused, attention, the tokens that were attended to and, for the backward pass if `kept`, the layers' values."""
    x = hide_missing(tokens.detach(), present).contiguous()
    (B, N, D), K = x.shape, len(qkv)
    inputs = x.numpy(), qkv.detach().contiguous().numpy()
    fused, attention = x.new_empty(B, D), x.new_empty(B, K, N, N)
    space = x.new_empty(bare_stack_space(*inputs, kept))
    bare_stack_forward(
        *inputs, mask_array(present), fused.numpy(), attention.numpy(), space.numpy(), kept, torch.get_num_threads()
    )
    return fused, attention, x, space


class _CoreStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        fused, attention, x, space = _forward(tokens, qkv, present, kept=True)
        ctx.save_for_backward(x, qkv, present, attention)
        ctx.spaces = [space]  # the backward pass overwrites it: memory that is asked for anew costs page faults
        ctx.mark_non_differentiable(attention)
        ctx.set_materialize_grads(False)
        return fused, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None]:
        if d_fused is None:
            return None, None, None
        x, qkv, present, attention = ctx.saved_tensors
        try:
            space = ctx.spaces.pop()  # by one thread alone
        except IndexError:  # not the first pass over this graph
            space = _forward(x, qkv, present, kept=True)[-1]
        wants_tokens, wants_qkv, _ = ctx.needs_input_grad
        d_tokens = torch.empty_like(x) if wants_tokens else None
        d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format) if wants_qkv else None
        bare_stack_backward(
            x.numpy(), qkv.detach().contiguous().numpy(), mask_array(present), attention.numpy(),
            d_fused.contiguous().numpy(), space.numpy(), None if d_tokens is None else d_tokens.numpy(),
            None if d_qkv is None else d_qkv.numpy(), torch.get_num_threads(),
        )  # fmt: skip
        return None if d_tokens is None else hide_missing(d_tokens, present), d_qkv, None
