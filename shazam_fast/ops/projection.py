"""Eq. (1): the chosen rows of a feature table, standardised, each teacher's columns through its own linear map.

On the CPU every teacher is one product of PyTorch's or oneDNN's; on an NVIDIA GPU all of them are one Triton kernel.
`kernels/reference.py` defines the result. Gradients can be taken once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.reference import TokenMaps
from ..runtime.products import product, weight_gradient, write_weight_gradient
from .masks import wants_gradient

BLOCK_ROWS = 512  # rows that are standardised at a time where no gradient is wanted


def project_cpu(features: Tensor, rows: Tensor | None, maps: TokenMaps, present: Tensor | None) -> Tensor:
    """Chosen rows, standardised, every teacher's columns through its own linear map; see the definition.

    features [R, sum of dims] -> tokens [B, N, D].
    """
    x = (features if rows is None else features[rows]).to(maps.weight.dtype)
    if maps.standard is not None and not wants_gradient(x, maps.weight, maps.bias):
        with torch.no_grad():
            return _project_in_blocks(x, maps.standard, maps, present)
    tokens: Tensor = _Project.apply(x, maps.standard, maps.weight, maps.bias, maps.dims, present)
    return tokens


def project_triton(
    features: Tensor, rows: Tensor | None, maps: TokenMaps, present: Tensor | None, precision: str
) -> Tensor:
    """The same by a Triton kernel, straight from the rows of the table. -> tokens [B, N, D]."""
    from ..kernels import projection

    return projection.project(features, rows, maps, present, precision)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b by the faster library, see runtime/products.py. [R, E], [E, O], [O] -> [R, O]. Gradients once.

    Args:
        x: [R, E].
        weight: [E, O]; it or its transpose contiguous.
        bias: [O].
    """
    if x.is_cuda or x.dtype != torch.float32:
        return torch.addmm(bias, x, weight)
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        d = d_result.contiguous()
        return (
            product(d, weight.T) if wants_x else None,
            weight_gradient(x, d) if wants_weight else None,
            d.sum(dim=0) if wants_bias else None,
        )


def _project_in_blocks(
    features: Tensor, standard: tuple[Tensor, Tensor], maps: TokenMaps, present: Tensor | None
) -> Tensor:
    """Tokens [B, N, D]; features are standardised block by block in memory that stays in the cache."""
    dims = list(maps.dims)
    tokens = features.new_empty(len(features), len(dims), maps.bias.shape[1])
    scratch = features.new_empty(min(BLOCK_ROWS, len(features)) * max(dims))
    moments = [values.split(dims) for values in standard]
    for start in range(0, len(features), BLOCK_ROWS):
        here = slice(start, start + BLOCK_ROWS)
        parts = zip(features[here].split(dims, dim=1), *moments, maps.weight.split(dims), maps.bias, strict=True)
        for i, (part, mean, scale, W, b) in enumerate(parts):
            x = torch.sub(part, mean, out=scratch[: part.numel()].view(part.shape)).div_(scale)
            if present is not None:
                x.masked_fill_(~present[here, i, None], 0.0)
            tokens[here, i] = product(x, W, b)
    return tokens


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        standard: tuple[Tensor, Tensor] | None,
        weight: Tensor,
        bias: Tensor,
        dims: Sequence[int],
        present: Tensor | None,
    ) -> Tensor:
        columns = _columns(features.detach(), standard, dims, present)
        tokens = features.new_empty(len(features), len(bias), bias.shape[1])
        for i, (x, W, b) in enumerate(zip(columns, weight.detach().split(list(dims)), bias.detach(), strict=True)):
            tokens[:, i] = product(x, W, b)
        ctx.save_for_backward(weight, present, None if standard is None else standard[1], *columns)
        return tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_tokens: Tensor) -> tuple[Tensor | None, ...]:
        weight, present, scale, *columns = ctx.saved_tensors
        wants_features, _, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        d_rows = d_tokens.transpose(0, 1).contiguous()  # [N, B, D]
        d_weight = None
        if wants_weight:
            d_weight = torch.empty_like(weight)  # filled part by part: large temporaries cost page faults
            for part, x, d in zip(d_weight.split([x.shape[1] for x in columns]), columns, d_rows, strict=True):
                write_weight_gradient(x, d, part)
        d_features = None
        if wants_features:
            maps = weight.split([x.shape[1] for x in columns])
            parts = [product(d, W.T) for d, W in zip(d_rows, maps, strict=True)]
            d_features = torch.cat(_hide_columns(parts, present), dim=1)
            d_features = d_features if scale is None else d_features.div_(scale)
        return d_features, None, d_weight, d_tokens.sum(dim=0) if wants_bias else None, None, None


def _columns(
    features: Tensor, standard: tuple[Tensor, Tensor] | None, dims: Sequence[int], present: Tensor | None
) -> list[Tensor]:
    """Every teacher's columns, standardised, side by side in memory."""
    parts = features.split(list(dims), dim=1)
    if standard is None:
        columns = [part.contiguous() for part in parts]
    else:
        moments = zip(parts, *(x.split(list(dims)) for x in standard), strict=True)
        columns = [
            torch.sub(part, mean, out=torch.empty(part.shape, dtype=part.dtype)).div_(scale)
            for part, mean, scale in moments
        ]
    return _hide_columns(columns, present)


def _hide_columns(columns: list[Tensor], present: Tensor | None) -> list[Tensor]:
    if present is None:
        return columns
    return [x.masked_fill(~there[:, None], 0.0) for x, there in zip(columns, present.unbind(1), strict=True)]
