"""Products of float32 matrices on the CPU, by the faster of the two libraries that PyTorch carries."""

import torch
from torch import Tensor

from .._core import AMD_AVX512

# PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 unused on AMD's processors: half the speed of
# oneDNN, which PyTorch carries as well.
ONEDNN_PRODUCTS = AMD_AVX512 and torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
ONEDNN_WORTH = 1 << 20  # multiplications from which on oneDNN is the faster one; each call to it costs more


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias; `weight` or its transpose is contiguous: oneDNN is slow with others."""
    if not ONEDNN_PRODUCTS or x.shape[0] * weight.numel() < ONEDNN_WORTH:
        return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
    return onednn_linear(x, weight.T, bias)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` through oneDNN; only where ONEDNN_PRODUCTS says that it is there and faster."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
