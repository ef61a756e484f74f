"""The folded bare stack, for scoring: every layer's maps in one score map, three times fewer products.

On the CPU one product per block of patches and one call of the compiled core; on an NVIDIA GPU one Triton kernel.
`kernels/reference.py` defines the result.
"""

import torch
from torch import Tensor

from .._core import folded_scores
from ..runtime.products import product
from .masks import hide_missing, mask_array

FOLDED_BYTES = 2 << 20  # intermediate values of folded scoring per thread at a time; they fit its cache


@torch.no_grad()
def folded_stack_cpu(tokens: Tensor, score_maps: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """The folded bare stack, for inference. tokens [B, N, D], score_maps [D, K*D] -> pooled [B, D], w [B, N]."""
    tokens = hide_missing(tokens.detach(), present).contiguous()
    B, N, D = tokens.shape
    width = score_maps.shape[1]
    pooled, w = tokens.new_empty(B, D), tokens.new_empty(B, N)
    mask, threads = mask_array(present), torch.get_num_threads()
    size = max(1, threads * FOLDED_BYTES // (N * width * tokens.element_size()))
    for start in range(0, B, size):
        part = slice(start, start + size)
        left = product(tokens[part].flatten(0, 1), score_maps).view(-1, N * width // D, D)
        part_mask = None if mask is None else mask[part]
        folded_scores(left.numpy(), tokens[part].numpy(), part_mask, pooled[part].numpy(), w[part].numpy(), threads)
    return pooled, w


def folded_stack_triton(
    tokens: Tensor, score_maps: Tensor, present: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """The same by a Triton kernel. -> pooled [B, D], w [B, N]."""
    from ..kernels.folded_scoring import folded_stack

    return folded_stack(tokens, score_maps, present, precision)
