"""AdamW on a tile of a parameter, in the last lines of the kernel that makes its gradient."""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

BETA1 = tl.constexpr(0.9)  # PyTorch's defaults
BETA2 = tl.constexpr(0.999)
EPS = tl.constexpr(1e-8)


# p <- (1 - rate decay) p; m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2
# p <- p - rate / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
@triton.jit
def update(parameter_ptr, mean_ptr, square_ptr, factors_ptr, offsets, b_g, mask):
    """Move a tile of a parameter and its two moments by the gradient `b_g`.

    factors_ptr: 1 - rate decay, rate / (1 - b1^t), sqrt(1 - b2^t), as `start_step` leaves them.
    """
    shrink, step, root = tl.load(factors_ptr), tl.load(factors_ptr + 1), tl.load(factors_ptr + 2)
    b_m = BETA1 * tl.load(mean_ptr + offsets, mask=mask, other=0.0) + (1.0 - BETA1) * b_g
    b_v = BETA2 * tl.load(square_ptr + offsets, mask=mask, other=0.0) + (1.0 - BETA2) * b_g * b_g
    b_p = shrink * tl.load(parameter_ptr + offsets, mask=mask, other=0.0)
    tl.store(mean_ptr + offsets, b_m, mask=mask)
    tl.store(square_ptr + offsets, b_v, mask=mask)
    tl.store(parameter_ptr + offsets, b_p - step * b_m / (tl.sqrt(b_v) / root + EPS), mask=mask)
