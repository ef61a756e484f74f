"""From the fused feature to all losses and back to its gradient, in one kernel.

A patch needs nothing of another up to its logits and losses, and the mean over the batch is a known factor, so that
gradients can be taken at once: those of the fused feature and of the targets, and what the head's weights need.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from ..distillation import FLOOR
from ..row_tiles import standardise_back, standardise_rows, times_map


@triton.jit
def _of_labels(b_z, b_p, b_log, o_label, class_weights_ptr, m_b):
    """Each patch's cross-entropy with a label [R, 1], weighted by class, and its gradient in the logits."""
    b_weight = tl.where(m_b, 1.0, 0.0).to(b_z.dtype)
    if class_weights_ptr is not None:
        b_weight *= tl.load(class_weights_ptr + o_label, mask=m_b, other=0.0)
    m_label = tl.arange(0, b_z.shape[1])[None, :] == o_label
    b_own = tl.sum(tl.where(m_label, b_z, 0.0), axis=1)[:, None]
    return b_weight * (b_log - b_own), b_weight * (b_p - tl.where(m_label, 1.0, 0.0))


@triton.jit
def _cross_entropy(b_z, labels_ptr, offsets_ptr, class_weights_ptr, factors_ptr, o_b, m_b, B, C: tl.constexpr):
    """Each patch's part of the mean cross-entropy [R, 1], and its gradient in the logits `b_z` [R, BLOCK_K].

    `factors_ptr`: with it, factors[3] of that with its own label and factors[4] of that with the label of the patch at
    the same distance from the batch's other end.
    """
    o_k = tl.arange(0, b_z.shape[1])[None, :]
    if offsets_ptr is not None:
        b_z += tl.load(offsets_ptr + o_k, mask=o_k < C, other=0.0)
    b_z = tl.where(o_k < C, b_z, float("-inf"))
    b_top = tl.max(b_z, axis=1)[:, None]
    b_e = tl.exp(b_z - b_top)
    b_sum = tl.sum(b_e, axis=1)[:, None]
    b_p, b_log = b_e / b_sum, b_top + tl.log(b_sum)
    o_label = tl.load(labels_ptr + o_b, mask=m_b, other=0)
    b_loss, b_dz = _of_labels(b_z, b_p, b_log, o_label, class_weights_ptr, m_b)
    if factors_ptr is not None:
        o_label = tl.load(labels_ptr + (B - 1 - o_b), mask=m_b, other=0)
        b_loss_other, b_dz_other = _of_labels(b_z, b_p, b_log, o_label, class_weights_ptr, m_b)
        own, other = tl.load(factors_ptr + 3), tl.load(factors_ptr + 4)
        b_loss, b_dz = own * b_loss + other * b_loss_other, own * b_dz + other * b_dz_other
    return b_loss / B, b_dz / B


@triton.jit
def _linear(b_x, weight_ptr, stride_in, stride_class, bias_ptr, C: tl.constexpr, BLOCK_K: tl.constexpr):
    """x W + b for few classes, [R, D] -> [R, BLOCK_K]."""
    o_d, o_k = tl.arange(0, b_x.shape[1])[None, :], tl.arange(0, BLOCK_K)[None, :]
    b_z = tl.zeros([b_x.shape[0], BLOCK_K], b_x.dtype)
    for c in range(0, C):
        b_w = tl.load(weight_ptr + o_d * stride_in + c * stride_class)
        b_z = tl.where(o_k == c, tl.sum(b_x * b_w, axis=1)[:, None] + tl.load(bias_ptr + c), b_z)
    return b_z


@triton.jit
def _linear_back(b_dz, weight_ptr, stride_in, stride_class, C: tl.constexpr, D: tl.constexpr):
    """dz W^T, [R, BLOCK_K] -> [R, D]."""
    o_d, o_k = tl.arange(0, D)[None, :], tl.arange(0, b_dz.shape[1])[None, :]
    b_dx = tl.zeros([b_dz.shape[0], D], b_dz.dtype)
    for c in range(0, C):
        b_w = tl.load(weight_ptr + o_d * stride_in + c * stride_class)
        b_dx += tl.sum(tl.where(o_k == c, b_dz, 0.0), axis=1)[:, None] * b_w
    return b_dx


# As in `distillation`, with an upstream gradient of 1 for the total loss.
@triton.jit
def _distil(b_t, b_T, m_n, lam, delta, delta_squared, B, NORM: tl.constexpr):
    """Sums over patches of one teacher's cosine and Huber losses; gradients of the fused feature and of the target.

    b_t [R, D] fused features, b_T [R, D] targets, m_n [R, 1] which patches have the teacher.
    """
    dtype: tl.constexpr = b_t.dtype
    D: tl.constexpr = b_t.shape[1]
    b_floor = tl.full([1, 1], FLOOR, dtype)
    b_tt, b_TT = tl.sum(b_t * b_t, axis=1)[:, None], tl.sum(b_T * b_T, axis=1)[:, None]
    b_tt_floored, b_TT_floored = tl.maximum(b_tt, b_floor), tl.maximum(b_TT, b_floor)
    b_a = 1.0 / (tl.sqrt(b_tt_floored) * tl.sqrt(b_TT_floored))
    b_cosine = tl.sum(b_t * b_T, axis=1)[:, None] * b_a
    b_x = b_t - b_T
    if NORM:
        b_far = tl.sum(b_x * b_x, axis=1)[:, None]
        m_near = b_far <= delta_squared
        b_r = tl.sqrt(tl.maximum(b_far, delta_squared))
        b_huber = tl.where(m_near, 0.5 * b_far, delta * b_r - 0.5 * delta_squared)
        b_pull = tl.where(m_near, 1.0, delta / b_r) * b_x
    else:
        b_near = tl.minimum(tl.maximum(b_x, -delta), delta)
        b_huber = tl.sum(b_near * (b_x - 0.5 * b_near), axis=1)[:, None] / D
        b_pull = b_near / D
    b_ct = tl.where(b_tt < FLOOR, 0.0, b_cosine / b_tt_floored)
    b_cT = tl.where(b_TT < FLOOR, 0.0, b_cosine / b_TT_floored)
    b_dt = tl.where(m_n, lam * (b_ct * b_t - b_a * b_T + b_pull) / B, 0.0)
    b_dT = tl.where(m_n, lam * (b_cT * b_T - b_a * b_t - b_pull) / B, 0.0)
    cosine_sum = tl.sum(tl.where(m_n, 1.0 - b_cosine, 0.0)) / B
    huber_sum = tl.sum(tl.where(m_n, b_huber, 0.0)) / B
    return cosine_sum, huber_sum, b_dt, b_dT


