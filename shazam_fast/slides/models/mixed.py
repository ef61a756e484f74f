"""Linear maps of slide models, in float32 or, while `multiplying` says so, with operands rounded to bfloat16.

In mixed precision the operands of a product and its result are rounded to bfloat16; sums within a product, parameters,
their gradients once multiplied, biases, softmax, norms, pooling and losses are float32. Processors with AVX-512 BF16
or AMX multiply bfloat16 at twice the rate of float32 or more, GPUs with tensor cores at many times.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...ops.projection import linear as exact_linear

BLOCK_VALUES = 1 << 17  # that are standardised at a time: they stay in a core's cache

_precision = ContextVar("precision", default="ieee")


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Products of `linear` and `project` in a precision while the context lasts: "ieee" (float32) or "bf16".

    >>> x, W = torch.full((1, 2), 1.001), torch.eye(2)
    >>> with multiplying("bf16"):
    ...     linear(x, W, torch.zeros(2)).tolist()
    [[1.0, 1.0]]
    """
    before = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(before)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b. [R, E], [E, O], [O] -> [R, O] float32. Gradients can be taken once.

    Args:
        x: [R, E].
        weight: [E, O]; it or its transpose contiguous.
        bias: [O].
    """
    if _precision.get() == "ieee":
        return exact_linear(x, weight, bias)
    result: Tensor = _Rounded.apply(x, weight, bias)
    return result


def project(features: Tensor, weight: Tensor, bias: Tensor, dims: Sequence[int]) -> Tensor:
    """Each teacher's columns through its own map, eq. (1), operands in bfloat16. -> tokens [P, N, D].

    Args:
        features: [P, sum of dims], standardised; no gradient is taken by them.
        weight: [sum of dims, D], the maps one below the other.
        bias: [N, D].
        dims: columns of each teacher.
    """
    parts = zip(features.split(list(dims), dim=1), weight.split(list(dims)), bias, strict=True)
    return torch.stack([_Rounded.apply(x, W, b) for x, W, b in parts], dim=1)


def standardise(features: Tensor, standard: tuple[Tensor, Tensor], out: Tensor) -> None:
    """Write (f - mean) / scale, rounded to bfloat16 afterwards, so that a large mean costs no digits.

    Args:
        features: float32 [P, width], on the CPU; what they hold is lost.
        standard: mean and scale of the columns, [width] each.
        out: bfloat16 [P, width].

    >>> out = torch.empty(1, 2, dtype=torch.bfloat16)
    >>> standardise(torch.tensor([[1000.5, 3.0]]), (torch.tensor([1000.0, 1.0]), torch.tensor([0.5, 2.0])), out)
    >>> out.tolist()
    [[1.0, 1.0]]
    """
    mean, scale = standard
    for source, target in zip(features.split(block := block_rows(features.shape[1])), out.split(block), strict=True):
        target.copy_(source.sub_(mean).div_(scale))


def block_rows(width: int) -> int:
    """Rows of features that stay in a core's cache."""
    return max(1, BLOCK_VALUES // width)


class _Rounded(torch.autograd.Function):
    """x W + b with x, W and what comes back rounded to bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return torch.mm(x, weight).float().add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d = d_result.bfloat16()
        d_x = torch.mm(d, weight.T).float() if ctx.needs_input_grad[0] else None
        return d_x, _weight_gradient(x, d), d_result.sum(dim=0)


def _weight_gradient(x: Tensor, d: Tensor) -> Tensor:
    """x^T d in float32, computed so that the narrower of the two is transposed. [R, E], [R, O] -> [E, O]."""
    if x.shape[1] <= d.shape[1]:
        return torch.mm(x.T, d).float()
    return torch.mm(d.T, x).T.to(torch.float32, memory_format=torch.contiguous_format)
