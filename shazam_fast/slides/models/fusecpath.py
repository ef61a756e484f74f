"""FuseCPath's model of a bag (arXiv 2510.27237): attention within regions, attention across regions, ABMIL."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ShazamError
from ...student.layers import fill_uniform
from .abmil import AttentionScore
from .elementwise import Dropout, softmax_of_largest
from .mixed import linear
from .pooling import PatchCodes, PatchEncoder, SlideModel
from .regions import Regions

HEADS = 8
KERNEL = 15  # width of the position term, of the released code
SLOTS = 3  # G: summaries of each region, of the released code
HIDDEN = 128  # rows of V of the last attention at most, of the released code
DROPOUT = 0.1  # after each attention's last map
LOGITS = 1 << 25  # that are held at once outside training


class Attention(nn.Module):
    """Multi-head self-attention of the tokens of each line, of which only the k largest logits of a query are kept.

        e = Q K^T / sqrt(d),   P = softmax(topk(e + position(e))),   MSA(Z) = P V Wo                        (eq. 6)

    The position term is a convolution of the logits along the queries, as in the released code, one kernel per head. It
    is linear in the queries, so it is computed on them: e + w * e = (Q + w * Q) K^T / sqrt(d).

    Args:
        D: width of the tokens, a multiple of HEADS.
        top_k: number k of keys that a query attends to.
        position: whether there is a position term. Tokens stand in the order of the slide's rows.
    """

    def __init__(self, D: int, top_k: int, position: bool) -> None:
        super().__init__()
        self.top_k = top_k
        self.qkv = nn.Linear(D, 3 * D)
        self.out = nn.Linear(D, D)
        self.dropout = Dropout(DROPOUT)
        self.position = None
        if position:
            self.position = nn.Parameter(torch.empty(HEADS, KERNEL))  # w; a bias would cancel in the softmax
            with torch.no_grad():
                fill_uniform([self.position], KERNEL, None)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Attention within each line.

        Args:
            tokens: [R, K, D].
            present: bool [R, K], which tokens are there; in each line those that are come first.

        Returns [R, K, D]; of no meaning where none is present.
        """
        R, K, D = tokens.shape
        qkv = (
            linear(tokens.flatten(0, 1), self.qkv.weight.T, self.qkv.bias)
            .view(R, K, 3, HEADS, D // HEADS)
            .permute(2, 0, 3, 1, 4)
        )
        query, key, value = qkv.unbind()  # [R, H, K, d]
        if self.position is not None:
            query = query + band(self.position, K) @ (query * present[:, None, :, None])
        logits = query @ key.transpose(2, 3) / math.sqrt(D // HEADS)  # [R, H, K, K]
        attention = softmax_of_largest(logits, present[:, None, None, :], self.top_k)
        mixed = (attention @ value).transpose(1, 2).reshape(R * K, D)
        result: Tensor = self.dropout(linear(mixed, self.out.weight.T, self.out.bias).view(R, K, D))
        return result


def band(kernels: Tensor, K: int) -> Tensor:
    """Matrices [H, K, K] that convolve K rows with kernels [H, odd width], zeros beyond both ends.

    >>> band(torch.tensor([[1.0, 2.0, 3.0]]), 3)[0].tolist()
    [[2.0, 3.0, 0.0], [1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]
    """
    half = kernels.shape[1] // 2
    steps = torch.arange(K, device=kernels.device)
    offsets = (steps[None, :] - steps[:, None]).clamp(-half - 1, half + 1) + half + 1
    return F.pad(kernels, (1, 1))[:, offsets]


class LocalLayer(nn.Module):
    """Attention within regions, eq. (5): Z = MSA(LN(H)) + H."""

    def __init__(self, D: int, top_k: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.attention = Attention(D, top_k, position=True)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Tokens [R, K, D] of R regions, `present` bool [R, K]; outside training some regions after another."""
        step = len(tokens)
        if not torch.is_grad_enabled():
            step = max(1, LOGITS // (HEADS * tokens.shape[1] ** 2))
        parts = zip(tokens.split(step), present.split(step), strict=True)
        return torch.cat([z + self.attention(self.norm(z), known) for z, known in parts])


class CrossLayer(nn.Module):
    """Attention across the regions of a slide through G summaries of each region, eq. (7), with LN and a sum as (5):

        L = LN(Z) Phi,   R = softmax_k(L)^T LN(Z),   Z = Z + sum_g minmax_k(L)_g softmax_g(L)_g MSA(R)_g

    where k runs over the patches of a region.

    The g-th summaries of a slide's regions attend to each other, never to those of another slide. The minmax of a
    region of one patch is 0.
    """

    def __init__(self, D: int, top_k: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.phi = nn.Linear(D, SLOTS, bias=False)
        self.attention = Attention(D, top_k, position=False)

    def forward(self, tokens: Tensor, present: Tensor, slides: Tensor) -> Tensor:
        """Tokens [R, K, D] of R regions, `present` bool [R, K], `slides` int64 [S, C] the regions of each slide."""
        R, _, D = tokens.shape
        S, C = slides.shape
        normed = self.norm(tokens)
        logits = self.phi(normed)  # [R, K, G]
        among = logits.masked_fill(~present[:, :, None], torch.finfo(logits.dtype).min)
        summaries = among.softmax(dim=1).transpose(1, 2) @ normed  # [R, G, D]

        lines = F.pad(summaries, (0, 0, 0, 0, 0, 1))[slides]  # [S, C, G, D], 0 for no region
        lines = lines.transpose(1, 2).reshape(S * SLOTS, C, D)
        known = (slides < R)[:, None].expand(S, SLOTS, C).reshape(S * SLOTS, C)
        mixed = self.attention(lines, known).view(S, SLOTS, C, D).transpose(1, 2)  # [S, C, G, D]
        back = mixed.new_zeros(R + 1, SLOTS, D).index_copy(0, slides.flatten(), mixed.reshape(S * C, SLOTS, D))[:R]

        filled = torch.where(present[:, :, None], logits, logits[:, :1])  # the first stands for those that are absent
        least = filled.amin(dim=1, keepdim=True)
        spread = filled.amax(dim=1, keepdim=True) - least
        weights = (filled - least) / torch.where(spread > 0, spread, 1.0) * filled.softmax(dim=2)  # [R, K, G]
        exchanged: Tensor = weights @ back
        return tokens + exchanged


class FuseCPath(SlideModel):
    """h_p = ReLU(W x_p + b) with dropout, K local layers, one cross-region layer, LN, and ABMIL's plain attention.

    Regions are the clusters that patches were selected from (in the released code they are 9 patches in a row, which
    are no clusters); a slide's patches attend to its own alone (in the released code to those of all slides of a step).

    Args:
        dims, D, outputs, dropout: as for `SlideModel`; D a multiple of HEADS.
        depth: number K of local layers: 1 in the released code, 2 in the paper.
        top_k: keys that a query attends to: 8 in the paper, 16 in the released code.

    >>> import numpy as np
    >>> from .regions import Room, tabulate
    >>> model = FuseCPath([4, 3], 8, 2, 0.0, depth=1, top_k=8)
    >>> regions = tabulate([np.array([0, 0, 1]), np.array([4, 4])], 5, 2, Room(3, 2, 2))
    >>> model(torch.randn(5, 7), torch.tensor([0, 0, 0, 1, 1]), 2, regions).outputs.shape
    torch.Size([2, 2])
    """

    needs_regions = True
    pools_by_attention = False

    def __init__(self, dims: Sequence[int], D: int, outputs: int, dropout: float, depth: int, top_k: int) -> None:
        if D % HEADS:
            raise ShazamError(f"dim: a multiple of {HEADS} expected for fusecpath, which has {HEADS} heads, found {D}")
        super().__init__(dims, D, outputs, dropout)
        self.encoder = PatchEncoder(sum(dims), D)
        self.patch_dropout = Dropout(dropout)
        self.local = nn.ModuleList([LocalLayer(D, top_k) for _ in range(depth)])
        self.across = CrossLayer(D, top_k)
        self.norm = nn.LayerNorm(D)
        self.attention = AttentionScore(D, min(D, HIDDEN), gated=False)

    def encode(self, features: Tensor) -> PatchCodes:
        """As `SlideModel.encode`; the scores, which need the other patches, are made by `mix`."""
        values = self.patch_dropout(self.encoder(features, self.feature_mean, self.feature_scale))
        return PatchCodes(values, values.new_zeros(len(values)), None)

    def mix(self, codes: PatchCodes, regions: Regions | None) -> PatchCodes:
        """As `SlideModel.mix`."""
        assert regions is not None
        P, D = codes.values.shape
        present = regions.patches < P  # [R, K]
        tokens = F.pad(codes.values, (0, 0, 0, 1))[regions.patches]  # [R, K, D]
        for layer in self.local:
            tokens = layer(tokens, present)
        tokens = self.norm(self.across(tokens, present, regions.slides))
        values = tokens.new_zeros(P + 1, D).index_copy(0, regions.patches.flatten(), tokens.flatten(0, 1))[:P]
        return PatchCodes(values, self.attention(values), None)
