"""The one place that chooses how an operation is computed.

float32 on the CPU goes to the C++ core, tensors on an NVIDIA GPU to the Triton kernels, everything else to the
definitions in kernels/reference.py, in plain PyTorch. `use` overrides that. Where the fast form does not apply, the
definition is used and a warning says so once; a backend that was asked for by name raises instead.
"""

import logging
from collections.abc import Callable, Iterator
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
from ..kernels.reference import ResidualMaps, TokenMaps
from ..runtime.checks import require_choice
from . import distillation, folding, projection, stack
from .limits import INTERPRETED, cpu_obstacle, triton_obstacle

__all__ = [
    "BACKENDS", "PRECISIONS", "ResidualMaps", "TokenMaps", "bare_stack", "distillation_loss", "folded_stack", "project",
    "require_available", "residual_stack", "runs_in_core", "use",
]  # fmt: skip

logger = logging.getLogger("shazam_fast")


BACKENDS = ("auto", "triton", "reference")

_CPU_FORMS: dict[str, Callable[..., Any]] = {
    "project": projection.project_cpu,
    "bare_stack": stack.bare_stack_cpu,
    "residual_stack": stack.residual_stack_cpu,
    "folded_stack": folding.folded_stack_cpu,
    "distillation_loss": distillation.distillation_loss_cpu,
}
_TRITON_FORMS: dict[str, Callable[..., Any]] = {
    "project": projection.project_triton,
    "bare_stack": stack.bare_stack_triton,
    "residual_stack": stack.residual_stack_triton,
    "folded_stack": folding.folded_stack_triton,
    "distillation_loss": distillation.distillation_loss_triton,
}


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
            left to PyTorch are tf32 with any but "ieee", whatever `torch.set_float32_matmul_precision` was set to; in
            the whole process, as long as the context lasts.

    Raises ShazamError when there is no such backend or precision, or when only Triton offers the precision.

    >>> with use("reference"):
    ...     project(torch.ones(3, 4), None, TokenMaps(torch.ones(4, 2), torch.zeros(1, 2), [4], None), None).shape
    torch.Size([3, 1, 2])
    """
    _require_choice(backend, precision)
    before = _choice.set(_Choice(backend, precision))
    cublas = torch.backends.cuda.matmul
    rounding, older = cublas.fp32_precision, _older_precision()
    torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")  # of the head, for example
    try:
        yield
    finally:
        if older is None:
            cublas.fp32_precision = rounding
        else:
            torch.set_float32_matmul_precision(older)  # sets both flags
        _choice.reset(before)


def _older_precision() -> str | None:
    """PyTorch's older flag; None where the newer, `fp32_precision`, was set alone: PyTorch then refuses to read it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def require_available(backend: str, precision: str, device: torch.device) -> None:
    """Check, before any work, that a device offers a backend and a precision.

    Raises ShazamError when there is no such backend or precision, or the device does not offer it.
    """
    _require_choice(backend, precision)
    interpreted = INTERPRETED and backend == "triton"
    if precision != "ieee" and device.type == "cpu" and not interpreted:
        raise ShazamError(f"precision {precision!r} is the Triton kernels': it needs an NVIDIA GPU; use 'ieee'")
    if backend == "triton" and (obstacle := _no_triton()):
        raise ShazamError(f"backend 'triton': {obstacle}; use 'auto'")
    if backend == "triton" and device.type == "cpu" and not interpreted:
        raise ShazamError("backend 'triton' needs an NVIDIA GPU; use 'auto'")


def _require_choice(backend: str, precision: str) -> None:
    require_choice("backend", backend, BACKENDS)
    require_choice("precision", precision, tuple(PRECISIONS))
    if backend == "reference" and precision != "ieee":
        raise ShazamError(f"precision {precision!r} is the Triton kernels'; backend 'reference' has 'ieee' alone")


def project(features: Tensor, rows: Tensor | None, maps: TokenMaps, present: Tensor | None) -> Tensor:
    """Standardise chosen rows of a table and multiply every teacher's columns by its own map, eq. (1).

    Args:
        features: [R, sum of dims].
        rows: int64 [B], the rows to take; None: all, B = R.
        maps: weights, biases, columns per teacher, and mean and scale of the columns.
        present: bool [B, N], which teachers a patch has; None: all.

    Returns tokens [B, N, D].
    """
    tokens: Tensor = _form("project", maps.weight, features)(features, rows, maps, present)
    return tokens


