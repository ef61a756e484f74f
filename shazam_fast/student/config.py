"""The shape of a student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ShazamError

BLOCKS = ("bare", "residual")


@dataclass(frozen=True)
class StudentConfig:
    """Shape of a student.

    Args:
        teachers: name -> feature dim, in the order in which features lie side by side.
        classes: class names, in label order.
        dim: model width D.
        depth: number K of attention layers.
        block: "bare" (the paper, eqs. 1-4) or "residual" (the authors' released script).
        teacher_dropout: probability of hiding a teacher of a patch in training; above 0 the student can be
            scored with any non-empty subset of its teachers.
    """

    teachers: Mapping[str, int]
    classes: Sequence[str]
    dim: int = 128
    depth: int = 5
    block: str = "bare"
    teacher_dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "teachers", dict(self.teachers))
        object.__setattr__(self, "classes", tuple(self.classes))
        if not self.teachers or min(self.teachers.values()) < 1:
            raise ShazamError(f"teachers: at least one name with a positive dim expected, found {self.teachers}")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ShazamError(f"classes: two or more different names expected, found {list(self.classes)}")
        if self.dim < 1 or self.depth < 1:
            raise ShazamError(f"dim and depth must be positive, found {self.dim} and {self.depth}")
        if self.block not in BLOCKS:
            raise ShazamError(f"block: one of {BLOCKS} expected, found {self.block!r}")
        if not 0.0 <= self.teacher_dropout < 1.0:
            raise ShazamError(f"teacher_dropout: 0 <= p < 1 expected, found {self.teacher_dropout}")
