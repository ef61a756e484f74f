"""Products, attention and losses for students on a leading axis S, all of them in one call.

float32 on the CPU is the compiled core's, straight from and to where the tensors lie; everything else is PyTorch.
Gradients can be taken once.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._core import attention_backward, attention_forward, distillation, stacked_product
from ..kernels import reference
from . import dispatch
from .masks import hide_missing, mask_array, wants_gradient

Floats = NDArray[np.float32]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W + b of every student. [S, R, E], [S, E, O], [S, O] -> [S, R, O]."""
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


def project(columns: Sequence[Tensor], weights: Sequence[Tensor], biases: Tensor) -> Tensor:
    """Every teacher's columns through the students' maps, eq. (1).

    columns [B, dim] and weights [S, dim, D] of each teacher, biases [S, N, D] -> tokens [S, B, N, D].
    """
    if _in_core(biases):
        tokens: Tensor = _CoreProject.apply(biases, *columns, *weights)
        return tokens
    S = len(biases)
    maps = zip(columns, weights, biases.unbind(1), strict=True)
    return torch.stack([linear(x.expand(S, -1, -1), weight, bias) for x, weight, bias in maps], dim=2)


def bare_stack(tokens: Tensor, qkv: Tensor, present: Tensor | None) -> Tensor:
    """K bare attention layers and the mean, eqs. (2)-(4).

    tokens [S, B, N, D], qkv [S, K, D, 3D], present bool [B, N] or None -> fused [S, B, D].
    """
    S, _, N, D = tokens.shape
    if _in_core(tokens, N):
        if not wants_gradient(tokens, qkv):
            return _run_bare_stack(tokens, qkv, present, None)
        fused: Tensor = _CoreBareStack.apply(tokens, qkv, present)
        return fused
    there = None if present is None else present.repeat(S, 1)  # [S*B, N]
    x = hide_missing(tokens, present).reshape(S, -1, D)
    for layer, weight in enumerate(qkv.unbind(1)):
        last = layer == qkv.shape[1] - 1
        x = attend(linear(x, weight).view(-1, 3 * D), N, there, pooled=last).view(S, -1, D)
    return x


def attend(projected: Tensor, N: int, present: Tensor | None, pooled: bool) -> Tensor:
    """P V of P = softmax(Q K^T / sqrt(D)), eqs. (2) and (3), of the N tokens of every patch.

    Args:
        projected: queries, keys and values side by side, [P*N, 3D] of P patches.
        N: teachers.
        present: bool [P, N], which teachers a patch has; None: all.
        pooled: whether to return the mean over the present teachers.

    Returns [P, D] pooled, else [P*N, D].
    """
    if _in_core(projected, N) and not pooled:
        attended: Tensor = _CoreAttention.apply(projected, N, present)
        return attended
    q, k, v = projected.view(-1, N, projected.shape[1]).chunk(3, dim=-1)
    output = reference.attention_weights(q @ k.mT / math.sqrt(q.shape[-1]), present) @ v
    return reference.mean_pool(output, present) if pooled else output.flatten(0, 1)


def mean_tokens(tokens: Tensor, present: Tensor | None) -> Tensor:
    """The mean over the present teachers, eq. (4). tokens [P, N, D], present bool [P, N] -> [P, D]."""
    return reference.mean_pool(tokens, present)


def distil(
    fused: Tensor, targets: Tensor, lams: Sequence[float], deltas: Sequence[float], huber: str, present: Tensor | None
) -> Tensor:
    """The distillation losses of every student by its own lambda and delta, eqs. (5)-(7).

    fused [S, B, D], targets [S, B, N, D], huber "norm" or "elementwise", present bool [B, N] or None -> [S].
    """
    if _in_core(targets, targets.shape[2]):
        losses: Tensor = _CoreDistillation.apply(fused, targets, lams, deltas, huber, present)
        return losses
    students = zip(fused.unbind(0), targets.unbind(0), lams, deltas, strict=True)
    return torch.stack([dispatch.distillation_loss(*student, huber, present)[0] for student in students])


