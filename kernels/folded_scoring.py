"""The folded bare stack for scoring: all layers' scores, their N x N recurrence, pooling and shares in one kernel.

Tokens are read once and only the pooled token and the shares are written: 4 (N + 1) D bytes per patch in float32,
where the scores' left factors T B_l alone would take 4 N K D on their way through memory. One product with a D x D map
per layer, a third of what the unfolded stack takes.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import mask_arguments, require_mask, require_row_tokens, require_rows, row_blocks, row_programs
from .precision import PRECISIONS
from .row_tiles import (
    identity_and_visible,
    inner_products,
    mean_share,
    mix_rows,
    patch_sums,
    program_rows,
    row_softmax,
    times_map,
)


# M_0 = I; S_l = M_{l-1} (T B_l T^T) M_{l-1}^T; M_l = softmax(S_l) M_{l-1}; w = mean M_K; pooled = w T
@triton.jit(do_not_specialize=["B", "K"])
def folded_forward(
    tokens_ptr, present_ptr, stride_present_b, stride_present_n, maps_ptr, pooled_ptr, shares_ptr, B, K,
    N: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Pooled token and teacher shares of a program's patches."""
    PATCHES: tl.constexpr = BLOCK_R // BLOCK_N
    _, o_row, m_row, m_present, m_mean = program_rows(
        present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_R, BLOCK_N
    )
    o_d = tl.arange(0, D)
    m_x = (m_row & m_present)[:, None]
    b_x = tl.load(tokens_ptr + o_row[:, None] * D + o_d[None, :], mask=m_x, other=0.0)  # T, [R, D]
    m_identity, m_visible = identity_and_visible(m_present, m_mean, BLOCK_R)
    b_m = tl.where(m_identity, 1.0, 0.0).to(b_x.dtype)  # M_l, [R, R]
    for layer in tl.range(0, K, num_stages=1):
        b_y = times_map(b_x, maps_ptr + layer * D, K * D, 1, BLOCK_C, BLOCK_S, PRECISION)  # T B_l
        b_s = mix_rows(b_m, inner_products(b_y, b_x, BLOCK_S, "ieee"), "ieee")
        b_p = row_softmax(mix_rows(b_s, tl.trans(b_m), "ieee"), m_visible)
        b_m = mix_rows(b_p, b_m, "ieee")
    b_w = tl.sum(mean_share(m_present, m_mean, b_x.dtype)[:, None] * b_m, axis=0)  # [R]
    tl.store(shares_ptr + o_row, b_w, mask=m_row)
    o_patch = tl.program_id(0).to(tl.int64) * PATCHES + tl.arange(0, PATCHES)
    b_pooled = patch_sums(b_w[:, None] * b_x, BLOCK_N)  # [PATCHES, D]
    tl.store(pooled_ptr + o_patch[:, None] * D + o_d[None, :], b_pooled, mask=(o_patch < B)[:, None])


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
    with torch.cuda.device_of(tokens):
        folded_forward[(row_programs(B, N),)](
            tokens.contiguous(), *mask_arguments(present), maps, pooled, shares, B, score_maps.shape[1] // D,
            **row_blocks(N, D, precision, tokens.itemsize),
        )  # fmt: skip
    return pooled, shares