def bare_stack(tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, Callable[[], Tensor]]:
    """K bare attention layers and the mean, eqs. (2)-(4).

    Args:
        tokens: [B, N, D].
        qkv: query, key and value maps side by side, [K, D, 3D].
        present: bool [B, N], which teachers a patch has; None: all.

    Returns fused [B, D], and a function that gives the teacher shares [B, N].
    """
    fused, attention = _form("bare_stack", tokens)(tokens, qkv, present)
    if attention.ndim == 2:  # the shares themselves, from a kernel that has them at hand
        return fused, lambda: attention
    return fused, partial(reference.teacher_shares, attention, present)


def residual_stack(tokens: Tensor, maps: ResidualMaps, present: Tensor | None) -> Tensor:
    """K residual attention layers and the mean: fused [B, D].

    Args:
        tokens: [B, N, D].
        maps: weights, biases and norms of the layers.
        present: bool [B, N], which teachers a patch has; None: all.
    """
    fused: Tensor = _form("residual_stack", tokens)(tokens, maps, present)
    return fused


def folded_stack(tokens: Tensor, score_maps: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """The folded bare stack, for inference.

    Args:
        tokens: [B, N, D].
        score_maps: B_l of all layers side by side, [D, K*D].
        present: bool [B, N], which teachers a patch has; None: all.

    Returns pooled w T [B, D], and the teacher shares w [B, N].
    """
    pooled, w = _form("folded_stack", tokens)(tokens, score_maps, present)
    return pooled, w


def distillation_loss(
    fused: Tensor, targets: Tensor, lam: float, delta: float, huber: str, present: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The cosine and the Huber distillation loss of every teacher, eqs. (5)-(7).

    Args:
        fused: [B, D].
        targets: [B, N, D].
        lam: weight of both losses in the first result.
        delta: distance at which the Huber loss turns from quadratic to linear.
        huber: "norm" or "elementwise".
        present: bool [B, N], which teachers a patch has; None: all.

    Returns the scalar lam * sum(cosine + huber) to minimise; cosine [N] and huber [N], means over the batch, to report.
    """
    total, cosine, far = _form("distillation_loss", targets)(fused, targets, lam, delta, huber, present)
    return total, cosine, far


def runs_in_core(weight: Tensor, teachers: int) -> bool:
    """Whether the C++ core computes a folded student with these projection weights and number of teachers."""
    if _choice.get() != _DEFAULT or weight.device.type != "cpu":
        return False
    return cpu_obstacle(weight) is None and teachers <= _core.MAX_TEACHERS


def kernel_precision(operation: str, x: Tensor) -> str | None:
    """The precision in which an operation on tokens or maps `x` is a Triton kernel; None where it is none."""
    backend, precision = _choice.get()
    if backend == "reference" or (backend == "auto" and x.device.type == "cpu") or _no_triton():
        return None
    return precision if triton_obstacle(operation, x, None, precision) is None else None


def _form(operation: str, x: Tensor, features: Tensor | None = None) -> Callable[..., Any]:
    """The form of `operation` that computes on tokens, targets or maps `x`."""
    backend, precision = _choice.get()
    plain: Callable[..., Any] = getattr(reference, operation)
    if backend == "reference":
        return plain
    on_cpu = backend == "auto" and x.device.type == "cpu"
    if on_cpu and precision != "ieee":
        raise ShazamError(f"precision {precision!r} is the Triton kernels': it needs an NVIDIA GPU")
    obstacle = cpu_obstacle(x) if on_cpu else _no_triton() or triton_obstacle(operation, x, features, precision)
    if obstacle is None:
        return _CPU_FORMS[operation] if on_cpu else partial(_TRITON_FORMS[operation], precision=precision)
    if backend == "triton" or precision != "ieee":
        raise ShazamError(f"{operation} cannot run as a Triton kernel in precision {precision!r}: {obstacle}")
    if x.dtype == torch.float32:  # float64 is asked for to be exact, not fast
        _say_once(f"{operation} runs in plain PyTorch: {obstacle}")
    return plain


@cache
def _no_triton() -> str | None:
    """What keeps Triton from being loaded; None: nothing."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton is not available ({error})"
    return None


@cache
def _say_once(message: str) -> None:
    logger.warning(message)
