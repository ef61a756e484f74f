"""The folded bare stack for scoring: all layers' scores, their N x N recurrence, pooling and shares in one kernel.

Tokens are read once and only the pooled token and the shares are written: 4 (N + 1) D bytes per patch in float32,
where the scores' left factors T B_l alone would take 4 N K D on their way through memory. One product with a D x D map
per layer, a third of what the unfolded stack takes.
"""

import torch
from torch import Tensor

from .launch import mask_arguments, require_mask, require_row_tokens, require_rows, row_launch
from .precision import PRECISIONS
from .stack_kernels import folded_forward


@torch.no_grad()
def folded_stack(
    tokens: Tensor, score_maps: Tensor, present: Tensor | None = None, precision: str = "ieee"
) -> tuple[Tensor, Tensor]:
    """The folded bare stack: pooled w T [B, D] and the teacher shares w [B, N]; for inference, no gradient.

    Args:
        tokens: [B, N, D], float32 (float64 with "ieee"), N at most 16, D one of 16, 32, 64, 128, 256.
        score_maps: [D, K*D], all B_l side by side.
        present: bool [B, N], at least one each; None when every teacher is there.
        precision: of the products with the maps, as for `student_stack.bare_stack`; all others are float32.

    Raises:
        ValueError: anything else than that, with what was expected and what was found.
    """
    B, N, D = require_row_tokens(tokens, precision)
    if score_maps.ndim != 2 or score_maps.shape[1] == 0 or score_maps.shape[1] % D:
        raise ValueError(f"score_maps: [{D}, K * {D}] expected, found {list(score_maps.shape)}")
    require_rows("score_maps", score_maps, (D, score_maps.shape[1]), tokens)
    require_mask(present, B, N, tokens)
    maps = score_maps.to(PRECISIONS[precision].operand or tokens.dtype).contiguous()
    pooled, shares = tokens.new_empty(B, D), tokens.new_empty(B, N)
    programs, blocks = row_launch(tokens, precision)
    with torch.cuda.device_of(tokens):
        folded_forward[(programs,)](
            tokens.contiguous(), *mask_arguments(present), maps, pooled, shares, B, score_maps.shape[1] // D, **blocks
        )
    return pooled, shares
