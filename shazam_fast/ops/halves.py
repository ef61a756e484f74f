"""Folded scoring with maps in two float16 parts: on an NVIDIA GPU, for float16 features."""

from torch import Tensor

from ..kernels.halves.split import Halves, TokenHalves, split_score_maps, split_token_maps

__all__ = ["Halves", "TokenHalves", "folded_stack", "project", "split_score_maps", "split_token_maps"]


def project(features: Tensor, maps: TokenHalves, present: Tensor | None) -> Tensor:
    """As `dispatch.project`: float16 features [B, sum of dims] -> tokens float32 [B, N, D]."""
    from ..kernels.halves import projection

    return projection.project(features, maps, present)


def folded_stack(tokens: Tensor, score_maps: Halves, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `dispatch.folded_stack`: tokens float32 [B, N, D] -> pooled [B, D], w [B, N]."""
    from ..kernels.halves import stack

    return stack.folded_stack(tokens, score_maps, present)
