"""A whole step of training the bare student as nine or ten Triton kernels: where it applies, and what it takes."""

from collections.abc import Callable

from torch import Tensor

from ..kernels.step.parts import Batch, Parameters, Settings, Source, Trained
from .dispatch import small_stack_precision

__all__ = ["OPTIMIZER", "Batch", "Parameters", "Settings", "Source", "Trained", "make_step", "step_precision"]

OPTIMIZER = {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False}  # what the kernels' AdamW takes


def step_precision(like: Tensor, teachers: int, dim: int) -> str | None:
    """The precision of a step's products, as `use` chose it; None where a step cannot be kernels.

    Args:
        like: any parameter of the student: of its dtype, on its device.
        teachers, dim: N and D.
    """
    return small_stack_precision(like.new_empty(0, teachers, dim))


def make_step(parameters: Parameters, settings: Settings) -> Callable[[int, Source], None]:
    """A function that trains the parameters on the next so many patches of a source; for a GPU."""
    from ..kernels.step.fused import FusedStep

    return FusedStep(parameters, settings)
