"""The objective of Shazam, eq. (9): cross-entropy plus a cosine and a Huber distillation loss per teacher.

Two terms go beyond the paper: offsets of the logits that make classes count alike, and the cross-entropy of a linear
head on each teacher's token, which keeps every token informative by itself.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ShazamError
from ..ops import dispatch as ops
from ..student.student import Student
from .choices import check_objective


class Losses(NamedTuple):
    """`total` scalar to minimise; `cross_entropy` scalar; `cosine` and `huber` one value per teacher [N].

    `heads`: cross-entropy of each teacher's head [N]; [0] without heads.
    """

    total: Tensor
    cross_entropy: Tensor
    cosine: Tensor
    huber: Tensor
    heads: Tensor


@dataclass(frozen=True)
class Objective:
    """L = CE + lam * sum over teachers (L_cos + L_huber), averaged over the batch, eq. (9).

    With `teacher_heads`, + teacher_heads * mean over teachers (CE of the head on T_i), a missing teacher counting 0.

    Args:
        lam: weight of the distillation losses; 0 leaves cross-entropy alone.
        delta: distance at which the Huber loss turns from quadratic to linear.
        huber: "norm", of the distance |t - T_i| (eqs. 6, 7), or "elementwise" (the authors' script).
        targets: "projected", the student's own tokens T_i with their gradient (eqs. 5, 6); "detached", the same
            without gradient; "frozen", the student's `frozen_targets` (the authors' script).
        teacher_heads: weight of the loss of the student's `teacher_heads`; 0: it needs none.
        offsets: added to all logits before a cross-entropy, [C], on the student's device; None: nothing.
        class_weights: by which the cross-entropy of a patch of each class is multiplied, [C], on the student's device;
            None: by 1.
    """

    lam: float
    delta: float
    huber: str
    targets: str
    teacher_heads: float = 0.0
    offsets: Tensor | None = None
    class_weights: Tensor | None = None

    def __post_init__(self) -> None:
        check_objective(self.lam, self.delta, self.huber, self.targets, self.teacher_heads)

    def __call__(
        self,
        student: Student,
        features: Tensor,
        labels: Tensor,
        present: Tensor | None = None,
        rows: Tensor | None = None,
        scale: Tensor | None = None,
        mixture: Tensor | None = None,
    ) -> Losses:
        """Losses of a batch.

        Args:
            student: the student to train.
            features, present, rows, scale, mixture: as for `Student.tokens`; frozen targets do not depend on the last
                two. Cross-entropies are mixed as the features are.
            labels: int64 [B].

        Returns the losses, means over the batch.
        """
        tokens = student.tokens(features, present, rows, scale, mixture)  # [B, N, D]
        output = student.fuse(tokens, present)
        cross_entropy = self._mixed(output.logits, labels, mixture)
        if self.targets == "frozen":
            targets = student.fixed_targets(features, present, rows)
        else:
            targets = tokens if self.targets == "projected" else tokens.detach()
        options = self.lam, self.delta, self.huber, present
        if student.levels is None:
            distillation, cosine, huber = ops.distillation_loss(output.fused, targets, *options)
        else:
            distillation, cosine, huber = student.levels.distil(output.outputs, targets, *options)
        total = cross_entropy + distillation
        if not self.teacher_heads:
            return Losses(total, cross_entropy, cosine, huber, cosine.new_empty(0))
        heads = self._head_losses(student, tokens, labels, present, mixture)
        return Losses(total + self.teacher_heads * heads.mean(), cross_entropy, cosine, huber, heads)

    def _head_losses(
        self, student: Student, tokens: Tensor, labels: Tensor, present: Tensor | None, mixture: Tensor | None
    ) -> Tensor:
        """Cross-entropy of the head on each teacher's token, mean over the batch. tokens [B, N, D] -> [N]."""
        if student.teacher_heads is None:
            raise ShazamError("teacher_heads above 0 needs a student with teacher_heads; train() makes them")
        B, N, _ = tokens.shape
        logits = student.teacher_heads(tokens).transpose(0, 1).flatten(0, 1)  # [N*B, C]
        losses = self._mixed(logits, labels, mixture, "none").view(N, B)
        return (losses if present is None else torch.where(present.T, losses, 0.0)).mean(dim=1)

    def _mixed(self, logits: Tensor, labels: Tensor, mixture: Tensor | None, reduction: str = "mean") -> Tensor:
        """Cross-entropies of logits [n B, C] with the labels [B] repeated n times, mixed as the features are."""
        times = len(logits) // len(labels)
        own = self._cross_entropy(logits, _repeated(labels, times), reduction)
        if mixture is None:
            return own
        other = self._cross_entropy(logits, _repeated(labels.flip(0), times), reduction)
        return mixture[0] * own + (1.0 - mixture[0]) * other

    def _cross_entropy(self, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Weighted by class. The mean is over rows; PyTorch's would divide by the sum of the batch's weights."""
        shifted = logits if self.offsets is None else logits + self.offsets
        if self.class_weights is None:
            return F.cross_entropy(shifted, labels, reduction=reduction)
        losses = F.cross_entropy(shifted, labels, self.class_weights, reduction="none")
        return losses.mean() if reduction == "mean" else losses


def _repeated(labels: Tensor, times: int) -> Tensor:
    """Labels [B] -> [times * B]; `repeat` copies even what is there once, which a step feels."""
    return labels if times == 1 else labels.repeat(times)
