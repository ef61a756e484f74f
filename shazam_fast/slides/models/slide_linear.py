"""A linear model of slide-level teachers' features: one teacher alone, or several side by side. No patch is read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .pooling import PatchCodes, SlideModel, SlideOutput, Slides


class SlideLinear(SlideModel):
    """Outputs W L_s + b of the standardised features L_s of slide s; those that a teacher lacks count as its mean.

    Patches have equal attention, since none of them is read.

    Args:
        dims: columns of each slide-level teacher.
        outputs, dropout: as for `SlideModel`.

    >>> model = SlideLinear([2, 1], 2, 0.0)
    >>> features = torch.tensor([[1.0, 2.0, torch.nan]])
    >>> model(torch.empty(3, 0), torch.zeros(3, dtype=torch.long), 1, slide_features=features).outputs.shape
    torch.Size([1, 2])
    """

    reads_patches = False
    pools_by_attention = False

    def __init__(self, dims: Sequence[int], outputs: int, dropout: float) -> None:
        super().__init__(dims, sum(dims), outputs, dropout)

    def encode(self, features: Tensor) -> PatchCodes:
        """As `SlideModel.encode`; nothing of the patches."""
        return PatchCodes(features[:, :0], features.new_zeros(len(features)), None)

    def read(self, codes: PatchCodes, slides: Slides) -> SlideOutput:
        """As `SlideModel.read`."""
        assert slides.slide_features is not None
        standardised = (slides.slide_features - self.feature_mean) / self.feature_scale
        known = torch.where(slides.slide_features.isnan(), 0.0, standardised)  # [S, sum of dims]
        _, attention = self.pool(codes, slides.segments, slides.count)
        return SlideOutput(self.head(self.dropout(known)), attention, None, None)
