"""Attention-based multiple-instance learning (ABMIL, arXiv 1802.04712)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .mixed import linear
from .pooling import PatchCodes, PatchEncoder, SlideModel

BLOCK_ROWS = 2048  # patches that are scored at once on a CPU: what lies between the products stays in its cache


class AttentionScore(nn.Module):
    """The score from which a patch's attention is computed. [P, D] -> [P].

        plain  e_p = w^T tanh(V h_p)                         (ABMIL eq. 8; FuseCPath, arXiv 2510.27237, eq. 9)
        gated  e_p = w^T (tanh(V h_p) * sigmoid(U h_p))      (ABMIL eq. 9)

    Args:
        D: width of h.
        hidden: rows of V and U.
        gated: which of the two.

    >>> import torch
    >>> AttentionScore(8, 4, gated=True)(torch.ones(3, 8)).shape
    torch.Size([3])
    """

    def __init__(self, D: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.V = nn.Linear(D, hidden)
        self.U = nn.Linear(D, hidden) if gated else None
        self.w = nn.Linear(hidden, 1, bias=False)  # a bias would cancel in the softmax

    def forward(self, values: Tensor) -> Tensor:
        """Scores [P] of values [P, D]."""
        if values.is_cuda:
            return self._score(values)
        return torch.cat([self._score(block) for block in values.split(BLOCK_ROWS)])

    def _score(self, values: Tensor) -> Tensor:
        if self.U is None:
            hidden = linear(values, self.V.weight.T, self.V.bias).tanh()
        else:
            weight, bias = torch.cat([self.V.weight, self.U.weight]), torch.cat([self.V.bias, self.U.bias])
            left, right = linear(values, weight.T, bias).chunk(2, dim=1)
            hidden = left.tanh() * right.sigmoid()
        scores: Tensor = self.w(hidden)[:, 0]
        return scores


class ABMIL(SlideModel):
    """ABMIL on all teachers' features side by side: h_p = ReLU(W x_p + b), attention from `AttentionScore`.

    Args:
        dims, D, outputs, dropout: as for `SlideModel`; V and U have D rows.
        gated: with the gate of eq. (9).

    >>> import torch
    >>> model = ABMIL([4, 3], 8, 2, 0.0, gated=True)
    >>> output = model(torch.randn(5, 7), torch.tensor([0, 0, 1, 1, 1]), 2)
    >>> output.outputs.shape, output.shares is None
    (torch.Size([2, 2]), True)
    """

    def __init__(self, dims: Sequence[int], D: int, outputs: int, dropout: float, gated: bool) -> None:
        super().__init__(dims, D, outputs, dropout)
        self.encoder = PatchEncoder(sum(dims), D)
        self.attention = AttentionScore(D, D, gated)

    def encode(self, features: Tensor) -> PatchCodes:
        """As `SlideModel.encode`."""
        values = self.encoder(features, self.feature_mean, self.feature_scale)
        return PatchCodes(values, self.attention(values), None)