def _in_core(x: Tensor, N: int = 1) -> bool:
    """Whether the compiled core computes with tensors like x, of N teachers."""
    return dispatch.runs_in_core(x.new_empty(0), N)


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """left right + bias of every student, in the core into `out` if given. -> [S, rows, columns]."""
    if not _in_core(left):
        return torch.bmm(left, right) if bias is None else torch.baddbmm(bias[:, None], left, right)
    if out is None:
        out = left.new_empty(len(left), left.shape[1], right.shape[2])
    left, left_transposed = _with_rows(left)
    right, right_transposed = _with_rows(right)
    if left_transposed and right_transposed:
        left, left_transposed = left.mT.contiguous(), False
    offsets = None if bias is None else bias.detach().contiguous().numpy()
    arrays = left.detach().numpy(), right.detach().numpy(), offsets, out.numpy()
    stacked_product(*arrays, left_transposed, right_transposed, torch.get_num_threads())
    return out


def _with_rows(matrices: Tensor) -> tuple[Tensor, bool]:
    """The matrices or their transposes, whichever have the values of a row side by side, and whether transposed."""
    if matrices.stride(2) == 1 or matrices.shape[2] == 1:
        return matrices, False
    if matrices.stride(1) == 1 or matrices.shape[1] == 1:
        return matrices.mT, True
    return matrices.contiguous(), False


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        d_result = d_result.contiguous()
        return (
            _multiply(d_result, weight.mT) if wants_x else None,
            _multiply(x.mT, d_result) if wants_weight else None,
            d_result.sum(dim=1) if ctx.biased and wants_bias else None,
        )


class _CoreProject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, biases: Tensor, *columns_and_weights: Tensor) -> Tensor:
        S, N, D = biases.shape
        columns, weights = columns_and_weights[:N], columns_and_weights[N:]
        tokens = biases.new_empty(S, len(columns[0]), N, D)
        for i, (x, weight) in enumerate(zip(columns, weights, strict=True)):
            _multiply(x.expand(S, -1, -1), weight, biases[:, i], out=tokens[:, :, i])
        ctx.save_for_backward(*columns)
        return tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_tokens: Tensor) -> tuple[Tensor | None, ...]:
        columns, S = ctx.saved_tensors, len(d_tokens)
        d_tokens = d_tokens.contiguous()
        d_weights = [_multiply(x.T.expand(S, -1, -1), d_tokens[:, :, i]) for i, x in enumerate(columns)]
        return d_tokens.sum(dim=1), *(None for _ in columns), *d_weights


class _CoreAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, N: int, present: Tensor | None) -> Tensor:
        P, D = len(projected) // N, projected.shape[1] // 3
        weights, output = projected.new_empty(P, N, N), projected.new_empty(P * N, D)
        rows, mask, threads = projected.detach().numpy(), mask_array(present), torch.get_num_threads()
        attention_forward(rows, mask, weights.numpy(), output.view(P, N, D).numpy(), threads)
        ctx.save_for_backward(projected, present, weights)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, None, None]:
        projected, present, weights = ctx.saved_tensors
        d_projected = torch.empty_like(projected)
        rows, mask, threads = projected.numpy(), mask_array(present), torch.get_num_threads()
        shaped = d_output.contiguous().view(*weights.shape[:2], -1).numpy()
        attention_backward(rows, mask, weights.numpy(), shaped, d_projected.numpy(), threads)
        return d_projected, None, None


