"""The one place that chooses how an operation is computed.

float32 on the CPU goes to the C++ core, tensors on an NVIDIA GPU to the Triton kernels, everything else to the
definitions in kernels/reference.py, in plain PyTorch. `use` overrides that. Where the fast way is not open, the
definition is taken and said once; a backend that was asked for by name raises instead.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _core
from ..errors import ShazamError
from ..kernels import reference
from ..kernels.precision import PRECISIONS
from . import cpu as cpu_ops

logger = logging.getLogger("shazam_fast")


BACKENDS = ("auto", "triton", "reference")


class _Choice(NamedTuple):
    backend: str = "auto"
    precision: str = "ieee"


_DEFAULT = _Choice()
_choice = ContextVar("choice", default=_DEFAULT)


@contextmanager
def use(backend: str = "auto", precision: str = "ieee") -> Iterator[None]:
    """Choose how operations are computed while the context lasts.

    Args:
        backend: "auto"; "triton" (ShazamError where its kernels do not apply); "reference", plain PyTorch.
        precision: of the Triton kernels' matrix products: "ieee" float32, "tf32", or operands rounded to "bf16" or
            "fp16". Sums, scores, softmax, losses and parameters are float32 in all of them; matrix products that are
            left to PyTorch are tf32 with any but "ieee".

    Raises ShazamError when there is no such backend or precision, or when only Triton offers the precision.
    """
    for name, value, known in (("backend", backend, BACKENDS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ShazamError(f"{name}: one of {', '.join(known)} expected, found {value!r}")
    if backend == "reference" and precision != "ieee":
        raise ShazamError(f"precision {precision!r} is the Triton kernels'; backend 'reference' has 'ieee' alone")
    before = _choice.set(_Choice(backend, precision))
    cublas = torch.backends.cuda.matmul
    rounding = cublas.fp32_precision
    if precision != "ieee":
        cublas.fp32_precision = "tf32"  # what is left to PyTorch, such as the head
    try:
        yield
    finally:
        cublas.fp32_precision = rounding
        _choice.reset(before)


def project(
    features: Tensor,
    rows: Tensor | None,
    standard: tuple[Tensor, Tensor] | None,
    weight: Tensor,
    bias: Tensor,
    dims: Sequence[int],
    present: Tensor | None,
) -> Tensor:
    """Chosen rows of a table, standardised, every teacher's columns through its own map: tokens [B, N, D]."""
    module, options = _implementation("project", weight, features)
    tokens: Tensor = module.project(features, rows, standard, weight, bias, dims, present, **options)
    return tokens


def bare_stack(tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]]:
    """K bare attention layers and the mean: fused [B, D], and a function that gives the teacher shares [B, N]."""
    module, options = _implementation("bare_stack", tokens)
    fused, attention = module.bare_stack(tokens, qkv, present, **options)
    if attention.ndim == 2:  # the shares themselves, from a kernel that has them at hand
        return fused, lambda: attention
    return fused, partial(reference.teacher_shares, attention, present)


def residual_stack(
    tokens: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    present: Tensor | None,
) -> Tensor:
    """K residual attention layers and the mean: fused [B, D]."""
    module, options = _implementation("residual_stack", tokens)
    maps = (qkv, qkv_bias, out_weight, out_bias, norm_weight, norm_bias)
    fused: Tensor = module.residual_stack(tokens, *maps, present, **options)
    return fused


def folded_stack(tokens: Tensor, score_maps: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """The folded bare stack, for inference: pooled w T [B, D], w [B, N]."""
    module, options = _implementation("folded_stack", tokens)
    pooled, w = module.folded_stack(tokens, score_maps, present, **options)
    return pooled, w


def runs_in_core(weight: Tensor, teachers: int) -> bool:
    """Whether the C++ core computes a folded student with these projection weights and number of teachers."""
    if _choice.get() != _DEFAULT or weight.device.type != "cpu":
        return False
    return cpu_ops.obstacle(weight) is None and teachers <= _core.MAX_TEACHERS


def distillation_loss(
    fused: Tensor, targets: Tensor, lam: float, delta: float, huber: str, present: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """lam * sum(cosine + huber) to minimise; cosine [N] and huber [N] to report."""
    module, _ = _implementation("distillation_loss", targets)
    total, cosine, far = module.distillation_loss(fused, targets, lam, delta, huber, present)
    return total, cosine, far


def _implementation(operation: str, x: Tensor, features: Tensor | None = None) -> tuple[Any, dict[str, str]]:
    """The module that computes `operation` on tokens, targets or maps `x`, and the options it takes."""
    backend, precision = _choice.get()
    if backend == "reference":
        return reference, {}
    if backend == "auto" and x.device.type == "cpu":
        if precision != "ieee":
            raise ShazamError(f"precision {precision!r} is the Triton kernels': it needs an NVIDIA GPU")
        obstacle = cpu_ops.obstacle(x)
        module: Any = cpu_ops
    else:
        module, obstacle = _triton()
        obstacle = obstacle or module.obstacle(operation, x, features, precision)
    if obstacle is None:
        return module, {} if module is cpu_ops else {"precision": precision}
    if backend == "triton" or precision != "ieee":
        raise ShazamError(f"{operation} cannot run as a Triton kernel in precision {precision!r}: {obstacle}")
    if x.dtype == torch.float32:  # float64 is asked for to be exact, not fast
        _say_once(f"{operation} runs in plain PyTorch: {obstacle}")
    return reference, {}


@cache
def _triton() -> tuple[Any, str | None]:
    """The module of the Triton kernels, or what keeps it from being loaded."""
    try:
        from . import triton as triton_ops
    except ImportError as error:
        return None, f"triton is not available ({error})"
    return triton_ops, None


@cache
def _say_once(message: str) -> None:
    logger.warning(message)
