"""Losses of slide tasks, and what a slide's outputs mean.

classification  outputs are logits; cross-entropy.
multi_classification
                logits of T columns' classes, one column after another; cross-entropy of each column, mean over the T
                columns, in which a column of which a slide's class is unknown counts 0.
regression      outputs are values of T columns, as standardised on the training slides;
                loss = (1/T) sum_t (o_t - y_t)^2 over the columns that are known.
survival_nll    outputs o_0..o_{B-1} give the hazards h_j = sigmoid(o_j) of B intervals of time, S_j = prod_{u <= j}
                (1 - h_u). With y the interval of a slide's time,
                loss = -log S_{y-1} - log h_y where the event was observed, -log S_y where censored
                (Zadeh and Schmid, IEEE TPAMI 43(9), 2021); the risk is -sum_j S_j.
survival_cox    the one output r is the log of the relative hazard;
                loss = -sum_{i observed} (r_i - log sum_{j: t_j >= t_i} exp r_j) over the slides of a pack (Breslow).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .cohort.targets import (
    ClassTargets,
    SeveralClasses,
    SurvivalTargets,
    Targets,
    ValueTargets,
    mean_and_scale,
)
from .options import SlideConfig

INTERVALS = 4  # of time in survival_nll, as in MCAT and what followed it


def hazard_loss(outputs: Tensor, intervals: Tensor, events: Tensor) -> Tensor:
    """Negative log-likelihood of discrete times, summed over slides.

    Args:
        outputs: logits of the hazards, [n, B].
        intervals: int64 [n], of each slide's time.
        events: bool [n], whether the event was observed.

    >>> hazard_loss(torch.zeros(1, 4), torch.tensor([1]), torch.tensor([True])).exp().item()  # 1 / (0.5 * 0.5)
    4.0
    """
    survives = F.logsigmoid(-outputs).cumsum(dim=1)  # log S_j
    at = survives.gather(1, intervals[:, None])[:, 0]  # log S_y
    logit = outputs.gather(1, intervals[:, None])[:, 0]
    # log S_{y-1} + log h_y = log S_y - log(1 - h_y) + log h_y = log S_y + o_y
    return -(at + torch.where(events, logit, 0.0)).sum()


def cox_loss(risks: Tensor, times: Tensor, events: Tensor) -> Tensor:
    """Negative log partial likelihood of Cox's model, Breslow's form for equal times, summed over observed events.

    Args:
        risks: log of the relative hazard, [n].
        times: [n].
        events: bool [n], whether the event was observed.

    >>> cox_loss(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([True, False])).exp().item()
    2.0
    """
    at_risk = times[None, :] >= times[:, None]  # [event, slide]
    log_sums = torch.where(at_risk, risks[None, :], -torch.inf).logsumexp(dim=1)
    return torch.where(events, log_sums - risks, 0.0).sum()


def time_cuts(targets: SurvivalTargets, intervals: int = INTERVALS) -> NDArray[np.float64]:
    """Times between two intervals: quantiles of the times of observed events, float64 [intervals - 1].

    Args:
        targets: of the training slides.
        intervals: number B of them.

    >>> time_cuts(SurvivalTargets(np.arange(1.0, 9.0), np.ones(8, bool))).tolist()
    [2.75, 4.5, 6.25]
    """
    observed = targets.times[targets.events & targets.known]
    return np.quantile(observed, np.linspace(0, 1, intervals + 1)[1:-1])


def count_outputs(config: SlideConfig) -> int:
    """Number of outputs that a task needs.

    >>> count_outputs(SlideConfig({"uni": 8}, "classification", ("luad", "lusc", "other")))
    3
    """
    if config.task in ("classification", "multi_classification", "regression"):
        return len(config.value_columns)
    return {"survival_nll": INTERVALS, "survival_cox": 1}[config.task]


def read_outputs(config: SlideConfig, outputs: Tensor) -> Tensor:
    """What outputs [n, O] mean.

    Args:
        config: of the student.
        outputs: of its model.

    Returns probabilities of the classes [n, C], those of several columns one after another; values [n, T]; or risks
    [n, 1], larger for an earlier event.

    >>> read_outputs(SlideConfig({"uni": 8}, "survival_cox", ()), torch.ones(1, 1)).tolist()
    [[1.0]]
    """
    if config.task == "classification":
        return outputs.softmax(dim=1)
    if config.task == "multi_classification":
        widths = [len(classes) for classes in config.targets.values()]
        return torch.cat([logits.softmax(dim=1) for logits in outputs.split(widths, dim=1)], dim=1)
    if config.task in ("regression", "survival_cox"):
        return outputs
    return -F.logsigmoid(-outputs).cumsum(dim=1).exp().sum(dim=1, keepdim=True)


class TaskLoss:
    """The loss of a task, for slides chosen by number.

    Args:
        task: see `TASKS`.
        targets: of all bags.
        training: of the bags that are trained on; intervals of time, means and scales are learned from them.
        device: where the outputs are.
    """

    def __init__(self, task: str, targets: Targets, training: Targets, device: torch.device) -> None:
        self._task = task
        self._mean, self._scale = np.zeros(0), np.ones(0)
        if isinstance(targets, ClassTargets | SeveralClasses):
            self._codes = torch.from_numpy(targets.codes).to(device)
        if isinstance(targets, SeveralClasses):
            self._widths = [len(classes) for classes in targets.classes]
        if isinstance(targets, ValueTargets) and isinstance(training, ValueTargets):
            self._mean, self._scale = mean_and_scale(training.values)
            self._values = torch.from_numpy((targets.values - self._mean) / self._scale).float().to(device)
        if isinstance(targets, SurvivalTargets) and isinstance(training, SurvivalTargets):
            codes = np.searchsorted(time_cuts(training), targets.times, side="right")
            self._codes = torch.from_numpy(codes).to(device)
            self._times = torch.from_numpy(targets.times).to(device)
            self._events = torch.from_numpy(targets.events).to(device)

    def __call__(self, outputs: Tensor, chosen: Tensor) -> Tensor:
        """Sum over slides. `outputs` [n, O]; `chosen` int64 [n], their numbers among the bags."""
        if self._task == "classification":
            return F.cross_entropy(outputs, self._codes[chosen], reduction="sum")
        if self._task == "multi_classification":
            codes = self._codes[chosen].unbind(dim=1)
            columns = zip(outputs.split(self._widths, dim=1), codes, strict=True)
            losses = [F.cross_entropy(logits, code, reduction="sum", ignore_index=-1) for logits, code in columns]
            return torch.stack(losses).sum() / len(losses)
        if self._task == "regression":
            values = self._values[chosen]
            known = ~values.isnan()
            return torch.where(known, outputs - values.nan_to_num(), 0.0).square().sum() / values.shape[1]
        if self._task == "survival_nll":
            return hazard_loss(outputs, self._codes[chosen], self._events[chosen])
        return cox_loss(outputs[:, 0], self._times[chosen], self._events[chosen])

    def labels(self, places: Tensor) -> Tensor | None:
        """Classes, int64 [S + 1], of the bags int64 [S] in a pack's places (-1 none); None for tasks without them."""
        if self._task != "classification":
            return None
        return F.pad(torch.where(places >= 0, self._codes[places], -1), (0, 1), value=-1)

    def restore_scale(self, head: torch.nn.Linear) -> None:
        """Change the head of a model that predicts standardised values so that it predicts them in their own unit."""
        if self._task != "regression":
            return
        mean = torch.from_numpy(self._mean).to(head.bias)
        scale = torch.from_numpy(self._scale).to(head.bias)
        with torch.no_grad():
            head.weight.mul_(scale[:, None])
            head.bias.mul_(scale).add_(mean)