class _CoreBareStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, qkv: Tensor, present: Tensor | None) -> Tensor:
        ctx.layers = []
        ctx.save_for_backward(qkv, present)
        return _run_bare_stack(tokens, qkv, present, ctx.layers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused: Tensor) -> tuple[Tensor, Tensor, None]:
        qkv, present = ctx.saved_tensors
        mask, threads, layers = mask_array(present), torch.get_num_threads(), ctx.layers
        x, projected, _ = layers[0]
        d_qkv, d_tokens = torch.empty_like(qkv), qkv.new_empty(len(qkv), *x.shape)
        d_projected, d_x = np.empty_like(projected), np.empty_like(x)
        maps, d_maps, first, d_results = qkv.numpy(), d_qkv.numpy(), d_tokens.numpy(), d_fused.contiguous().numpy()
        for student in reversed(range(len(maps))):
            d_output = d_results[student]  # [B, D] of the last layer, [B, N, D] of the others
            for layer in reversed(range(maps.shape[1])):
                x, projected, P = layers.pop()
                attention_backward(projected[0], mask, P, d_output, d_projected[0], threads)
                stacked_product(_rows(x), d_projected, None, d_maps[student, layer, None], True, False, threads)
                d_output = d_x if layer else first[student]
                stacked_product(d_projected, maps[student, layer, None], None, _rows(d_output), False, True, threads)
        return hide_missing(d_tokens, present), d_qkv, None


Layer = tuple[Floats, Floats, Floats]  # x [B, N, D], x W [1, B*N, 3D] and P [B, N, N] of a student's layer


def _run_bare_stack(tokens: Tensor, qkv: Tensor, present: Tensor | None, layers: list[Layer] | None) -> Tensor:
    """Student after student: what lies between two products stays in the nearest caches.

    `layers` gets what the backward pass needs. All are NumPy's arrays: PyTorch takes longer to make its own.
    """
    tokens = hide_missing(tokens.detach(), present).contiguous()
    S, B, N, D = tokens.shape
    fused, mask, threads = tokens.new_empty(S, B, D), mask_array(present), torch.get_num_threads()
    maps, results = qkv.detach().numpy(), fused.numpy()
    for student, first in enumerate(tokens.numpy()):
        x = first
        for layer in range(maps.shape[1]):
            projected, P = np.empty((1, B * N, 3 * D), np.float32), np.empty((B, N, N), np.float32)
            stacked_product(_rows(x), maps[student, layer, None], None, projected, False, False, threads)
            output = np.empty_like(x) if layer < maps.shape[1] - 1 else results[student]
            attention_forward(projected[0], mask, P, output, threads)
            if layers is not None:
                layers.append((x, projected, P))
            x = output
    return fused


def _rows(x: Floats) -> Floats:
    """One student's tokens [B, N, D] as rows [1, B*N, D]."""
    return x.reshape(1, -1, x.shape[-1])


class _CoreDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fused: Tensor,
        targets: Tensor,
        lams: Sequence[float],
        deltas: Sequence[float],
        huber: str,
        present: Tensor | None,
    ) -> Tensor:
        t, T = fused.detach().contiguous(), targets.detach().contiguous()
        d_fused, d_targets = torch.empty_like(t), torch.empty_like(T) if ctx.needs_input_grad[1] else None
        totals, cosine, far = t.new_empty(len(t)), t.new_empty(T.shape[2]), t.new_empty(T.shape[2])
        mask, elementwise, threads = mask_array(present), huber == "elementwise", torch.get_num_threads()
        for s, (lam, delta) in enumerate(zip(lams, deltas, strict=True)):
            d_T = None if d_targets is None else d_targets[s].numpy()
            distillation(
                t[s].numpy(), T[s].numpy(), mask, lam, delta, elementwise, totals[s].numpy(), cosine.numpy(),
                far.numpy(), d_fused[s].numpy(), d_T, threads,
            )  # fmt: skip
        ctx.save_for_backward(d_fused, d_targets)
        return totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_totals: Tensor) -> tuple[Tensor | None, ...]:
        d_fused, d_targets = ctx.saved_tensors
        each = d_totals[:, None, None]
        d_targets = None if d_targets is None else d_targets.mul_(each[..., None])
        return d_fused.mul_(each), d_targets, None, None, None, None
