"""Products of float32 matrices on the CPU, by the faster of the two libraries that PyTorch carries."""

import torch
from torch import Tensor

from .._core import AMD_AVX512

# PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 unused on AMD's processors: half the speed of
# oneDNN, which PyTorch carries as well.
ONEDNN_PRODUCTS = AMD_AVX512 and torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
FEW_ROWS = 256  # up to which a gradient of weights is written in place, by MKL: oneDNN has no such call
ONEDNN_WORTH = 1 << 20  # multiplications from which on oneDNN is the faster one; each call to it costs more


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias; `weight` or its transpose is contiguous: oneDNN is slow with others."""
    if not ONEDNN_PRODUCTS or x.shape[0] * weight.numel() < ONEDNN_WORTH:
        return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
    return onednn_linear(x, weight.T, bias)


def weight_gradient(x: Tensor, d: Tensor) -> Tensor:
    """x^T d, so that the narrower of the two is transposed: oneDNN copies what is. [R, E], [R, O] -> [E, O]."""
    return product(d.T, x).T if x.shape[1] > d.shape[1] else product(x.T, d)


def write_weight_gradient(x: Tensor, d: Tensor, out: Tensor) -> None:
    """Write x^T d into `out`: of few rows without a copy, which takes as long as the product.

    Args:
        x: [R, E].
        d: [R, O].
        out: [E, O], contiguous.
    """
    if len(x) <= FEW_ROWS:
        torch.mm(x.T, d, out=out)
    else:
        out.copy_(weight_gradient(x, d))


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` through oneDNN; only where ONEDNN_PRODUCTS says that it is there and faster."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
