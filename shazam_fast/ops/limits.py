"""What each backend can take: reasons in words, for the choice in `dispatch` and for its messages."""

import os

import torch
from torch import Tensor

from .._core import MAX_TEACHERS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OLDEST = (8, 0)  # compute capability with the tensor cores that the kernels need


def cpu_obstacle(x: Tensor) -> str | None:
    """What keeps operations on tokens, targets or maps `x` from running in the compiled core; None: nothing."""
    if x.dtype != torch.float32:
        return f"the student is {x.dtype}, not torch.float32"
    if x.ndim == 3 and x.shape[1] > MAX_TEACHERS:
        return f"{x.shape[1]} teachers, more than {MAX_TEACHERS}"
    return None


def triton_obstacle(operation: str, x: Tensor, features: Tensor | None, precision: str) -> str | None:
    """What keeps an operation on tokens, targets or maps `x` from running as a kernel; None: nothing."""
    from ..kernels import launch

    on_gpu, interpreted = x.device.type == "cuda", INTERPRETED and x.device.type == "cpu"
    tokens = x.ndim == 3
    only_small = operation == "folded_stack" or (precision in ("bf16", "fp16") and operation != "distillation_loss")
    obstacles = [
        (not on_gpu and not interpreted, f"the tensors are on {x.device}, not on an NVIDIA GPU"),
        (on_gpu and torch.cuda.get_device_capability(x.device) < OLDEST, f"the GPU is older than {OLDEST}"),
        (features is not None and features.requires_grad, "the features want a gradient"),
        (x.dtype not in (torch.float32, torch.float64), f"the student is {x.dtype}, not torch.float32"),
        (x.dtype == torch.float64 and precision != "ieee", "float64 has precision 'ieee' alone"),
        (
            on_gpu and x.dtype == torch.float64,  # Triton 3.6 fails on products for sm_90; lam and delta are float32
            "the kernels are not exact in float64 on every GPU",
        ),
        (tokens and x.shape[1] > launch.MAX_TEACHERS, f"{x.shape[1]} teachers, more than {launch.MAX_TEACHERS}"),
        (
            tokens and only_small and not is_small(x),
            f"{list(x.shape[1:])}: N up to {launch.ROWS} teachers and a width D among {launch.WIDTHS} expected",
        ),
    ]
    return next((reason for holds, reason in obstacles if holds), None)


def is_small(tokens: Tensor) -> bool:
    """Whether a whole stack over tokens [B, N, D] is one Triton kernel."""
    from ..kernels import launch

    return tokens.shape[1] <= launch.ROWS and tokens.shape[2] in launch.WIDTHS
