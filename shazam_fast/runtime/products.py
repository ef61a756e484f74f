"""The student's operations on the CPU: projections by PyTorch's GEMM, everything else by the compiled core.

With a handful of teachers PyTorch spends its time on dispatch and on batched matrices too small for it. Here a stack is
one node of the autograd graph, and what lies between two GEMMs is one call.

For float32 tensors on the CPU and up to MAX_TEACHERS teachers (see `obstacle`); `kernels/reference.py` defines every
result. Gradients can be taken once.
"""

import torch
from torch import Tensor

from .._core import AMD_AVX512

# PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 unused on AMD's processors: half the speed of
# oneDNN, which PyTorch carries as well.
ONEDNN_PRODUCTS = AMD_AVX512 and torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
ONEDNN_WORTH = 1 << 20  # multiplications; below, its longer way to the product costs more than it saves


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias; `weight` or its transpose is contiguous, since oneDNN crawls through others."""
    if not ONEDNN_PRODUCTS or x.shape[0] * weight.numel() < ONEDNN_WORTH:
        return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
    return onednn_linear(x, weight.T, bias)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` through oneDNN; only where ONEDNN_PRODUCTS says that it is there and faster."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
