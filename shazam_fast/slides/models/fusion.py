"""Fusion first: Shazam's student fuses the teachers' features of every patch, ABMIL pools the fused features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops import dispatch as ops
from ...student.layers import Projection, fill_uniform
from .abmil import AttentionScore
from .mixed import project
from .pooling import PatchCodes, SlideModel


class ShazamABMIL(SlideModel):
    """Tokens T_pi = x_pi W_i + b_i, attention layers over the N tokens of a patch, fused feature t_p; then gated ABMIL.

    A patch's fused feature is t_p = sum_i w_pi T_pi C with the exact teacher shares w_p (Shazam, arXiv 2503.00736, eqs.
    1 to 4, bare student), and nothing nonlinear stands between it and the pooled z_s = sum_p a_p t_p. So

        z_s = sum_i sum_{p in s} a_p w_pi T_pi C,    share of teacher i in slide s = sum_{p in s} a_p w_pi

    is exact too, and sums to 1 over the teachers.

    Args:
        dims, D, outputs, dropout: as for `SlideModel`.
        depth: number K of attention layers over a patch's tokens.

    >>> model = ShazamABMIL([4, 3], 8, 2, 0.0, depth=1).eval()
    >>> output = model(torch.randn(5, 7), torch.tensor([0, 0, 1, 1, 1]), 2)
    >>> output.shares.shape, torch.allclose(output.shares.sum(dim=1), torch.ones(2))
    (torch.Size([2, 2]), True)
    """

    def __init__(self, dims: Sequence[int], D: int, outputs: int, dropout: float, depth: int) -> None:
        super().__init__(dims, D, outputs, dropout)
        self.projection = Projection(dims, D)
        self.qkv = nn.Parameter(torch.empty(depth, D, 3 * D))  # x W: query, key and value side by side
        with torch.no_grad():
            fill_uniform([self.qkv], D, None)
        self.attention = AttentionScore(D, D, gated=True)

    def encode(self, features: Tensor) -> PatchCodes:
        """As `SlideModel.encode`, with shares [P, N] outside training."""
        maps = self.projection
        if features.dtype == torch.bfloat16:
            tokens = project(features, maps.weight, maps.bias, maps.dims)  # [P, N, D]
        else:
            tokens = maps(features, None, (self.feature_mean, self.feature_scale), None)
        fused, shares = ops.bare_stack(tokens, self.qkv, None)
        return PatchCodes(fused, self.attention(fused), None if self.training else shares())
