"""The shape of a student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ShazamError
from ..runtime.checks import require_choice, require_count, require_number
from ..runtime.levels import group_levels

BLOCKS = ("bare", "residual", "levels")
MOST_DIM = 16384  # a square map of that width takes 1 GB
MOST_DEPTH = 1000  # attention layers
LEAST_CLASSES = 2


@dataclass(frozen=True)
class StudentConfig:
    """Shape of a student.

    Args:
        teachers: name -> feature dim, in the order in which features lie side by side.
        classes: class names, in label order.
        dim: model width D.
        depth: number K of attention layers; with "levels", of those of each level.
        block: "bare" (the paper, eqs. 1-4), "residual" (the authors' released script), or "levels" (the paper's later
            versions) for teachers with features of three levels: "uni:low", "uni:mid" and "uni".
        teacher_dropout: probability that a teacher of a patch is left out in a training step, 0 <= p < 1; above 0
            the student can be scored with any non-empty subset of its teachers.

    Raises ShazamError naming the first option that is out of range or unknown; MismatchError when a teacher lacks a
    level that the block "levels" needs.

    >>> StudentConfig({"uni": 1024, "gigapath": 1536}, ("normal", "tumor")).dim
    128
    """

    teachers: Mapping[str, int]
    classes: Sequence[str]
    dim: int = 128
    depth: int = 5
    block: str = "bare"
    teacher_dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "teachers", _teacher_dims(self.teachers))
        object.__setattr__(self, "classes", _class_names(self.classes))
        for name, value in check_shape(self.dim, self.depth, self.block, self.teacher_dropout).items():
            object.__setattr__(self, name, value)
        if self.block == "levels":
            group_levels(self.teachers)

    @property
    def encoders(self) -> list[int]:
        """The number of the encoder that each of `teachers` comes from: its levels are there or missing together.

        >>> StudentConfig({"uni:low": 8, "uni:mid": 8, "uni": 8}, ("normal", "tumor"), block="levels").encoders
        [0, 0, 0]
        """
        if self.block != "levels":
            return list(range(len(self.teachers)))
        encoder = {n: number for number, names in enumerate(group_levels(self.teachers).values()) for n in names}
        return [encoder[name] for name in self.teachers]

    @property
    def encoder_names(self) -> list[str]:
        """Names of the encoders, in the order of their numbers: the teachers, or those whose levels they are.

        >>> StudentConfig({"uni:low": 8, "uni:mid": 8, "uni": 8}, ("normal", "tumor"), block="levels").encoder_names
        ['uni']
        """
        return list(group_levels(self.teachers) if self.block == "levels" else self.teachers)


def check_shape(dim: object, depth: object, block: object, teacher_dropout: object) -> dict[str, Any]:
    """The four options of a student's shape as plain values. Raises ShazamError naming the first that is wrong."""
    return {
        "dim": require_count("dim", dim, 1, MOST_DIM),
        "depth": require_count("depth", depth, 1, MOST_DEPTH),
        "block": require_choice("block", block, BLOCKS),
        "teacher_dropout": require_number("teacher_dropout", teacher_dropout, 0.0, 1.0),
    }


def _teacher_dims(teachers: object) -> dict[str, int]:
    if not isinstance(teachers, Mapping) or not teachers:
        raise ShazamError(f"teachers: a mapping of at least one name to its dim expected, found {teachers!r}")
    if unnamed := [name for name in teachers if not isinstance(name, str) or not name]:
        raise ShazamError(f"teachers: names (text) expected, found {unnamed[0]!r}")
    return {name: require_count(f"teachers: dim of {name!r}", dim) for name, dim in teachers.items()}


def _class_names(classes: object) -> tuple[str, ...]:
    names = tuple(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else ()
    texts = all(isinstance(name, str) for name in names)
    if len(names) < LEAST_CLASSES or not texts or len(set(names)) != len(names):
        raise ShazamError(f"classes: two or more different names expected, found {classes!r}")
    return names
