"""The student's operations on the CPU: projections by PyTorch's GEMM, everything else by the compiled core.

With a handful of teachers PyTorch spends its time on dispatch and on batched matrices too small for it. Here a stack is
one node of the autograd graph, and what lies between two GEMMs is one call.

For float32 tensors on the CPU and up to MAX_TEACHERS teachers (see `obstacle`); `kernels/reference.py` defines every
result. Gradients can be taken once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._core import MAX_TEACHERS, attention_backward, attention_forward, distillation, folded_scores
from ..kernels import reference
from ..runtime.products import product

NORM_EPSILON = 1e-5  # of PyTorch's LayerNorm

FOLDED_BYTES = 2 << 20  # of intermediate values that folded scoring keeps at a time for a thread: its cache holds them


def obstacle(x: Tensor) -> str | None:
    """What keeps operations on tokens, targets or maps `x` from running here; None: nothing."""
    if x.dtype != torch.float32:
        return f"the student is {x.dtype}, not torch.float32"
    if x.ndim == 3 and x.shape[1] > MAX_TEACHERS:
        return f"{x.shape[1]} teachers, more than {MAX_TEACHERS}"
    return None


def bare_stack(tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """K bare attention layers and the mean; `attention` carries no gradient.

    tokens [B, N, D], qkv [K, D, 3D], present bool [B, N] or None -> fused [B, D], attention [B, K, N, N].
    """
    if _wants_gradient(tokens, qkv):
        fused, attention = _BareStack.apply(tokens, qkv, present)
        return fused, attention
    with torch.no_grad():
        return _stack_forward(tokens, qkv, present, None)


def residual_stack(
    tokens: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    present: Tensor | None,
) -> Tensor:
    """K residual attention layers and the mean; see the definition. -> fused [B, D]."""
    maps = (qkv, qkv_bias, out_weight, out_bias, norm_weight, norm_bias)
    if present is not None:
        tokens = tokens.masked_fill(~present[:, :, None], 0.0)
    return reference.mean_pool(_ResidualStack.apply(tokens, present, *maps), present)


def project(
    features: Tensor,
    rows: Tensor | None,
    standard: tuple[Tensor, Tensor] | None,
    weight: Tensor,
    bias: Tensor,
    dims: Sequence[int],
    present: Tensor | None,
) -> Tensor:
    """Chosen rows, standardised, every teacher's columns through its own linear map; see the definition.

    features [R, sum of dims], weight [sum of dims, D], bias [N, D] -> tokens [B, N, D].
    """
    x = (features if rows is None else features[rows]).to(weight.dtype)
    tokens: Tensor = _Project.apply(x, standard, weight, bias, dims, present)
    return tokens


def distillation_loss(
    fused: Tensor, targets: Tensor, lam: float, delta: float, huber: str, present: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both distillation losses, with their gradients taken in the same pass.

    fused [B, D], targets [B, N, D], huber "norm" or "elementwise", present bool [B, N] or None
    -> total = lam * sum(cosine + huber); cosine [N] and huber [N], means over the batch, which carry no gradient.
    """
    if _wants_gradient(fused, targets):
        total, cosine_losses, huber_losses = _Distillation.apply(fused, targets, lam, delta, huber, present)
        return total, cosine_losses, huber_losses
    return _distil(fused, targets, lam, delta, huber, present, None, None)


