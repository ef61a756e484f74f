"""A step of many students together: one batch, their losses and one fused AdamW step for each of them.

Every student's loss depends on its own parameters alone, so the gradient of the sum of all losses is that of each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.stacked import distil
from ..student.stacked import StackedStudents
from ..student.student import Student
from ..training.config import TrainConfig

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW, as PyTorch's defaults


class Batch:
    """What all students of a batch share.

    Args:
        columns: standardised features of each teacher, [B, dim], 0 where the teacher is missing.
        targets: the same as frozen targets take them, without feature dropout.
        labels: int64 [B].
        present: bool [B, N], which teachers a patch has; None: all.
        own: the part of its own columns that a patch keeps; the rest are those of the patch as far from the batch's end
            as it is from its start (`mixup`).
    """

    def __init__(
        self, columns: list[Tensor], targets: list[Tensor], labels: Tensor, present: Tensor | None, own: float
    ) -> None:
        self.columns, self.targets, self.labels, self.present, self.own = columns, targets, labels, present, own
        if own < 1.0:
            self.columns = [own * x + (1.0 - own) * x.flip(0) for x in columns]


class StackedTraining:
    """Students of one shape in training.

    Args:
        students: the students, on the device that computes.
        configs: how each is trained; apart from `grid.OWN`, all alike.
        offsets: added to the logits of each student in training, [S, C] (`balance`).
    """

    def __init__(self, students: Sequence[Student], configs: Sequence[TrainConfig], offsets: Tensor) -> None:
        self.students = StackedStudents(students)
        self._configs, self._offsets = list(configs), offsets
        trained = {name: tensor for name, tensor in self.students.tensors.items() if tensor.requires_grad}
        self._trained, self._done = list(trained), torch.zeros((), device=offsets.device)
        self._moments = [{name: torch.zeros_like(x, requires_grad=False) for name, x in trained.items()} for _ in "mv"]
        self._head_weights = offsets.new_tensor([config.teacher_heads for config in configs])
        self._share_out()

    def step(self, batch: Batch, rate: float) -> Tensor:
        """One step of every student on a batch.

        Args:
            batch: the patches.
            rate: by which every learning rate is multiplied in this step.

        Returns losses [S, 2]: total and cross-entropy, before the step.
        """
        total, cross_entropy = self._losses(batch)
        gradients = torch.autograd.grad(total.sum(), [self.students.tensors[name] for name in self._trained])
        everyone = zip(*(gradient.contiguous().unbind(0) for gradient in gradients), strict=True)
        self._done += 1
        steps = [self._done] * len(self._trained)
        for config, found, (parameters, means, squares) in zip(self._configs, everyone, self._own, strict=True):
            torch._fused_adamw_(
                parameters, list(found), means, squares, [], steps, amsgrad=False, lr=config.lr * rate, beta1=BETAS[0],
                beta2=BETAS[1], weight_decay=config.weight_decay, eps=EPSILON, maximize=False,
            )  # fmt: skip
        return torch.stack([total.detach(), cross_entropy.detach()], dim=1)

    def keep(self, indices: Sequence[int]) -> None:
        """Go on with these students alone."""
        chosen = torch.tensor(list(indices), device=self._offsets.device)
        self.students.keep(chosen)
        self._moments = [{name: x[chosen] for name, x in moments.items()} for moments in self._moments]
        self._configs = [self._configs[index] for index in indices]
        self._offsets, self._head_weights = self._offsets[chosen], self._head_weights[chosen]
        self._share_out()

    @torch.no_grad()
    def logits(self, columns: Sequence[Tensor]) -> Tensor:
        """Of every student for the patches with these standardised features of each teacher [B, dim]. [S, B, C]."""
        return self.students.predict(columns)

    def _share_out(self) -> None:
        """Every student's own parameters and moments, views of the stacked ones."""
        stacked = [{name: self.students.tensors[name].detach() for name in self._trained}, *self._moments]
        self._own = [
            [[tensors[name][index] for name in self._trained] for tensors in stacked]
            for index in range(len(self._configs))
        ]

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Total loss and cross-entropy of every student, [S] each; see `Objective`."""
        students, first = self.students, self._configs[0]
        tokens = students.tokens(batch.columns)  # [S, B, N, D]
        fused = students.fuse(tokens, batch.present)  # [S, B, D]
        logits = students.classify(fused) + self._offsets[:, None]
        cross_entropy = _mixed(logits, batch).mean(dim=1)
        total = cross_entropy
        if any(config.lam for config in self._configs):
            total = total + self._distillation(fused, tokens, batch)
        if first.teacher_heads:
            total = total + self._head_weights * self._head_losses(tokens, batch)
        return total, cross_entropy

    def _distillation(self, fused: Tensor, tokens: Tensor, batch: Batch) -> Tensor:
        """Both distillation losses of every student, by its lambda. [S]."""
        first = self._configs[0]
        if first.targets == "frozen":
            targets = self.students.fixed_targets(batch.targets)
        else:
            targets = tokens.detach() if first.targets == "detached" else tokens
        lams, deltas = zip(*((config.lam, config.delta) for config in self._configs), strict=True)
        return distil(fused, targets, lams, deltas, first.huber, batch.present)

    def _head_losses(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the heads on the teachers' tokens, mean over patches and teachers. [S]."""
        S, B, N, _ = tokens.shape
        logits = self.students.classify_tokens(tokens) + self._offsets[:, None, None]
        losses = _mixed(logits.transpose(1, 2).flatten(1, 2), batch).view(S, N, B)
        if batch.present is not None:
            losses = torch.where(batch.present.T, losses, 0.0)
        return losses.mean(dim=(1, 2))


def _mixed(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropies of logits [S, n B, C] with the labels [B] repeated n times, mixed as the columns. [S, n B]."""
    times = logits.shape[1] // len(batch.labels)
    found = _cross_entropy(logits, batch.labels.repeat(times))
    if batch.own == 1.0:
        return found
    return batch.own * found + (1.0 - batch.own) * _cross_entropy(logits, batch.labels.flip(0).repeat(times))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of every student and row. [S, R, C], [R] -> [S, R]."""
    S, R, _ = logits.shape
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(S), reduction="none").view(S, R)