# h = t W1^T + b1, n = standardised relu(h), y = n gain + shift, z = y W2^T + b2
@triton.jit(do_not_specialize=["B"])
def head_and_losses(
    fused_ptr, targets_ptr, present_ptr, labels_ptr, offsets_ptr, class_weights_ptr, factors_ptr,
    first_ptr, first_bias_ptr, gain_ptr, shift_ptr, last_ptr, last_bias_ptr, votes_ptr, votes_bias_ptr,
    normal_ptr, d_normed_ptr, d_hidden_ptr, d_logits_ptr, d_votes_ptr, d_fused_ptr, d_targets_ptr, losses_ptr,
    B, lam, delta, delta_squared, say,
    N: tl.constexpr, D: tl.constexpr, C: tl.constexpr, TERMS: tl.constexpr, NORM: tl.constexpr, LEARNED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_R patches and a row of partial losses: total, cross-entropy, cosine and Huber per teacher.

    With `votes_ptr`, also the cross-entropy of each teacher's head, whose sum has the weight `say` in the total.
    `targets_ptr` are the tokens. LEARNED: the distillation losses have a gradient in them.
    """
    o_b = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    o_d, o_k = tl.arange(0, D)[None, :], tl.arange(0, BLOCK_K)[None, :]
    m_b = o_b < B
    o_x = o_b * D + o_d
    b_t = tl.load(fused_ptr + o_x, mask=m_b, other=0.0)
    b_h = times_map(b_t, first_ptr, 1, D, BLOCK_C, BLOCK_S, PRECISION) + tl.load(first_bias_ptr + o_d)
    b_n, b_rstd = standardise_rows(tl.where(b_h < 0.0, 0.0, b_h))
    b_gain = tl.load(gain_ptr + o_d)
    b_y = b_n * b_gain + tl.load(shift_ptr + o_d)
    b_z = _linear(b_y, last_ptr, 1, D, last_bias_ptr, C, BLOCK_K)
    b_loss, b_dz = _cross_entropy(b_z, labels_ptr, offsets_ptr, class_weights_ptr, factors_ptr, o_b, m_b, B, C)
    tl.store(d_logits_ptr + o_b * C + o_k, b_dz, mask=m_b & (o_k < C))
    b_dy = _linear_back(b_dz, last_ptr, 1, D, C, D)
    tl.store(normal_ptr + o_x, b_n, mask=m_b)
    tl.store(d_normed_ptr + o_x, b_dy, mask=m_b)
    b_dh = tl.where(b_h > 0.0, standardise_back(b_dy * b_gain, b_n, b_rstd), 0.0)
    tl.store(d_hidden_ptr + o_x, b_dh, mask=m_b)
    b_dt = times_map(b_dh, first_ptr, D, 1, BLOCK_C, BLOCK_S, PRECISION)

    losses_ptr += tl.program_id(0) * TERMS
    cross_entropy = tl.sum(b_loss)
    total = cross_entropy
    for n in range(0, N):
        m_n = m_b
        if present_ptr is not None:
            m_n = m_b & (tl.load(present_ptr + o_b * N + n, mask=m_b, other=0) != 0)
        o_target = (o_b * N + n) * D + o_d
        b_T = tl.load(targets_ptr + o_target, mask=m_n, other=0.0)
        cosine, huber, b_dt_n, b_dT = _distil(b_t, b_T, m_n, lam, delta, delta_squared, B, NORM)
        b_dt += b_dt_n
        tl.store(losses_ptr + 2 + n, cosine)
        tl.store(losses_ptr + 2 + N + n, huber)
        total += lam * (cosine + huber)
        if not LEARNED:
            b_dT = tl.zeros([BLOCK_R, D], b_t.dtype)
        if votes_ptr is not None:
            w_ptr = votes_ptr + n * D * C
            b_z = _linear(b_T, w_ptr, C, 1, votes_bias_ptr + n * C, C, BLOCK_K)
            b_loss, b_dz = _cross_entropy(b_z, labels_ptr, offsets_ptr, class_weights_ptr, factors_ptr, o_b, m_n, B, C)
            b_dz *= say
            tl.store(d_votes_ptr + (o_b * N + n) * C + o_k, b_dz, mask=m_b & (o_k < C))
            b_dT += _linear_back(b_dz, w_ptr, C, 1, C, D)
            vote = tl.sum(b_loss)
            tl.store(losses_ptr + 2 + 2 * N + n, vote)
            total += say * vote
        if d_targets_ptr is not None:
            tl.store(d_targets_ptr + o_target, b_dT, mask=m_b)
    tl.store(d_fused_ptr + o_x, b_dt, mask=m_b)
    tl.store(losses_ptr, total)
    tl.store(losses_ptr + 1, cross_entropy)
