"""Products, attention and the mean for students on a leading axis S, all of them in one call.

On the CPU what lies between two products is one call of the compiled core over the patches of all students; elsewhere
it is PyTorch. Gradients can be taken once.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._core import attention_backward, attention_forward
from ..kernels import reference
from ..runtime.products import ONEDNN_PRODUCTS, product
from .dispatch import runs_in_core
from .masks import mask_array


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W + b of every student. [S, R, E], [S, E, O], [S, O] -> [S, R, O]."""
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


def attend(projected: Tensor, N: int, present: Tensor | None, pooled: bool) -> Tensor:
    """P V of P = softmax(Q K^T / sqrt(D)), eqs. (2) and (3), of the N tokens of every patch.

    Args:
        projected: queries, keys and values side by side, [P*N, 3D] of P patches.
        N: teachers.
        present: bool [P, N], which teachers a patch has; None: all.
        pooled: whether to return the mean over the present teachers.

    Returns [P, D] pooled, else [P*N, D].
    """
    if runs_in_core(projected, N):
        fused: Tensor = _CoreAttention.apply(projected, N, present, pooled)
        return fused
    q, k, v = projected.view(-1, N, projected.shape[1]).chunk(3, dim=-1)
    output = reference.attention_weights(q @ k.mT / math.sqrt(q.shape[-1]), present) @ v
    return reference.mean_pool(output, present) if pooled else output.flatten(0, 1)


def mean_tokens(tokens: Tensor, present: Tensor | None) -> Tensor:
    """The mean over the present teachers, eq. (4). tokens [P, N, D], present bool [P, N] -> [P, D]."""
    return reference.mean_pool(tokens, present)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _products(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        d_result = d_result.contiguous()
        return (
            _products(d_result, weight.mT) if wants_x else None,
            _products(x.mT, d_result) if wants_weight else None,
            d_result.sum(dim=1) if ctx.biased and wants_bias else None,
        )


def _products(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W + b of every student by the library that is fastest at it, see runtime/products.py."""
    if x.is_cuda or x.dtype != torch.float32 or not ONEDNN_PRODUCTS:
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias[:, None], x, weight)
    result = x.new_empty(len(x), x.shape[1], weight.shape[2])
    for index, here in enumerate(result):
        here.copy_(product(x[index], weight[index], None if bias is None else bias[index]))
    return result


class _CoreAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, N: int, present: Tensor | None, pooled: bool) -> Tensor:
        P, D = len(projected) // N, projected.shape[1] // 3
        weights, output = projected.new_empty(P, N, N), projected.new_empty(P if pooled else P * N, D)
        shaped = output if pooled else output.view(P, N, D)
        mask = mask_array(present)
        rows = projected.detach().numpy()
        attention_forward(rows, mask, weights.numpy(), shaped.numpy(), torch.get_num_threads())
        ctx.save_for_backward(projected, present, weights)
        ctx.pooled = pooled
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, None, None, None]:
        projected, present, weights = ctx.saved_tensors
        d_projected = torch.empty_like(projected)
        mask = mask_array(present)
        d_output = d_output.contiguous()
        shaped = d_output if ctx.pooled else d_output.view(*weights.shape[:2], -1)
        attention_backward(
            projected.numpy(), mask, weights.numpy(), shaped.numpy(), d_projected.numpy(), torch.get_num_threads()
        )
        return d_projected, None, None, None
