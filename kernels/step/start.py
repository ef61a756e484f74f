"""The first two kernels of a step: what batch it takes and by which factors it moves, and the maps of the stack."""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from ..row_tiles import times_map


@triton.jit
def _one_minus_power(base, exponent):
    """1 - base ** exponent in float64, exponent int64 in [0, 2 ** 24]: float32 would lose half its digits."""
    power = tl.full([1], 1.0, tl.float64)
    for _ in range(24):
        power = tl.where(exponent % 2 == 1, power * base, power)
        base = base * base
        exponent = exponent // 2
    return 1.0 - power


@triton.jit(do_not_specialize=["B", "TENSORS", "MASKS"])
def start_step(
    order_ptr, cursor_ptr, labels_ptr, present_ptr, rates_ptr, mixtures_ptr, index_ptr, settings_ptr, steps_ptr,
    positions_ptr, batch_labels_ptr, batch_present_ptr, rate_ptr, mask_ptr, factors_ptr,
    B, TENSORS, MASKS, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """The batch's positions, labels and teachers; the optimizer's step counters, learning rate and factors.

    `factors_ptr`: three of AdamW, see `adamw`; what a patch keeps of its own features, and what it takes of another's.
    `mask_ptr`: which of so many masks of columns is this step's. `settings_ptr`: learning rate, weight decay and both
    betas, float64. `steps_ptr`: addresses of the step counters.

    One program of one warp, so that the cursor is read before it is moved on.
    """
    cursor = tl.load(cursor_ptr)
    o_n = tl.arange(0, BLOCK_N)
    for b in range(0, B, BLOCK_B):
        o_b = b + tl.arange(0, BLOCK_B)
        m_b = o_b < B
        o_position = tl.load(order_ptr + cursor + o_b, mask=m_b, other=0)
        tl.store(positions_ptr + o_b, o_position, mask=m_b)
        tl.store(batch_labels_ptr + o_b, tl.load(labels_ptr + o_position, mask=m_b, other=0), mask=m_b)
        if present_ptr is not None:
            m_n = m_b[:, None] & (o_n < N)[None, :]
            b_there = tl.load(present_ptr + o_position[:, None] * N + o_n[None, :], mask=m_n, other=0)
            tl.store(batch_present_ptr + o_b[:, None] * N + o_n[None, :], b_there, mask=m_n)
    tl.store(cursor_ptr, cursor + B)

    taken = tl.zeros([1], tl.int64)
    for tensor in range(0, TENSORS):
        step_ptr = tl.load(steps_ptr + tensor).to(tl.pointer_type(tl.float32))
        step = tl.load(step_ptr) + 1.0
        tl.store(step_ptr, step)
        taken = tl.zeros([1], tl.int64) + step.to(tl.int64)  # the same of all tensors
    o_1 = tl.arange(0, 1)
    rate = tl.load(settings_ptr + o_1)
    if rates_ptr is not None:
        b_rate = tl.load(rates_ptr + tl.load(index_ptr) + o_1)
        tl.store(rate_ptr + o_1, b_rate)
        rate = b_rate.to(tl.float64)
    dtype = factors_ptr.dtype.element_ty
    tl.store(factors_ptr + o_1, (1.0 - rate * tl.load(settings_ptr + 1 + o_1)).to(dtype))
    tl.store(factors_ptr + 1 + o_1, (rate / _one_minus_power(tl.load(settings_ptr + 2 + o_1), taken)).to(dtype))
    bias = tl.sqrt(_one_minus_power(tl.load(settings_ptr + 3 + o_1), taken))
    tl.store(factors_ptr + 2 + o_1, bias.to(dtype))
    index = tl.load(index_ptr)
    if mask_ptr is not None:
        tl.store(mask_ptr, index % MASKS)
    if mixtures_ptr is not None:
        own = tl.load(mixtures_ptr + index + o_1)
        tl.store(factors_ptr + 3 + o_1, own.to(dtype))
        tl.store(factors_ptr + 4 + o_1, (1.0 - own).to(dtype))


# A = Wq Wk^T, E = Wv: what the stack's kernels read; and Wq and Wk as they are, for a later kernel
@triton.jit
def fold_maps(
    qkv_ptr, maps_ptr, old_ptr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_R rows of one layer."""
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, D)
    layer = tl.program_id(1)
    qkv_ptr += layer * 3 * D * D
    q_ptrs = qkv_ptr + o_r[:, None] * 3 * D + o_d[None, :]
    b_q = tl.load(q_ptrs)
    o_pair = layer * 2 * D * D + o_r[:, None] * 2 * D + o_d[None, :]
    tl.store(old_ptr + o_pair, b_q)
    tl.store(old_ptr + o_pair + D, tl.load(q_ptrs + D))
    dtype = maps_ptr.dtype.element_ty
    b_a = times_map(b_q, qkv_ptr + D, 1, 3 * D, BLOCK_C, BLOCK_S, PRECISION)
    tl.store(maps_ptr + o_pair, b_a.to(dtype))
    tl.store(maps_ptr + o_pair + D, tl.load(q_ptrs + 2 * D).to(dtype))
