"""The folded bare stack for scoring: all layers' scores, their N x N recurrence, pooling and weights in one kernel.

Tokens are read once and only the pooled token and the weights are written: 4 (N + 1) D bytes a patch in float32, where
the scores' left sides alone would take 4 N K D on their way through memory. One product with a D x D map per layer, a
third of what the unfolded stack takes.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import mask_arguments, require_mask, require_rows
from .stack_kernels import _inner, _mix, _rows, _share, _times
from .student_stack import MAPS_DTYPE, ROWS, blocks, require_small


# M_0 = I; S_l = M_{l-1} (T B_l T^T) M_{l-1}^T; M_l = softmax(S_l) M_{l-1}; w = mean M_K; pooled = w T
@triton.jit(do_not_specialize=["B", "K"])
def folded_forward(
    tokens_ptr, present_ptr, stride_present_b, stride_present_n, maps_ptr, pooled_ptr, weights_ptr, B, K,
    N: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Pooled token and weights of a program's patches, 16 rows apart from each other by a block-diagonal mask."""
    G: tl.constexpr = BLOCK_R // BLOCK_N
    _, row, m_row, m_there, m_mean = _rows(present_ptr, stride_present_b, stride_present_n, B, N, BLOCK_R, BLOCK_N)
    o_r = tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, D)
    x = tl.load(tokens_ptr + row[:, None] * D + o_d[None, :], mask=(m_row & m_there)[:, None], other=0.0)  # T, [R, D]
    # A row that is not there sees itself alone, so that its softmax is defined; nobody sees it.
    m_self = o_r[:, None] == o_r[None, :]
    m_sees = (m_mean & m_there[:, None]) | m_self
    m = tl.where(m_self, 1.0, 0.0).to(x.dtype)  # M_l, [R, R]
    for layer in tl.range(0, K, num_stages=1):
        y = _times(x, maps_ptr + layer * D, K * D, 1, BLOCK_C, SLICE, PRECISION)  # T B_l
        s = _mix(_mix(m, _inner(y, x, SLICE, "ieee"), "ieee"), tl.trans(m), "ieee")
        s = tl.where(m_sees, s, float("-inf"))
        s = tl.exp(s - tl.max(s, axis=1)[:, None])
        m = _mix(s / tl.sum(s, axis=1)[:, None], m, "ieee")
    w = tl.sum(_share(m_there, m_mean, x.dtype)[:, None] * m, axis=0)  # [R]
    tl.store(weights_ptr + row, w, mask=m_row)
    pooled = tl.sum(tl.reshape(w[:, None] * x, [G, BLOCK_N, D]), axis=1)  # [G, D]
    o_g = tl.program_id(0).to(tl.int64) * G + tl.arange(0, G)
    tl.store(pooled_ptr + o_g[:, None] * D + o_d[None, :], pooled, mask=(o_g < B)[:, None])


@torch.no_grad()
def folded_stack(
    tokens: Tensor, score_maps: Tensor, present: Tensor | None = None, precision: str = "ieee"
) -> tuple[Tensor, Tensor]:
    """The folded bare stack: pooled w T [B, D] and the teachers' weights w [B, N]; for inference, no gradient.

    Args:
        tokens: [B, N, D], float32 (float64 with "ieee"), N at most 16, D one of 16, 32, 64, 128, 256.
        score_maps: [D, K*D], all B_l side by side.
        present: bool [B, N], at least one each; None when every teacher is there.
        precision: of the products with the maps, as for `student_stack.bare_stack`; all others are float32.

    Raises:
        ValueError: anything else than that, with what was expected and what was found.
    """
    require_small(tokens, precision)
    B, N, D = tokens.shape
    if score_maps.ndim != 2 or score_maps.shape[1] == 0 or score_maps.shape[1] % D:
        raise ValueError(f"score_maps: [{D}, K * {D}] expected, found {list(score_maps.shape)}")
    require_rows("score_maps", score_maps, (D, score_maps.shape[1]), tokens)
    require_mask(present, B, N, tokens)
    maps = score_maps.to(MAPS_DTYPE[precision] or tokens.dtype).contiguous()
    pooled, weights = tokens.new_empty(B, D), tokens.new_empty(B, N)
    with torch.cuda.device_of(tokens):
        folded_forward[(triton.cdiv(B, ROWS // triton.next_power_of_2(N)),)](
            tokens.contiguous(), *mask_arguments(present), maps, pooled, weights, B, score_maps.shape[1] // D,
            **blocks(N, D, precision, tokens.itemsize),
        )  # fmt: skip
    return pooled, weights
