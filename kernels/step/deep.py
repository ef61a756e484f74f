"""What a residual student does between a projection and its stack: forward, backward, and AdamW of its weights."""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from ..adamw import update
from ..row_tiles import standardise_back, standardise_rows, times_map
from ..stack_kernels import load_tokens
from .weights import left_by_right


@triton.jit
def _norm_and_bend(b_x, gain_ptr, shift_ptr, o_d):
    """x standardised, 1 / its deviation, and relu(LN(x))."""
    b_normal, b_rstd = standardise_rows(b_x)
    b_y = b_normal * tl.load(gain_ptr + o_d)[None, :] + tl.load(shift_ptr + o_d)[None, :]
    return b_normal, b_rstd, tl.where(b_y < 0.0, 0.0, b_y)


@triton.jit
def _norm_and_bend_back(b_dy, b_y, b_normal, b_rstd, gain_ptr, o_d):
    """Gradients of LN(x) and of x for that of y = relu(LN(x))."""
    b_dn = tl.where(b_y > 0.0, b_dy, 0.0)
    return b_dn, standardise_back(b_dn * tl.load(gain_ptr + o_d)[None, :], b_normal, b_rstd)


# H_i = relu(LN(F_i W_i + b_i)), T_i = relu(LN(H_i W'_i + b'_i)), of every teacher by its own maps and norms
@triton.jit(do_not_specialize=["B"])
def deepen(
    projected_ptr, parts_ptr, bias_ptr, factors_ptr, first_gain_ptr, first_shift_ptr, second_ptr, second_bias_ptr,
    gain_ptr, shift_ptr, first_normal_ptr, first_rstd_ptr, hidden_ptr, normal_ptr, rstd_ptr, tokens_ptr,
    B, PARTS: tl.constexpr, MOST: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_R patches of one teacher; `parts_ptr`, `factors_ptr` as for `load_tokens`.

    Kept for `deepen_back`: both LayerNorms' standardised rows and 1 / their deviations, and H.
    """
    o_b = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    teacher = tl.program_id(1)
    o_d = tl.arange(0, D)
    m_b = o_b < B
    o_n = tl.zeros([BLOCK_R], tl.int32) + teacher
    o_row = o_b * N + teacher
    o_x = o_row[:, None] * D + o_d[None, :]
    b_x = load_tokens(
        projected_ptr, parts_ptr, bias_ptr, factors_ptr, o_b, o_n, o_d, m_b, B, PARTS, MOST, N, D
    )  # [R, D]
    o_v = teacher * D  # the teacher's vectors
    b_normal, b_rstd, b_h = _norm_and_bend(b_x, first_gain_ptr + o_v, first_shift_ptr + o_v, o_d)
    tl.store(first_normal_ptr + o_x, b_normal, mask=m_b[:, None])
    tl.store(first_rstd_ptr + o_row, b_rstd, mask=m_b)
    tl.store(hidden_ptr + o_x, b_h, mask=m_b[:, None])
    b_x = times_map(b_h, second_ptr + o_v * D, D, 1, BLOCK_C, BLOCK_S, PRECISION)
    b_x += tl.load(second_bias_ptr + o_v + o_d)[None, :]
    b_normal, b_rstd, b_t = _norm_and_bend(b_x, gain_ptr + o_v, shift_ptr + o_v, o_d)
    tl.store(normal_ptr + o_x, b_normal, mask=m_b[:, None])
    tl.store(rstd_ptr + o_row, b_rstd, mask=m_b)
    tl.store(tokens_ptr + o_x, b_t, mask=m_b[:, None])


@triton.jit(do_not_specialize=["B"])
def deepen_back(
    d_tokens_ptr, tokens_ptr, hidden_ptr, first_normal_ptr, first_rstd_ptr, normal_ptr, rstd_ptr,
    first_gain_ptr, second_ptr, gain_ptr, d_first_ptr, d_hidden_ptr, d_last_ptr, d_projected_ptr,
    B, N: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From the gradients of T to those of the projection; and of both LayerNorms' results and of H W' + b'."""
    o_b = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    teacher = tl.program_id(1)
    o_d = tl.arange(0, D)
    m_b = o_b < B
    o_row = o_b * N + teacher
    o_x = o_row[:, None] * D + o_d[None, :]
    m_x = m_b[:, None]
    o_v = teacher * D
    b_dt = tl.load(d_tokens_ptr + o_x, mask=m_x, other=0.0)
    b_t = tl.load(tokens_ptr + o_x, mask=m_x, other=0.0)
    b_normal = tl.load(normal_ptr + o_x, mask=m_x, other=0.0)
    b_rstd = tl.load(rstd_ptr + o_row, mask=m_b, other=0.0)
    b_dn, b_dx = _norm_and_bend_back(b_dt, b_t, b_normal, b_rstd, gain_ptr + o_v, o_d)
    tl.store(d_last_ptr + o_x, b_dn, mask=m_x)
    tl.store(d_hidden_ptr + o_x, b_dx, mask=m_x)
    b_dh = times_map(b_dx, second_ptr + o_v * D, 1, D, BLOCK_C, BLOCK_S, PRECISION)
    b_h = tl.load(hidden_ptr + o_x, mask=m_x, other=0.0)
    b_normal = tl.load(first_normal_ptr + o_x, mask=m_x, other=0.0)
    b_rstd = tl.load(first_rstd_ptr + o_row, mask=m_b, other=0.0)
    b_dn, b_dx = _norm_and_bend_back(b_dh, b_h, b_normal, b_rstd, first_gain_ptr + o_v, o_d)
    tl.store(d_first_ptr + o_x, b_dn, mask=m_x)
    tl.store(d_projected_ptr + o_x, b_dx, mask=m_x)


@triton.jit
def _sums(d_ptr, normal_ptr, o_i, teacher, B, N: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr):
    """Over all patches: of columns `o_i` of a teacher's gradients, and of these times the standardised rows. [I]."""
    b_sum = tl.zeros([o_i.shape[0]], d_ptr.dtype.element_ty)
    b_along = tl.zeros([o_i.shape[0]], d_ptr.dtype.element_ty)
    for r in range(0, B, BLOCK_R):
        o_r = r + tl.arange(0, BLOCK_R)
        m_r = (o_r < B)[:, None]
        o_x = (o_r.to(tl.int64) * N + teacher)[:, None] * D + o_i[None, :]
        b_d = tl.load(d_ptr + o_x, mask=m_r, other=0.0)
        b_sum += tl.sum(b_d, axis=0)
        b_along += tl.sum(b_d * tl.load(normal_ptr + o_x, mask=m_r, other=0.0), axis=0)
    return b_sum, b_along


# dW' = H^T d(H W' + b'), db' = its sum; of a norm: gain, sum of d times the standardised rows; shift, sum of d
@triton.jit(do_not_specialize=["B"])
def update_deep(
    hidden_ptr, first_normal_ptr, normal_ptr, d_first_ptr, d_hidden_ptr, d_last_ptr, factors_ptr,
    first_gain_ptr, first_gain_mean_ptr, first_gain_square_ptr,
    first_shift_ptr, first_shift_mean_ptr, first_shift_square_ptr,
    second_ptr, second_mean_ptr, second_square_ptr, second_bias_ptr, second_bias_mean_ptr, second_bias_square_ptr,
    gain_ptr, gain_mean_ptr, gain_square_ptr, shift_ptr, shift_mean_ptr, shift_square_ptr,
    B, N: tl.constexpr, D: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_I rows of one teacher's second map, and as many numbers of its vectors."""
    o_i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    teacher = tl.program_id(1)
    m_i = o_i < D
    o_v = teacher * D + o_i
    o_teacher = teacher * D
    b_second = left_by_right(
        hidden_ptr + o_teacher, N * D, d_hidden_ptr + o_teacher, N * D, B, o_i, D, BLOCK_R, PRECISION
    )
    o_second = o_v[:, None] * D + tl.arange(0, D)[None, :]
    update(second_ptr, second_mean_ptr, second_square_ptr, factors_ptr, o_second, b_second, m_i[:, None])
    b_sum, _ = _sums(d_hidden_ptr, hidden_ptr, o_i, teacher, B, N, D, BLOCK_R)
    update(second_bias_ptr, second_bias_mean_ptr, second_bias_square_ptr, factors_ptr, o_v, b_sum, m_i)
    b_sum, b_along = _sums(d_first_ptr, first_normal_ptr, o_i, teacher, B, N, D, BLOCK_R)
    update(first_gain_ptr, first_gain_mean_ptr, first_gain_square_ptr, factors_ptr, o_v, b_along, m_i)
    update(first_shift_ptr, first_shift_mean_ptr, first_shift_square_ptr, factors_ptr, o_v, b_sum, m_i)
    b_sum, b_along = _sums(d_last_ptr, normal_ptr, o_i, teacher, B, N, D, BLOCK_R)
    update(gain_ptr, gain_mean_ptr, gain_square_ptr, factors_ptr, o_v, b_along, m_i)
    update(shift_ptr, shift_mean_ptr, shift_square_ptr, factors_ptr, o_v, b_sum, m_i)
