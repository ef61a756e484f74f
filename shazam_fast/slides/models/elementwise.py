"""Dropout and softmax of slide models: PyTorch's draw one number per value, and are slow on short rows, on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEVELS = 1 << 16  # of 16 random bits per value
FARTHEST = -80.0  # below the largest logit, from which on exp would be slow, and is nothing beside it
SHORT = 16  # keys up to which they are put in order by comparisons of whole columns


class Dropout(nn.Module):
    """Dropout that on a CPU draws 64 random bits for four values.

    Args:
        p: probability that a value is left out, to within 1 / LEVELS; the others are divided by what is left of 1.

    >>> set(Dropout(0.5)(torch.ones(99)).tolist()), Dropout(0.5).eval()(torch.ones(1)).item()
    ({0.0, 2.0}, 1.0)
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x with values left out, in training."""
        if not self.training or self.p == 0 or x.is_cuda:
            return F.dropout(x, self.p, self.training)
        left_out = round(self.p * LEVELS)
        if left_out == LEVELS:
            return x * 0.0
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        drawn = bits.view(torch.int16)[: x.numel()].view(x.shape)  # uniform in -LEVELS/2 .. LEVELS/2 - 1
        return x * (drawn >= left_out - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - left_out))


def softmax_of_largest(logits: Tensor, present: Tensor, top_k: int) -> Tensor:
    """Softmax over the k largest logits of each row among those that are present; 0 for the others.

    Equal logits at the border are all kept. Gradients can be taken once.

    Args:
        logits: [..., K].
        present: bool, to be broadcast over `logits`; in a row without any all are 0.
        top_k: number k.

    >>> softmax_of_largest(torch.tensor([2.0, 1.0, 2.0, 9.0]), torch.tensor([True, True, True, False]), 2).tolist()
    [0.5, 0.0, 0.5, 0.0]
    """
    result: Tensor = _SoftmaxOfLargest.apply(logits, present, top_k)
    return result


class _SoftmaxOfLargest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, present: Tensor, top_k: int) -> Tensor:
        P = logits.masked_fill(~present, torch.finfo(logits.dtype).min)
        kept = present
        if top_k < P.shape[-1]:
            kept = (kth_largest(P, top_k)[..., None] <= P).logical_and_(present)
        P.sub_(P.amax(dim=-1, keepdim=True)).clamp_min_(FARTHEST).exp_().mul_(kept)
        P.div_(P.sum(dim=-1, keepdim=True).clamp_min_(torch.finfo(P.dtype).tiny))
        ctx.save_for_backward(P)
        return P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_P: Tensor) -> tuple[Tensor | None, ...]:
        (P,) = ctx.saved_tensors
        weighted = d_P * P
        return weighted.sub_(weighted.sum(dim=-1, keepdim=True) * P), None, None


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest value of each row. [..., K] -> [...].

    >>> kth_largest(torch.tensor([[3.0, 1.0, 2.0]]), 2).tolist()
    [2.0]
    """
    K = values.shape[-1]
    if values.is_cuda or K > SHORT:
        return values.topk(k, dim=-1, sorted=False).values.amin(dim=-1)
    columns = list(values.reshape(-1, K).T.contiguous().unbind())
    for last in range(K - 1, k - 2, -1):  # the smallest of the first columns moves to the last of them
        for i in range(last):
            columns[i], columns[i + 1] = torch.maximum(columns[i], columns[i + 1]), torch.minimum(*columns[i : i + 2])
    return columns[k - 1].view(values.shape[:-1])
