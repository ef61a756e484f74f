"""The objective of Shazam, eq. (9): cross-entropy plus a cosine and a Huber distillation loss per teacher."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from ..errors import ShazamError
from ..ops import dispatch as ops
from ..student.student import Student, StudentOutput

TARGETS = ("projected", "detached", "frozen")
HUBERS = ("norm", "elementwise")


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
        delta: where the Huber loss turns from quadratic to linear.
        huber: "norm", of the distance |t - T_i| (eqs. 6, 7), or "elementwise" (the authors' script).
        targets: "projected", the student's own tokens T_i with their gradient (eqs. 5, 6); "detached", the same
            without gradient; "frozen", the student's `frozen_targets` (the authors' script).
    """

    lam: float
    delta: float
    huber: str
    targets: str

    def __post_init__(self) -> None:
        if self.huber not in HUBERS:
            raise ShazamError(f"huber: one of {HUBERS} expected, found {self.huber!r}")
        if self.targets not in TARGETS:
            raise ShazamError(f"targets: one of {TARGETS} expected, found {self.targets!r}")
        if self.lam < 0 or self.delta <= 0:
            raise ShazamError(f"lam >= 0 and delta > 0 expected, found {self.lam} and {self.delta}")

    def __call__(
        self, student: Student, features: Tensor, labels: Tensor, output: StudentOutput, rows: Tensor | None = None
    ) -> Losses:
        """Losses of a batch: `features`, `rows` and `output` of the student, `labels` int64 [B]."""
        targets = self._targets(student, features, output, rows)
        cross_entropy = F.cross_entropy(output.logits, labels)
        distillation, cosine, huber = ops.distillation_loss(
            output.fused, targets, self.lam, self.delta, self.huber, output.present
        )
        return Losses(cross_entropy + distillation, cross_entropy, cosine, huber)

    def _targets(self, student: Student, features: Tensor, output: StudentOutput, rows: Tensor | None) -> Tensor:
        if self.targets == "projected":
            return output.tokens
        if self.targets == "detached":
            return output.tokens.detach()
        return student.fixed_targets(features, output.present, rows)
