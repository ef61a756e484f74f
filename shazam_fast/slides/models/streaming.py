"""Pooling of slides whose patches are encoded chunk by chunk: what is pooled is kept for one chunk at a time.

With m_s the largest score of slide s so far, the sums over the patches p of s that were seen

    t_s = sum_p exp(e_p - m_s),    u_s = sum_p exp(e_p - m_s) h_p

are scaled by exp(m_s - m'_s) where a chunk has a larger score m'_s (Milakov and Gimelshein, arXiv 1805.02867). In the
end z_s = u_s / t_s and a_p = exp(e_p - m_s) / t_s, as in `pooling`. Of a patch its score and its shares remain.
"""

import torch
from torch import Tensor

from .pooling import PatchCodes, SlideModel, SlideOutput, Slides, segment_max, segment_sum, segment_weighted_sum


class Collected:
    """What a model makes of the patches of some slides, chunk by chunk.

    Args:
        model: in evaluation mode.
        slides: whose patches are to come, in their order.

    >>> from .pooling import MeanPooling
    >>> model, x = MeanPooling([4], 8, 2, 0.0).eval(), torch.randn(5, 4)
    >>> collected = Collected(model, Slides(torch.tensor([0, 0, 0, 1, 1]), 2))
    >>> for chunk in (x[:2], x[2:]):
    ...     collected.add(model.encode(chunk))
    >>> torch.allclose(collected.read().outputs, model(x, collected.slides.segments, 2).outputs)
    True
    """

    def __init__(self, model: SlideModel, slides: Slides) -> None:
        self.slides = slides
        self._model = model
        self._chunks: list[PatchCodes] = []
        self._seen = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None  # m [S], t [S], u [S, D]

    def add(self, codes: PatchCodes) -> None:
        """Take the next patches, [n] of them."""
        if self._model.pools_by_attention:
            self._pool(codes)
            codes = codes._replace(values=codes.values.new_empty(0, codes.values.shape[1]))
        self._seen += len(codes.scores)
        self._chunks.append(codes)

    def read(self) -> SlideOutput:
        """The model's output, when all patches of the slides were added."""
        codes = self._join()
        if self._sums is None:
            return self._model.read(codes, self.slides)
        segments = self.slides.segments
        largest, total, weighted = self._sums
        attention = (codes.scores - largest[segments]).exp() / total[segments]
        return self._model.finish(weighted / total[:, None], attention, codes.shares, self.slides)

    def _pool(self, codes: PatchCodes) -> None:
        """Add a chunk to the sums. Slides that it does not touch are scaled by 1."""
        count = self.slides.count
        segments = self.slides.segments[self._seen : self._seen + len(codes.scores)]
        largest = segment_max(codes.scores, segments, count)
        if self._sums is None:
            zeros = codes.values.new_zeros(count, codes.values.shape[1])
            total, weighted = zeros[:, 0], zeros
        else:
            before, total, weighted = self._sums
            largest = torch.maximum(largest, before)
            scale = torch.where(total > 0, (before - largest).exp(), 1.0)
            total, weighted = total * scale, weighted * scale[:, None]
        exponentials = (codes.scores - largest[segments]).exp()
        total = total + segment_sum(exponentials, segments, count)
        self._sums = largest, total, weighted + segment_weighted_sum(exponentials, codes.values, segments, count)

    def _join(self) -> PatchCodes:
        shares = [code.shares for code in self._chunks if code.shares is not None]
        return PatchCodes(
            torch.cat([code.values for code in self._chunks]),
            torch.cat([code.scores for code in self._chunks]),
            torch.cat(shares) if shares else None,
        )
