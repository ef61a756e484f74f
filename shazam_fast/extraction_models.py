"""Teachers made ready to run: on their device, their matrices as they run fastest there."""

from functools import partial

import torch
from torch import Tensor, nn

from .cpu_ops import ONEDNN_PRODUCTS, onednn_linear
from .teacher_models import Teacher


def prepare(teacher: Teacher, device: torch.device) -> Teacher:
    """The teacher on its device.

    On a GPU the matrices are stored in the precision of autocast, which rounds them anew in every pass otherwise (it
    keeps only those that are trained): the same bits for less work. On AMD's processors products go through oneDNN.
    """
    dtype, enabled = autocast_of(teacher, device)
    if enabled:
        cast_matrices(teacher, dtype)
    elif device.type == "cpu" and ONEDNN_PRODUCTS:
        multiply_with_onednn(teacher)
    return teacher.to(device)


def autocast_of(teacher: Teacher, device: torch.device) -> tuple[torch.dtype, bool]:
    """The dtype that a teacher is to run in, and whether autocast is needed for that: only on a GPU."""
    dtype: torch.dtype = getattr(torch, teacher.spec.precision)
    return dtype, device.type == "cuda" and dtype != torch.float32


def cast_matrices(model: nn.Module, dtype: torch.dtype) -> None:
    """Store in `dtype` the weights that autocast rounds to it."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def multiply_with_onednn(model: nn.Module) -> None:
    """Have a model's linear layers multiply through oneDNN: up to twice as fast where MKL leaves AVX-512 unused."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            module.forward = partial(_linear, module)  # type: ignore[method-assign]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return onednn_linear(x, layer.weight, layer.bias)
