"""A whole step of training a student as a few Triton kernels: where it applies, and what it takes."""

from collections.abc import Callable

from torch import Tensor

from ..kernels.step.parts import Batch, Parameters, Settings, Source, Trained
from .dispatch import kernel_precision

__all__ = [
    "OPTIMIZER", "Batch", "Parameters", "Settings", "Source", "Trained", "compile_kernels", "make_step",
    "step_precision",
]  # fmt: skip

OPTIMIZER = {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False}  # what the kernels' AdamW takes


def step_precision(like: Tensor, teachers: int, dim: int, residual: bool) -> str | None:
    """The precision of a step's products, as `use` chose it; None where a step cannot be kernels.

    Args:
        like: any parameter of the student: of its dtype, on its device.
        teachers, dim: N and D.
        residual: whether the student is residual, not bare.
    """
    precision = kernel_precision("bare_stack", like.new_empty(0, teachers, dim))
    if precision is None:
        return None
    from ..kernels import launch

    widths = launch.WIDTHS if residual else launch.STEP_WIDTHS
    return precision if teachers <= launch.ROWS and dim in widths else None


def make_step(parameters: Parameters, settings: Settings) -> Callable[[int, Source], None]:
    """A function that trains the parameters on the next so many patches of a source; for a GPU."""
    from ..kernels.step.fused import FusedStep

    return FusedStep(parameters, settings)


def compile_kernels(step: Callable[[], None]) -> None:
    """Compile the kernels of a step side by side, and take none; for a GPU."""
    from ..kernels.step.compiling import compile_together

    compile_together(step)