@torch.no_grad()
def folded_stack(tokens: Tensor, score_maps: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """The folded bare stack, for inference. tokens [B, N, D], score_maps [D, K*D] -> pooled [B, D], w [B, N]."""
    tokens = _hide_absent(tokens, present)
    B, N, D = tokens.shape
    width = score_maps.shape[1]
    pooled, w = tokens.new_empty(B, D), tokens.new_empty(B, N)
    mask, threads = _mask(present), torch.get_num_threads()
    size = max(1, threads * FOLDED_BYTES // (N * width * tokens.element_size()))
    for start in range(0, B, size):
        part = slice(start, start + size)
        left = product(tokens[part].flatten(0, 1), score_maps).view(-1, N * width // D, D)
        part_mask = None if mask is None else mask[part]
        folded_scores(left.numpy(), tokens[part].numpy(), part_mask, pooled[part].numpy(), w[part].numpy(), threads)
    return pooled, w


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
                part.copy_(product(x.T, d))
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


class _ResidualStack(torch.autograd.Function):
    """K times T -> LN(T + (P V) Wo + bo): tokens after the last layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, present: Tensor | None, *maps: Tensor) -> Tensor:
        mask, threads = _mask(present), torch.get_num_threads()
        x, kept = x.detach().contiguous(), []
        B, N, D = x.shape
        for weight, bias, out, offset, gain, shift in zip(*(m.detach() for m in maps), strict=True):
            projected = product(x.flatten(0, 1), weight, bias)
            P, attended = x.new_empty(B, N, N), torch.empty_like(x)
            attention_forward(projected.numpy(), mask, P.numpy(), attended.numpy(), threads)
            r = product(attended.flatten(0, 1), out, offset).view_as(x).add_(x)
            y, mean, rstd = torch.native_layer_norm(r, [D], gain, shift, NORM_EPSILON)
            kept += [x, projected, P, attended, r, mean, rstd]
            x = y
        ctx.save_for_backward(present, *maps, *kept)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor | None, ...]:
        present, *maps = ctx.saved_tensors[:7]
        kept = ctx.saved_tensors[7:]
        d_maps = [torch.empty_like(m) for m in maps]
        mask, threads, D = _mask(present), torch.get_num_threads(), d_x.shape[-1]
        for layer in reversed(range(len(maps[0]))):
            x, projected, P, attended, r, mean, rstd = kept[7 * layer : 7 * layer + 7]
            weight, _, out, _, gain, shift = (m[layer] for m in maps)
            d_r, d_gain, d_shift = torch.ops.aten.native_layer_norm_backward(
                d_x.contiguous(), r, [D], mean, rstd, gain, shift, [True, True, True]
            )
            d_rows = d_r.view(-1, D)
            d_attended, d_projected = product(d_rows, out.T).view_as(x), torch.empty_like(projected)
            attention_backward(projected.numpy(), mask, P.numpy(), d_attended.numpy(), d_projected.numpy(), threads)
            d_weight = product(x.view(-1, D).T, d_projected)
            d_out = product(attended.view(-1, D).T, d_rows)
            found = (d_weight, d_projected.sum(0), d_out, d_rows.sum(0), d_gain, d_shift)
            for whole, part in zip(d_maps, found, strict=True):
                whole[layer] = part
            d_x = product(d_projected, weight.T).view_as(x).add_(d_r)
        return d_x, None, *d_maps


class _BareStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        fused, attention = _stack_forward(tokens, qkv, present, kept)
        ctx.save_for_backward(qkv, present, attention, *kept)
        ctx.mark_non_differentiable(attention)
        ctx.set_materialize_grads(False)
        return fused, attention

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused: Tensor, _: None) -> tuple[Tensor | None, Tensor | None, None]:
        qkv, present, attention, *kept = ctx.saved_tensors
        wants_tokens, wants_qkv, _ = ctx.needs_input_grad
        d_qkv = torch.empty_like(qkv) if wants_qkv else None
        d_projected = torch.empty_like(kept[1])
        mask, P, threads = _mask(present), attention.numpy(), torch.get_num_threads()
        d_output = d_fused.contiguous()  # [B, D] of the last layer, [B, N, D] of the others
        for layer in reversed(range(qkv.shape[0])):
            x, projected = kept[2 * layer : 2 * layer + 2]
            attention_backward(projected.numpy(), mask, P[:, layer], d_output.numpy(), d_projected.numpy(), threads)
            if d_qkv is not None:
                d_qkv[layer] = product(x.flatten(0, 1).T, d_projected)
            if layer or wants_tokens:
                d_output = product(d_projected, qkv[layer].T).view_as(x)
        return _hide_absent(d_output, present) if wants_tokens else None, d_qkv, None


def _stack_forward(
    tokens: Tensor, qkv: Tensor, present: Tensor | None, kept: list[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """`kept` gets what the backward pass needs: x [B, N, D] and x W [B*N, 3D] of every layer."""
    x = _hide_absent(tokens, present)
    B, N, D = x.shape
    K = qkv.shape[0]
    attention = x.new_empty(B, K, N, N)
    mask, P, threads = _mask(present), attention.numpy(), torch.get_num_threads()
    for layer, weight in enumerate(qkv.detach()):
        projected = product(x.flatten(0, 1), weight)
        output = x.new_empty(B, D) if layer == K - 1 else torch.empty_like(x)
        attention_forward(projected.numpy(), mask, P[:, layer], output.numpy(), threads)
        if kept is not None:
            kept += [x, projected]
        x = output
    return x, attention


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fused: Tensor, targets: Tensor, lam: float, delta: float, huber: str, present: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_fused = torch.empty_like(fused, memory_format=torch.contiguous_format)
        wants_targets = ctx.needs_input_grad[1]
        d_targets = torch.empty_like(targets, memory_format=torch.contiguous_format) if wants_targets else None
        losses = _distil(fused, targets, lam, delta, huber, present, d_fused, d_targets)
        ctx.save_for_backward(d_fused, d_targets)
        ctx.mark_non_differentiable(*losses[1:])
        ctx.set_materialize_grads(False)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        d_fused, d_targets = ctx.saved_tensors
        return d_fused * d_total, None if d_targets is None else d_targets * d_total, None, None, None, None


def _distil(
    fused: Tensor,
    targets: Tensor,
    lam: float,
    delta: float,
    huber: str,
    present: Tensor | None,
    d_fused: Tensor | None,
    d_targets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    N = targets.shape[1]
    total, cosine_losses, huber_losses = fused.new_empty(()), fused.new_empty(N), fused.new_empty(N)
    distillation(
        fused.detach().contiguous().numpy(),
        targets.detach().contiguous().numpy(),
        _mask(present),
        lam,
        delta,
        huber == "elementwise",
        total.numpy(),
        cosine_losses.numpy(),
        huber_losses.numpy(),
        None if d_fused is None else d_fused.numpy(),
        None if d_targets is None else d_targets.numpy(),
        torch.get_num_threads(),
    )
    return total, cosine_losses, huber_losses


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _hide_absent(tokens: Tensor, present: Tensor | None) -> Tensor:
    """Contiguous tokens [B, N, D], those of absent teachers 0: not even a NaN may reach a result."""
    if present is not None:
        tokens = tokens.masked_fill(~present[:, :, None], 0.0)
    return tokens.detach().contiguous()


def _mask(present: Tensor | None) -> NDArray[Any] | None:
    return None if present is None else present.contiguous().numpy()
