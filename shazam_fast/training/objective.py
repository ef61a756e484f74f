"""The objective of Shazam, eq. (9): cross-entropy plus a cosine and a Huber distillation loss per teacher."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from ..ops import dispatch as ops
from ..student.student import Student
from .choices import check_objective


class Losses(NamedTuple):
    """`total` scalar to minimise; `cross_entropy` scalar; `cosine` and `huber` one value per teacher [N]."""

    total: Tensor
    cross_entropy: Tensor
    cosine: Tensor
    huber: Tensor


@dataclass(frozen=True)
class Objective:
    """L = CE + lam * sum over teachers (L_cos + L_huber), averaged over the batch, eq. (9).

    Args:
        lam: weight of the distillation losses; 0 leaves cross-entropy alone.
        delta: distance at which the Huber loss turns from quadratic to linear.
        huber: "norm", of the distance |t - T_i| (eqs. 6, 7), or "elementwise" (the authors' script).
        targets: "projected", the student's own tokens T_i with their gradient (eqs. 5, 6); "detached", the same
            without gradient; "frozen", the student's `frozen_targets` (the authors' script).
    """

    lam: float
    delta: float
    huber: str
    targets: str

    def __post_init__(self) -> None:
        check_objective(self.lam, self.delta, self.huber, self.targets)

    def __call__(
        self,
        student: Student,
        features: Tensor,
        labels: Tensor,
        present: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Losses:
        """Losses of a batch.

        Args:
            student: the student to train.
            features, present, rows: as for `Student.tokens`.
            labels: int64 [B].

        Returns the losses, means over the batch.
        """
        tokens = student.tokens(features, present, rows)  # [B, N, D]
        output = student.fuse(tokens, present)
        cross_entropy = F.cross_entropy(output.logits, labels)
        if self.targets == "frozen":
            targets = student.fixed_targets(features, present, rows)
        else:
            targets = tokens if self.targets == "projected" else tokens.detach()
        distillation, cosine, huber = ops.distillation_loss(
            output.fused, targets, self.lam, self.delta, self.huber, present
        )
        return Losses(cross_entropy + distillation, cross_entropy, cosine, huber)
