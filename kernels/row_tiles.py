"""What the kernels of a whole stack share: a program's rows, their masks, and products of rows with maps.

A program has BLOCK_R rows of D columns: as many patches as fit, each padded to BLOCK_N rows, a power of two. Patches
are kept apart by masks: entries of a [BLOCK_R, BLOCK_R] matrix whose two rows belong to different patches are 0. Since
0 x NaN is NaN, a NaN in a present teacher's token spoils all patches of its program: whoever reports it must look
through that many rows.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

NORM_EPS = tl.constexpr(1e-5)  # added to the variance, as torch.nn.LayerNorm does by default


@triton.jit
def program_rows(
    present_ptr, stride_present_b, stride_present_n, B,
    N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The rows of this program.

    Returns:
        o_b: patch of each row. [BLOCK_R]
        o_row: row of [B * N, D] that each is. [BLOCK_R]
        m_row: which rows exist. [BLOCK_R]
        m_present: which rows hold a teacher that is present. [BLOCK_R]
        m_mean: m_mean[i, j], whether row j counts in the mean of row i's patch. [BLOCK_R, BLOCK_R]
    """
    o_r = tl.arange(0, BLOCK_R)
    o_b = tl.program_id(0).to(tl.int64) * (BLOCK_R // BLOCK_N) + o_r // BLOCK_N
    o_n = o_r % BLOCK_N
    m_row = (o_b < B) & (o_n < N)
    m_present = o_n < N
    if present_ptr is not None:
        # Rows of patches beyond the last count as present: their mean, never stored, must not divide by 0.
        m_present &= tl.load(present_ptr + o_b * stride_present_b + o_n * stride_present_n, mask=m_row, other=1) != 0
    m_mean = (o_b[:, None] == o_b[None, :]) & m_present[None, :]
    return o_b, o_b * N + o_n, m_row, m_present, m_mean


@triton.jit
def mean_share(m_present, m_mean, DTYPE: tl.constexpr):
    """Each row's share of its patch's mean, 1 / number of present rows, eq. (4). [BLOCK_R]."""
    b_count = tl.sum(m_mean.to(tl.int32), axis=1).to(DTYPE)
    return tl.where(m_present, 1.0 / b_count, 0.0)


@triton.jit
def identity_and_visible(m_present, m_mean, BLOCK_R: tl.constexpr):
    """The identity as a mask, and which row attends to which. [BLOCK_R, BLOCK_R] each.

    A row that is absent attends to itself alone, so that its softmax is defined; no other row attends to it.
    """
    o_r = tl.arange(0, BLOCK_R)
    m_identity = o_r[:, None] == o_r[None, :]
    return m_identity, (m_mean & m_present[:, None]) | m_identity


@triton.jit
def row_softmax(b_s, m_visible):
    """Softmax of each row of scores over its visible columns. [BLOCK_R, BLOCK_R]."""
    b_s = tl.where(m_visible, b_s, float("-inf"))
    b_s = tl.exp(b_s - tl.max(b_s, axis=1)[:, None])
    return b_s / tl.sum(b_s, axis=1)[:, None]


@triton.jit
def column_slices(b_x, BLOCK_S: tl.constexpr):
    """The columns of x [R, D] in slices of BLOCK_S, [D / BLOCK_S, R, BLOCK_S]."""
    return tl.permute(tl.reshape(b_x, [b_x.shape[0], b_x.shape[1] // BLOCK_S, BLOCK_S]), [1, 0, 2])


@triton.jit
def times_map(
    b_x, w_ptr, stride_w_in, stride_w_out, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr
):
    """x W, [R, D] by [D, D], with W read in blocks of BLOCK_C columns."""
    R: tl.constexpr = b_x.shape[0]
    D: tl.constexpr = b_x.shape[1]
    o_d = tl.arange(0, D)
    o_c = tl.arange(0, BLOCK_C)
    o_in = tl.arange(0, D // BLOCK_S)[:, None, None] * BLOCK_S + tl.arange(0, BLOCK_S)[None, :, None]
    w_ptrs = w_ptr + o_in * stride_w_in + o_c[None, None, :] * stride_w_out
    b_y = tl.zeros([R, D], dtype=b_x.dtype)
    b_slices = column_slices(b_x, BLOCK_S).to(w_ptr.dtype.element_ty)
    for c in tl.range(0, D, BLOCK_C, num_stages=3):
        b_w = tl.load(w_ptrs + c * stride_w_out)  # [D / BLOCK_S, BLOCK_S, BLOCK_C]
        b_c = tl.sum(tl.dot(b_slices, b_w, input_precision=PRECISION, out_dtype=b_x.dtype), axis=0)  # [R, BLOCK_C]
        b_c = tl.reshape(tl.broadcast_to(b_c[:, None, :], [R, D // BLOCK_C, BLOCK_C]), [R, D])
        b_y = tl.where((o_d // BLOCK_C == c // BLOCK_C)[None, :], b_c, b_y)
    return b_y


@triton.jit
def inner_products(b_x, b_y, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr):
    """x y^T, [R, D] by [D, R]; slices of D are summed last, since one long product would spill."""
    b_y = tl.permute(column_slices(b_y, BLOCK_S), [0, 2, 1])
    return tl.sum(tl.dot(column_slices(b_x, BLOCK_S), b_y, input_precision=PRECISION, out_dtype=b_x.dtype), axis=0)


@triton.jit
def mix_rows(b_p, b_x, PRECISION: tl.constexpr):
    """p x, [R, R] by [R, D] or [R, R]."""
    if b_p.shape[0] < 16:  # Triton 3.6 has no shorter product
        b_y = tl.sum(b_p[:, :, None] * b_x[None, :, :], axis=1)
    else:
        b_y = tl.dot(b_p, b_x, input_precision=PRECISION, out_dtype=b_x.dtype)
    return b_y


@triton.jit
def store_patch_sums(out_ptr, b_x, B, BLOCK_N: tl.constexpr):
    """Store the sum over the rows of each patch of this program. [R, D] -> rows of [B, D]."""
    PATCHES: tl.constexpr = b_x.shape[0] // BLOCK_N
    D: tl.constexpr = b_x.shape[1]
    o_b = tl.program_id(0).to(tl.int64) * PATCHES + tl.arange(0, PATCHES)
    b_sums = tl.sum(tl.reshape(b_x, [PATCHES, BLOCK_N, D]), axis=1)
    tl.store(out_ptr + o_b[:, None] * D + tl.arange(0, D)[None, :], b_sums, mask=(o_b < B)[:, None])


@triton.jit
def standardise_rows(b_x):
    """(x - mean) / sqrt(var + eps) of every row, and 1 / sqrt(var + eps)."""
    D: tl.constexpr = b_x.shape[1]
    b_x -= (tl.sum(b_x, axis=1) / D)[:, None]
    b_rstd = 1.0 / tl.sqrt(tl.sum(b_x * b_x, axis=1) / D + NORM_EPS)
    return b_x * b_rstd[:, None], b_rstd


@triton.jit
def standardise_back(b_d, b_normal, b_rstd):
    """The gradient of x for that of its standardised rows `b_normal`."""
    D: tl.constexpr = b_d.shape[1]
    b_along = tl.sum(b_d * b_normal, axis=1) / D
    return (b_d - (tl.sum(b_d, axis=1) / D)[:, None] - b_normal * b_along[:, None]) * b_rstd[:, None]
