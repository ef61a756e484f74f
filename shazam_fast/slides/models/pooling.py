"""Pooling of patches to slides, many slides at once: the patches of several slides lie in one table, in any order.

`segments` int64 [P] says which slide each patch is of. With a score e_p for each patch, slide s has

    a_p = exp(e_p) / sum_{q in s} exp(e_q),    z_s = sum_{p in s} a_p h_p        (ABMIL, arXiv 1802.04712, eqs. 7, 8)

so no patch attends to another slide. Equal scores give the mean, which is how `MeanPooling` is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...student.layers import fill_uniform
from .mixed import linear
from .regions import Regions

FEW_SLIDES = 64  # that are pooled by a product of matrices


class PatchCodes(NamedTuple):
    """What a model makes of P patches, each by itself.

    Args:
        values: h, what is pooled, [P, D].
        scores: e, what attention is computed from, [P].
        shares: part of each teacher in `values`, rows summing to 1, [P, N]; None where the model has none.
    """

    values: Tensor
    scores: Tensor
    shares: Tensor | None


class SlideOutput(NamedTuple):
    """What a model says of S slides with P patches.

    Args:
        outputs: of the head, [S, O].
        attention: part of each patch in its slide, summing to 1 over a slide's patches, [P].
        shares: part of each teacher in the slide, sum of attention times share over its patches, [S, N]; None where the
            model has none.
        patch_shares: part of each teacher in each patch, [P, N], or None.
        own_loss: sum over the slides of a loss that a model in training has beside the task's; None: it has none.
    """

    outputs: Tensor
    attention: Tensor
    shares: Tensor | None
    patch_shares: Tensor | None
    own_loss: Tensor | None = None


def segment_sum(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """Sums over the patches of each slide. [P, D] -> [S, D].

    Args:
        values: [P, D] or [P].
        segments: int64 [P], in 0..S-1.
        count: number S of slides.

    >>> segment_sum(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1]), 2).tolist()
    [1.0, 5.0]
    """
    return values.new_zeros(count, *values.shape[1:]).index_add(0, segments, values)


def segment_weighted_sum(weights: Tensor, values: Tensor, segments: Tensor, count: int) -> Tensor:
    """Sums over the patches of each slide, of values times the patch's weight. [P], [P, D] -> [S, D].

    Of few slides it is a product of matrices, [S, P] [P, D], which reads the values once.

    Args:
        weights: [P].
        values: [P, D], finite.
        segments, count: as for `segment_sum`.

    >>> weights, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0], [2.0], [3.0]])
    >>> segment_weighted_sum(weights, values, torch.tensor([0, 1, 1]), 2).tolist()
    [[1.0], [13.0]]
    """
    if count > FEW_SLIDES:
        return segment_sum(weights[:, None] * values, segments, count)
    by_slide = weights.new_zeros(count, len(weights)).scatter(0, segments[None], weights[None])
    return by_slide @ values


def segment_max(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """Largest value over the patches of each slide; -inf for slides without patches. [P, D] -> [S, D].

    Args:
        values, segments, count: as for `segment_sum`.

    >>> segment_max(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 1, 1]), 2).tolist()
    [1.0, 3.0]
    """
    index = segments.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
    lowest = values.new_full((count, *values.shape[1:]), -torch.inf)
    return lowest.scatter_reduce(0, index, values, "amax")


def segment_softmax(scores: Tensor, segments: Tensor, count: int) -> Tensor:
    """Softmax over the patches of each slide. [P] -> [P].

    Args:
        scores: [P].
        segments, count: as for `segment_sum`.

    >>> segment_softmax(torch.tensor([5.0, 0.0, 0.0]), torch.tensor([0, 1, 1]), 2).tolist()
    [1.0, 0.5, 0.5]
    """
    largest = segment_max(scores.detach(), segments, count)
    exponentials = (scores - largest[segments]).exp()
    return exponentials / segment_sum(exponentials, segments, count)[segments]


class PatchEncoder(nn.Module):
    """h_p = ReLU(W x_p + b) of standardised features, all teachers side by side. [P, width] -> [P, D].

    The standardisation, x = (f - mean) / scale, is computed on the map, W / scale and b - W mean / scale, so that no
    standardised copy of the features is made.

    >>> encode = PatchEncoder(4, 8)
    >>> encode(torch.ones(3, 4), torch.zeros(4), torch.ones(4)).shape
    torch.Size([3, 8])
    """

    def __init__(self, width: int, D: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, D))  # x W
        self.bias = nn.Parameter(torch.empty(D))
        with torch.no_grad():
            fill_uniform([self.weight, self.bias], width, None)

    def forward(self, features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Values [P, D] of features [P, width] as stored, or standardised in bfloat16.

        `mean` and `scale` are those of the features' columns as stored.
        """
        if features.dtype == torch.bfloat16:
            return linear(features, self.weight, self.bias).relu()
        bias = self.bias - (mean / scale) @ self.weight
        return linear(features, self.weight / scale[:, None], bias).relu()


