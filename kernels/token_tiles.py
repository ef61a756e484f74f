"""What the kernels of one attention layer and of the losses share: the rows of a program's tile of tokens."""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def tile_rows(
    present_ptr, stride_present_b, stride_present_n, B,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """The rows of this program's tile: patch o_b, teacher o_n, and which exist and hold a present teacher, m_present.

    Shapes: o_b [1, BLOCK_B, 1], o_n [BLOCK_N, 1, 1], m_present [BLOCK_N, BLOCK_B, 1].
    """
    o_b = (tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B))[None, :, None]
    o_n = tl.arange(0, BLOCK_N)[:, None, None]
    m_present = (o_b < B) & (o_n < N)
    if present_ptr is not None:
        m_present = tl.load(present_ptr + o_b * stride_present_b + o_n * stride_present_n, mask=m_present, other=0) != 0
    return o_b, o_n, m_present
