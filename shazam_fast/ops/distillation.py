"""Eqs. (5)-(7): the cosine and the Huber distillation loss, with their gradients taken in the same pass.

On the CPU one call of the compiled core, on an NVIDIA GPU one Triton kernel. `kernels/reference.py` defines the result.
Gradients can be taken once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._core import distillation
from .masks import mask_array, wants_gradient


def distillation_loss_cpu(
    fused: Tensor, targets: Tensor, lam: float, delta: float, huber: str, present: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both distillation losses, with their gradients taken in the same pass.

    fused [B, D], targets [B, N, D], huber "norm" or "elementwise", present bool [B, N] or None
    -> total = lam * sum(cosine + huber); cosine [N] and huber [N], means over the batch, which carry no gradient.
    """
    if wants_gradient(fused, targets):
        total, cosine_losses, huber_losses = _Distillation.apply(fused, targets, lam, delta, huber, present)
        return total, cosine_losses, huber_losses
    return _distil(fused, targets, lam, delta, huber, present, None, None)


def distillation_loss_triton(
    fused: Tensor, targets: Tensor, lam: float, delta: float, huber: str, present: Tensor | None, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by a Triton kernel, which takes no products: it is float32 in every `precision`."""
    from ..kernels.distillation import distillation_loss

    return distillation_loss(fused, targets, lam, delta, huber, present)


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
    def backward(ctx: Any, d_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if d_total is None:
            return (None,) * 6
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
        mask_array(present),
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
