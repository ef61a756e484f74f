"""The folded bare stack, for scoring: every layer's maps in one score map, three times fewer products.

On the CPU one product per block of patches and one call of the compiled core; on an NVIDIA GPU one Triton kernel.
`kernels/reference.py` defines the result.
"""

import math

import torch
from torch import Tensor

from .._core import folded_scores
from ..runtime.products import product
from .masks import hide_missing, mask_array

WORTH = 16  # tokens per column of the maps, from which on it pays to fold them for one batch
FOLDED_BYTES = 2 << 20  # intermediate values of folded scoring per thread at a time; they fit its cache


def fold_maps(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply out the maps of the bare layers, in float64.

    Args:
        qkv: query, key and value maps side by side, [K, D, 3D].

    Returns all B_l side by side [D, K*D] in its dtype, and C_K [D, D] in float64.
    """
    D = qkv.shape[1]
    C = torch.eye(D, dtype=torch.float64, device=qkv.device)
    maps = []
    for layer in qkv:
        wq, wk, wv = layer.double().split(D, dim=1)
        maps.append((C @ wq @ (C @ wk).T / math.sqrt(D)).to(qkv.dtype))
        C = C @ wv
    return torch.cat(maps, dim=1), C


@torch.no_grad()
def bare_stack_folded(tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """`bare_stack` by maps folded for this batch alone. tokens [B, N, D], qkv [K, D, 3D] -> fused [B, D], w [B, N]."""
    score_maps, value_map = fold_maps(qkv)
    pooled, w = folded_stack_cpu(tokens, score_maps, present)
    return product(pooled, value_map.to(pooled.dtype)), w


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
