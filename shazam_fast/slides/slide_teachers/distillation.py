"""Collaborative distillation from slide-level teachers (FuseCPath, arXiv 2510.27237, eqs. 10 to 14).

With z the student's pooled feature, L_i the feature of slide-level teacher i of N and one predictor for all,

    h = predictor(z),   h_i = predictor(Linear_i(L_i))
    L = (1 - a) [L_task(h) + (1/N) sum_i L_task(h_i)] + a (1/N) sum_i tau^2 KL(p(h / tau) || p(h_i / tau))

In the released code the two sides of the KL are exchanged (`kl="teacher_student"`). Paper and code have no supervised
term on the teachers, L_task(h_i); without it their projectors learn nothing but agreement with the student. A slide
that a teacher lacks is left out of that teacher's terms. p is a distribution that the task's outputs stand for:

    classification  over the classes (of several columns: of each, mean over the columns)
    regression      normal with variance 1 around the standardised value, mean over the columns; tau has no effect
    survival_nll    over the intervals in which the event comes, and its absence from all of them
    survival_cox    over the slides of the step: which of them has the event first
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..options import FitOptions

TEMPERATURES = {"classification": 3.0, "multi_classification": 3.0}  # tau; 1 for other tasks


def log_distribution(task: str, outputs: Tensor) -> Tensor:
    """Logarithms of the distributions that outputs stand for. [n, O] -> [m, K], each line of which sums to 1.

    Args:
        task: "classification", "survival_nll" or "survival_cox".
        outputs: [n, O].

    >>> log_distribution("survival_nll", torch.zeros(1, 2)).exp().tolist()
    [[0.5, 0.25, 0.25]]
    """
    if task == "classification":
        return outputs.log_softmax(dim=1)
    if task == "survival_cox":
        return outputs.T.log_softmax(dim=1)
    survives = F.logsigmoid(-outputs).cumsum(dim=1)  # log S_j
    until = F.pad(survives, (1, 0))  # log S_{j-1}, then that of the last
    return until + F.pad(F.logsigmoid(outputs), (0, 1))


def divergence(
    task: str, student: Tensor, teacher: Tensor, temperature: float, kl: str, widths: Sequence[int] = ()
) -> Tensor:
    """tau^2 KL between what the outputs of the student and of a teacher stand for, summed over slides.

    Args:
        task: as for `log_distribution`.
        student, teacher: [n, O].
        temperature: tau.
        kl: "student_teacher" for KL(student || teacher), "teacher_student" for the other.
        widths: numbers of classes of the columns of "multi_classification".

    >>> one, two = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> round(divergence("classification", one, two, 1.0, "student_teacher").item(), 4)
    0.4621
    """
    if task == "regression":
        return (student - teacher).square().sum() / (2 * student.shape[1])
    if task == "multi_classification":
        columns = zip(student.split(list(widths), dim=1), teacher.split(list(widths), dim=1), strict=True)
        found = [divergence("classification", one, other, temperature, kl) for one, other in columns]
        return torch.stack(found).mean()
    first, second = (log_distribution(task, outputs / temperature) for outputs in (student, teacher))
    if kl == "teacher_student":
        first, second = second, first
    return temperature**2 * (first.exp() * (first - second)).sum()


def slide_statistics(features: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column over the slides that have it, float32 [W] each.

    Args:
        features: float32 [n, W], NaN where a teacher lacks a slide.

    A constant column, or one that no slide has, gets scale 1.

    >>> [column.tolist() for column in slide_statistics(np.array([[1.0, np.nan], [3.0, np.nan]], np.float32))]
    [[2.0, 0.0], [1.0, 1.0]]
    """
    known = ~np.isnan(features)
    counts = known.sum(axis=0).clip(1)
    x = np.where(known, features, 0.0).astype(np.float64)
    mean = x.sum(axis=0) / counts
    scale = np.sqrt((np.where(known, x - mean, 0.0) ** 2).sum(axis=0) / counts)
    scale[scale <= 1e-12 * np.abs(mean)] = 1.0
    return torch.from_numpy(mean).float(), torch.from_numpy(scale).float()


class Distiller(nn.Module):
    """The slide-level teachers' projectors, and the loss above. It serves training alone and is not saved.

    Args:
        teachers: name -> columns of each slide-level teacher, side by side.
        D: width of the student's pooled feature.
        task: of the student.
        options: `distillation` (a), `temperature`, `kl` and `supervise_teachers`.
        standard: mean and scale of the teachers' columns, [sum of columns] each.
        widths: numbers of classes of the columns of "multi_classification".

    >>> options = FitOptions(distillation=0.5)
    >>> distiller = Distiller({"titan": 3}, 4, "classification", options, (torch.zeros(3), torch.ones(3)))
    >>> task_loss = lambda outputs, chosen: F.cross_entropy(outputs, chosen * 0, reduction="sum")
    >>> head, features = nn.Linear(4, 2), torch.full((1, 3), torch.nan)  # a slide that the teacher lacks
    >>> loss = distiller(torch.zeros(1, 2), features, head, task_loss, torch.tensor([0]))
    >>> (2 * loss).exp().item()  # half of the student's own loss, -log 1/2, is left
    2.0
    """

    def __init__(
        self,
        teachers: Mapping[str, int],
        D: int,
        task: str,
        options: FitOptions,
        standard: tuple[Tensor, Tensor],
        widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.task, self.options = task, options
        self.widths, self.classes = list(teachers.values()), widths
        self.temperature = options.temperature or TEMPERATURES.get(task, 1.0)
        self.projectors = nn.ModuleList([nn.Linear(width, D) for width in self.widths])
        self.register_buffer("mean", standard[0])
        self.register_buffer("scale", standard[1])
        self.mean: Tensor
        self.scale: Tensor

    def forward(
        self,
        outputs: Tensor,
        features: Tensor,
        predictor: nn.Module,
        task_loss: Callable[[Tensor, Tensor], Tensor],
        chosen: Tensor,
    ) -> Tensor:
        """The loss, summed over slides.

        Args:
            outputs: the student's, [n, O].
            features: of the slide-level teachers, [n, sum of columns], NaN where a teacher lacks a slide.
            predictor: the student's head.
            task_loss: (outputs, numbers of slides) -> the task's loss, summed.
            chosen: int64 [n], numbers of the slides.
        """
        share, N = self.options.distillation, len(self.widths)
        loss = (1 - share) * task_loss(outputs, chosen)
        blocks = ((features - self.mean) / self.scale).split(self.widths, dim=1)
        for block, projector in zip(blocks, self.projectors, strict=True):
            present = ~block[:, 0].isnan()
            if not present.any():
                continue
            own = predictor(projector(block[present]))
            agreement = divergence(self.task, outputs[present], own, self.temperature, self.options.kl, self.classes)
            loss = loss + share / N * agreement
            if self.options.supervise_teachers:
                loss = loss + (1 - share) / N * task_loss(own, chosen[present])
        return loss
