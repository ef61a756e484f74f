"""The student's operations on an NVIDIA GPU, by the Triton kernels; `kernels/reference.py` defines every result.

Up to D = 256 and 16 teachers a whole stack is one kernel; beyond, each layer's attention is one, between products of
cuBLAS.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import folded_scoring, projection, reference
from ..kernels.distillation import distillation_loss
from ..kernels.launch import MAX_TEACHERS, ROWS, WIDTHS
from ..kernels.residual_stack import residual_stack as _residual_kernel
from ..kernels.student_stack import bare_stack as _bare_kernel
from ..kernels.token_attention import token_attention

__all__ = ["bare_stack", "distillation_loss", "folded_stack", "obstacle", "project", "residual_stack"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OLDEST = (8, 0)  # compute capability with the tensor cores that the kernels count on


def obstacle(operation: str, x: Tensor, features: Tensor | None, precision: str) -> str | None:
    """What keeps an operation on tokens, targets or maps `x` from running as a kernel; None: nothing."""
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
        (tokens and x.shape[1] > MAX_TEACHERS, f"{x.shape[1]} teachers, more than {MAX_TEACHERS}"),
        (
            tokens and only_small and not _is_small(x),
            f"{list(x.shape[1:])}: N up to {ROWS} teachers and a width D among {WIDTHS} expected",
        ),
    ]
    return next((reason for holds, reason in obstacles if holds), None)


def project(
    features: Tensor,
    rows: Tensor | None,
    standard: tuple[Tensor, Tensor] | None,
    weight: Tensor,
    bias: Tensor,
    dims: Sequence[int],
    present: Tensor | None,
    precision: str,
) -> Tensor:
    """Tokens [B, N, D] straight from the rows of a feature table."""
    return projection.project(features, rows, standard, weight, bias, dims, present, precision)


def bare_stack(tokens: Tensor, qkv: Tensor, present: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    """fused [B, D] and the teacher shares [B, N], or the attention [B, K, N, N] that they are made of."""
    if _is_small(tokens):
        return _bare_kernel(tokens, qkv, present, precision)
    attention = []
    tokens = _hide_absent(tokens, present)
    for layer, weight in enumerate(qkv):
        q, k, v = (tokens @ weight).chunk(3, dim=-1)
        tokens, p = token_attention(q, k, v, present, pool=layer == len(qkv) - 1)
        attention.append(p.detach())
    return tokens, torch.stack(attention, dim=1)


def residual_stack(
    tokens: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    present: Tensor | None,
    precision: str,
) -> Tensor:
    """fused [B, D]."""
    maps = (qkv, qkv_bias, out_weight, out_bias, norm_weight, norm_bias)
    if _is_small(tokens):
        return _residual_kernel(tokens, *maps, present, precision)
    tokens = _hide_absent(tokens, present)
    for weight, bias, out, offset, gain, shift in zip(*maps, strict=True):
        q, k, v = (tokens @ weight + bias).chunk(3, dim=-1)
        attended, _ = token_attention(q, k, v, present)
        tokens = F.layer_norm(tokens + attended @ out + offset, gain.shape, gain, shift)
    return reference.mean_pool(tokens, present)


def folded_stack(tokens: Tensor, score_maps: Tensor, present: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
    """pooled w T [B, D], w [B, N]; for inference."""
    return folded_scoring.folded_stack(tokens, score_maps, present, precision)


def _is_small(tokens: Tensor) -> bool:
    return tokens.shape[1] <= ROWS and tokens.shape[2] in WIDTHS


def _hide_absent(tokens: Tensor, present: Tensor | None) -> Tensor:
    return tokens if present is None else tokens.masked_fill(~present[:, :, None], 0.0)
