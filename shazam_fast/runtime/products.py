"""Products of float32 matrices on the CPU, by the fastest of three: the compiled core and PyTorch's two libraries."""

import torch
from torch import Tensor

from .. import _core

# PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 unused on AMD's processors: slower there than
# oneDNN, which PyTorch carries as well, and than the core.
CORE_PRODUCTS = _core.AMD_AVX512
ONEDNN_PRODUCTS = _core.AMD_AVX512 and torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
CORE_ROWS = 1024  # up to which, with weights of CORE_WEIGHTS values at most, the core is the fastest one; else oneDNN
CORE_WEIGHTS = 1 << 18
WORTH = 1 << 20  # multiplications from which on these two are faster than MKL; each call to them costs more


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias, without a gradient; `weight` or its transpose is contiguous: oneDNN is slow with others.

    Args:
        x: [R, E], rows contiguous.
        weight: [E, O].
        bias: [O].
    """
    if x.shape[0] * weight.numel() >= WORTH:
        if CORE_PRODUCTS and len(x) <= CORE_ROWS and weight.numel() <= CORE_WEIGHTS:
            return _write(x, weight, bias, x.new_empty(len(x), weight.shape[1]))
        if ONEDNN_PRODUCTS:
            return onednn_linear(x, weight.T, bias)
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def weight_gradient(x: Tensor, d: Tensor) -> Tensor:
    """x^T d. [R, E], [R, O] -> [E, O]."""
    out = x.new_empty(x.shape[1], d.shape[1])
    write_weight_gradient(x, d, out)
    return out


def write_weight_gradient(x: Tensor, d: Tensor, out: Tensor) -> None:
    """Write x^T d into `out`: a copy takes as long as the product where rows are few.

    Args:
        x: [R, E].
        d: [R, O].
        out: [E, O], contiguous.
    """
    if CORE_PRODUCTS and len(x) * out.numel() >= WORTH:
        _write(x.T, d, None, out)
    else:
        torch.mm(x.T, d, out=out)


def _write(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    added = None if bias is None else bias.detach().numpy()
    _core.product(x.detach().numpy(), weight.detach().numpy(), added, out.numpy(), torch.get_num_threads())
    return out


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` through oneDNN; only where ONEDNN_PRODUCTS says that it is there and faster."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
