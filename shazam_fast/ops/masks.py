"""Which teachers a patch has, as the operations on the CPU need it."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def hide_missing(tokens: Tensor, present: Tensor | None) -> Tensor:
    """Tokens [B, N, D] with those of missing teachers 0: not even a NaN may reach a result."""
    return tokens if present is None else tokens.masked_fill(~present[:, :, None], 0.0)


def mask_array(present: Tensor | None) -> NDArray[Any] | None:
    """`present` bool [B, N] as the compiled core takes it."""
    return None if present is None else present.contiguous().numpy()


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a backward pass may follow an operation on these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
