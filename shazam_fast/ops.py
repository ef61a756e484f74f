"""The one place that chooses how an operation is computed.

On the CPU float32 goes to the C++ core; everything else to the definitions in kernels/reference.py, in plain PyTorch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from torch import Tensor, float32

from . import _core, cpu_ops
from .kernels import reference
from .kernels.reference import mean_pool, residual_layer

if TYPE_CHECKING:
    from .student import FoldedStudent

__all__ = ["bare_stack", "distillation_loss", "folded_stack", "mean_pool", "project", "residual_layer", "tile_student"]


def project(features: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Every teacher's columns of features [B, sum of dims] through its own linear map: tokens [B, N, D]."""
    there = features.device.type == "cpu" and features.dtype == weights[0].dtype == float32
    tokens: Tensor = (cpu_ops if there else reference).project(features, weights, biases)
    return tokens


def bare_stack(tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]]:
    """K bare attention layers and the mean: fused [B, D], and a function that gives the teacher weights [B, N]."""
    fused, attention = _implementation(tokens).bare_stack(tokens, qkv, present)
    return fused, partial(reference.teacher_weights, attention, present)


def folded_stack(tokens: Tensor, score_maps: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """The folded bare stack, for inference: pooled w T [B, D], w [B, N]."""
    pooled, w = _implementation(tokens).folded_stack(tokens, score_maps, present)
    return pooled, w


def tile_student(folded: "FoldedStudent") -> _core.FoldedStudent | None:
    """A folded student as one call a tile of patches and thread; None where the core has none for it."""
    there = folded.weight.device.type == "cpu" and folded.weight.dtype == float32
    return cpu_ops.tile_student(folded) if there and len(folded.dims) <= _core.MAX_TEACHERS else None


def distillation_loss(
    fused: Tensor, targets: Tensor, lam: float, delta: float, huber: str, present: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """lam * sum(cosine + huber) to minimise; cosine [N] and huber [N] to report."""
    total, cosine, far = _implementation(targets).distillation_loss(fused, targets, lam, delta, huber, present)
    return total, cosine, far


def _implementation(tokens: Tensor) -> ModuleType:
    return cpu_ops if cpu_ops.supported(tokens) else reference
