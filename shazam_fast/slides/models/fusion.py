"""Fusion first: Shazam's student fuses the teachers' features of every patch, attention per column pools them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops import dispatch as ops
from ...student.layers import Projection, fill_uniform
from .abmil import AttentionScore
from .mixed import project
from .pooling import PatchCodes, SlideModel, segment_softmax, segment_sum


class ShazamABMIL(SlideModel):
    """Tokens T_pi = x_pi W_i + b_i, attention layers over the N tokens of a patch, fused feature t_p; then pooling.

    A patch's fused feature is t_p = sum_i w_pi T_pi C with the exact teacher shares w_p (Shazam, arXiv 2503.00736, eqs.
    1 to 4, bare student). Its columns d are pooled by gated attention that a column's own value sharpens,

        e_pd = e_p + beta_d t_pd / sigma,   a_pd = exp(e_pd) / sum_{q in s} exp(e_qd),   z_sd = sum_{p in s} a_pd t_pd

    with e_p of ABMIL (arXiv 1802.04712, eq. 9) and a learned beta_d, at first 1: 0 gives ABMIL, a large one the maximum
    of the column (auto-pool, arXiv 1804.10070). sigma = sqrt(3^-(K+1) / N) is about the standard deviation of t_pd
    before training. ABMIL alone begins at the mean, in which a few telling patches drown, and fits the means of few
    slides before it finds them; here patches that stand out in a column count from the first step.

    Given a_pd, z is linear in t_p, so with the attention a_p = (1/D) sum_d a_pd of a patch

        z_sd = sum_i sum_{p in s} a_pd w_pi (T_pi C)_d,    share of teacher i in slide s = sum_{p in s} a_p w_pi

    is exact too: the mean over the columns of each one's exact share. The shares sum to 1 over the teachers.

    Args:
        dims, D, outputs, dropout: as for `SlideModel`.
        depth: number K of attention layers over a patch's tokens.

    >>> model = ShazamABMIL([4, 3], 8, 2, 0.0, depth=1).eval()
    >>> output = model(torch.randn(5, 7), torch.tensor([0, 0, 1, 1, 1]), 2)
    >>> output.shares.shape, torch.allclose(output.shares.sum(dim=1), torch.ones(2))
    (torch.Size([2, 2]), True)
    """

    pools_by_attention = False  # one attention per column: the fused features are held until the last patch is seen

    def __init__(self, dims: Sequence[int], D: int, outputs: int, dropout: float, depth: int) -> None:
        super().__init__(dims, D, outputs, dropout)
        self.projection = Projection(dims, D)
        self.qkv = nn.Parameter(torch.empty(depth, D, 3 * D))  # x W: query, key and value side by side
        with torch.no_grad():
            fill_uniform([self.qkv], D, None)
        self.attention = AttentionScore(D, D, gated=True)
        self.sharpness = nn.Parameter(torch.ones(D))  # beta
        self.spread = math.sqrt(3.0 ** -(depth + 1) / len(dims))  # sigma: each map has variance 1/3, t is a mean

    def encode(self, features: Tensor) -> PatchCodes:
        """As `SlideModel.encode`, with shares [P, N] outside training."""
        maps = self.projection
        if features.dtype == torch.bfloat16:
            tokens = project(features, maps.weight, maps.bias, maps.dims)  # [P, N, D]
        else:
            tokens = maps(features, None, (self.feature_mean, self.feature_scale), None)
        fused, shares = ops.bare_stack(tokens, self.qkv, None)
        return PatchCodes(fused, self.attention(fused), None if self.training else shares())

    def pool(self, codes: PatchCodes, segments: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As `SlideModel.pool`."""
        scores = codes.scores[:, None] + self.sharpness / self.spread * codes.values  # [P, D]
        attention = segment_softmax(scores, segments, count)
        return segment_sum(attention * codes.values, segments, count), attention.mean(dim=1)
