"""Eq. (1): the chosen rows of a feature table, standardised, each teacher's columns through its own linear map.

On an AMD processor with AVX-512 all of it is one call of the compiled core, on other CPUs every teacher is one product
of PyTorch's; on an NVIDIA GPU all of them are one Triton kernel.
`kernels/reference.py` defines the result. Gradients can be taken once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._core import project, project_gradient
from ..kernels.reference import TokenMaps
from ..runtime.products import CORE_PRODUCTS, product, weight_gradient, write_weight_gradient
from .masks import mask_array, wants_gradient

BLOCK_ROWS = 512  # rows that are standardised at a time where no gradient is wanted


def project_cpu(features: Tensor, rows: Tensor | None, maps: TokenMaps, present: Tensor | None) -> Tensor:
    """Chosen rows, standardised, every teacher's columns through its own linear map; see the definition.

    features [R, sum of dims] -> tokens [B, N, D].
    """
    if not _core_takes(features, rows, maps):
        features, rows = (features if rows is None else features[rows]).to(maps.weight.dtype), None
    if maps.standard is not None and not wants_gradient(features, maps.weight, maps.bias):
        with torch.no_grad():
            if _core_takes(features, rows, maps):
                return _project_in_core(features, rows, maps, present)[0]
            return _project_in_blocks(features, maps.standard, maps, present)
    tokens: Tensor = _Project.apply(features, rows, maps.standard, maps.weight, maps.bias, maps.dims, present)
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


def _core_takes(features: Tensor, rows: Tensor | None, maps: TokenMaps) -> bool:
    """Whether one call of the compiled core gathers, standardises and multiplies; it gives features no gradient."""
    stored = features.dtype in (torch.float32, torch.float16) and features.stride(1) == 1
    chosen = rows is None or (rows.dtype == torch.int64 and rows.ndim == 1)
    return CORE_PRODUCTS and stored and chosen and maps.standard is not None and not features.requires_grad


def _project_in_core(
    features: Tensor, rows: Tensor | None, maps: TokenMaps, present: Tensor | None, *, keep: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Tokens [B, N, D] and, if they are to be kept, the standardised columns [B, sum of dims]."""
    assert maps.standard is not None
    B, (N, D) = len(features if rows is None else rows), maps.bias.shape
    tokens = maps.weight.new_empty(B, N, D)
    columns = maps.weight.new_empty(B, features.shape[1]) if keep else None
    mean, scale, weight, bias = (x.detach().contiguous().numpy() for x in (*maps.standard, maps.weight, maps.bias))
    project(
        features.numpy(), None if rows is None else rows.numpy(), list(maps.dims), mean, scale, mask_array(present),
        weight, bias, None if columns is None else columns.numpy(), tokens.numpy(), torch.get_num_threads(),
    )  # fmt: skip
    return tokens, columns


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        rows: Tensor | None,
        standard: tuple[Tensor, Tensor] | None,
        weight: Tensor,
        bias: Tensor,
        dims: Sequence[int],
        present: Tensor | None,
    ) -> Tensor:
        maps = TokenMaps(weight, bias, dims, standard)
        ctx.dims = list(dims) if _core_takes(features, rows, maps) else None
        if ctx.dims is not None:
            tokens, kept = _project_in_core(features, rows, maps, present, keep=True)
            assert kept is not None
            columns = [kept]
        else:
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
        wants_features, _, _, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        d_tokens = d_tokens.contiguous()
        d_rows = d_tokens.unbind(1)  # [B, D] each
        d_weight = None
        if wants_weight and ctx.dims is not None:
            d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
            threads = torch.get_num_threads()
            project_gradient(columns[0].numpy(), ctx.dims, d_tokens.numpy(), d_weight.numpy(), threads)
        elif wants_weight:
            d_weight = torch.empty_like(weight)  # filled part by part: large temporaries cost page faults
            for part, x, d in zip(d_weight.split([x.shape[1] for x in columns]), columns, d_rows, strict=True):
                write_weight_gradient(x, d, part)
        d_features = None
        if wants_features:
            maps = weight.split([x.shape[1] for x in columns])
            parts = [product(d.contiguous(), W.T) for d, W in zip(d_rows, maps, strict=True)]
            d_features = torch.cat(_hide_columns(parts, present), dim=1)
            d_features = d_features if scale is None else d_features.div_(scale)
        return d_features, None, None, d_weight, d_tokens.sum(dim=0) if wants_bias else None, None, None


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