@dataclass(frozen=True)
class Slides:
    """S slides, by the P patches that are read of them.

    Attributes:
        segments: the slide of each patch, int64 [P], in 0..S-1; every slide has a patch.
        count: number S of slides.
        regions: of the patches, for models that need them.
        slide_features: of slide-level teachers, [S, W], NaN where one lacks a slide, for models that read them.
        labels: int64 [S], codes of the slides' classes, -1 unknown, for models with a loss of their own.
    """

    segments: Tensor
    count: int
    regions: Regions | None = None
    slide_features: Tensor | None = None
    labels: Tensor | None = None


class SlideModel(nn.Module):
    """Base of the models: patches are encoded one by one, pooled by slide with attention, and read by a linear head.

    Args:
        dims: columns of each teacher, which lie side by side in the features.
        D: width of what is pooled.
        outputs: number O of outputs.
        dropout: probability that a column of the pooled feature is left out in a training step.

    Attributes:
        feature_mean, feature_scale: by which features are standardised, learned on the training slides, [sum of dims].
    """

    feature_mean: Tensor
    feature_scale: Tensor
    needs_regions = False  # whether `read` must be told the regions of the slides
    reads_patches = True  # whether features of patches are looked at
    pools_by_attention = True  # whether `read` is `pool` as it is here and `finish`, so that patches need not be held

    def __init__(self, dims: Sequence[int], D: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(sum(dims)))
        self.register_buffer("feature_scale", torch.ones(sum(dims)))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(D, outputs)

    def encode(self, features: Tensor) -> PatchCodes:
        """What is pooled, and the scores, of features [P, sum of dims] as stored."""
        raise NotImplementedError

    def mix(self, codes: PatchCodes, regions: Regions | None) -> PatchCodes:
        """What patches become by those of their own slide; here nothing."""
        return codes

    def pool(self, codes: PatchCodes, segments: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Slide features [S, D] and the attention [P] of their patches."""
        attention = segment_softmax(codes.scores, segments, count)
        return segment_weighted_sum(attention, codes.values, segments, count), attention

    def read(self, codes: PatchCodes, slides: Slides) -> SlideOutput:
        """Outputs of slides whose patches are encoded already, to `codes`."""
        codes = self.mix(codes, slides.regions)
        pooled, attention = self.pool(codes, slides.segments, slides.count)
        return self.finish(pooled, attention, codes.shares, slides)

    def finish(self, pooled: Tensor, attention: Tensor, patch_shares: Tensor | None, slides: Slides) -> SlideOutput:
        """Outputs of slides by their features [S, D], with the attention [P] and the shares [P, N] of their patches."""
        shares = None
        if patch_shares is not None:
            shares = segment_weighted_sum(attention, patch_shares, slides.segments, slides.count)
        return SlideOutput(self.head(self.dropout(pooled)), attention, shares, patch_shares)

    def forward(
        self,
        features: Tensor,
        segments: Tensor,
        count: int,
        regions: Regions | None = None,
        slide_features: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SlideOutput:
        """Outputs of S slides.

        Args:
            features: [P, sum of dims], as stored (they are standardised here), or standardised in bfloat16.
            segments, count, regions, slide_features, labels: as in `Slides`.
        """
        return self.read(self.encode(features), Slides(segments, count, regions, slide_features, labels))


class MeanPooling(SlideModel):
    """The mean over a slide's patches: h_p = ReLU(W x_p + b), z_s = (1 / n_s) sum_{p in s} h_p.

    Every patch has the same part, so a few telling patches drown in a large slide; a baseline.

    >>> model = MeanPooling([4], 8, 2, 0.0)
    >>> model(torch.randn(3, 4), torch.tensor([0, 1, 1]), 2).attention.tolist()
    [1.0, 0.5, 0.5]
    """

    def __init__(self, dims: Sequence[int], D: int, outputs: int, dropout: float) -> None:
        super().__init__(dims, D, outputs, dropout)
        self.encoder = PatchEncoder(sum(dims), D)

    def encode(self, features: Tensor) -> PatchCodes:
        """As `SlideModel.encode`; all scores are 0."""
        values = self.encoder(features, self.feature_mean, self.feature_scale)
        return PatchCodes(values, values.new_zeros(len(values)), None)


class MaxPooling(MeanPooling):
    """The largest value of each column over a slide's patches: z_sd = max_{p in s} h_pd, h as in `MeanPooling`.

    The attention of a patch is the fraction of the D columns whose largest value it has; patches with equal values
    divide it.

    >>> model = MaxPooling([4], 8, 2, 0.0)
    >>> model(torch.randn(3, 4), torch.tensor([0, 1, 1]), 2).attention[0].item()
    1.0
    """

    pools_by_attention = False

    def pool(self, codes: PatchCodes, segments: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As `SlideModel.pool`."""
        largest = segment_max(codes.values, segments, count).clamp(min=0)  # h >= 0; no patches: 0, not -inf
        with torch.no_grad():
            holds = (codes.values == largest[segments]).to(codes.values.dtype)
            attention = (holds / segment_sum(holds, segments, count)[segments]).mean(dim=1)
        return largest, attention
