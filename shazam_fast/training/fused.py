"""The step of a student as a few kernels: for which trainings it applies, and what they are given."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..ops.training_step import OPTIMIZER, Parameters, Settings, Source, Trained, make_step, step_precision
from ..student.student import Student
from .feed import TrainingFeed
from .objective import Objective


def make_fused_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    feed: TrainingFeed,
    losses: Tensor,
    index: Tensor,
    plan: Mapping[str, Tensor],
    kept_part: float,
) -> Callable[[int], None] | None:
    """A function that takes a step over the next so many patches; None where only autograd can.

    Trained are the parameters in place, and their moments where they are at home, in the optimizer's state.

    Args:
        student, optimizer, objective, feed, losses: as for `TrainingStep`.
        index: the step, int64 [1], which a step moves on.
        plan: tensors of the epoch's plan on the device, by name.
        kept_part: 1 minus the fraction of columns that the plan leaves out.
    """
    residual = student.blocks is not None
    precision = step_precision(student.qkv, len(student.dims), student.config.dim, residual)
    if precision is None or not _applies(student, optimizer, objective):
        return None
    (group,) = optimizer.param_groups
    settings = _settings(group, objective, kept_part, precision, losses)
    trained = [_with_moments(optimizer, parameter) for parameter in _trained(student)]
    blocks = [_with_moments(optimizer, parameter) for parameter in _trained_blocks(student)]
    take = make_step(Parameters.collect(trained, blocks), settings)
    present, rates, kept, mixtures = (plan.get(name) for name in ("present", "rates", "kept", "mixtures"))
    planned = present, rates, kept, mixtures, None if rates is None else group["lr"]
    standard = student.feature_mean, student.feature_scale

    def step(size: int) -> None:
        take(size, Source(feed.next_batch(size), student.dims, standard, *planned, index, losses))

    return step


def _settings(
    group: Mapping[str, Any], objective: Objective, kept_part: float, precision: str, losses: Tensor
) -> Settings:
    values = [float(group["lr"]), group["weight_decay"], *group["betas"]]
    offsets, class_weights = (
        x if x is None else x.to(losses.dtype) for x in (objective.offsets, objective.class_weights)
    )
    return Settings(
        torch.tensor(values, dtype=torch.float64, device=losses.device),
        float(objective.lam),
        float(objective.delta),
        objective.huber == "norm",
        objective.targets == "projected",
        offsets,
        class_weights,
        float(objective.teacher_heads),
        kept_part,
        precision,
    )


def _applies(student: Student, optimizer: torch.optim.Optimizer, objective: Objective) -> bool:
    """Whether the kernels have everything that this training has."""
    heads = (student.teacher_heads is not None) == (objective.teacher_heads > 0)
    if student.levels is not None or objective.targets == "frozen" or not heads:
        return False
    groups = optimizer.param_groups
    usual = len(groups) == 1 and all(groups[0][name] == value for name, value in OPTIMIZER.items())
    ours = {id(p) for p in (*_trained(student), *_trained_blocks(student))}
    return usual and {id(p) for p in groups[0]["params"]} == ours


def _trained(student: Student) -> list[torch.nn.Parameter]:
    """The parameters that every student has in the order of `Parameters`."""
    first, _, norm, last = student.head
    layers = [first, norm, last, *([] if student.teacher_heads is None else [student.teacher_heads])]
    return [*student.projection.parameters(), student.qkv, *(p for layer in layers for p in layer.parameters())]


def _trained_blocks(student: Student) -> list[torch.nn.Parameter]:
    """The parameters that only a residual student has in the order of `Residual`."""
    blocks = student.blocks
    if blocks is None:
        return []
    norms = [[norm.weight, norm.bias] for norm in (blocks.first_norm, blocks.second_norm, blocks.norm)]
    maps = [blocks.qkv_bias, blocks.out_weight, blocks.out_bias]
    return [*norms[0], blocks.second_weight, blocks.second_bias, *norms[1], *maps, *norms[2]]


def _with_moments(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> Trained:
    """A parameter and its state, which is made as the optimizer would before its first step."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    return Trained(parameter.detach(), state["step"], state["exp_avg"], state["exp_avg_sq"])
