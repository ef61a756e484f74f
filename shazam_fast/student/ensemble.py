"""An ensemble of students is a student: saved, folded and scored like one. It predicts the mean of probabilities."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _core
from ..errors import MismatchError, ShazamError
from ..runtime.checks import require_path
from .config import StudentConfig
from .folded import FoldedStudent
from .output import StudentOutput
from .saving.files import write_student
from .student import Student


class Ensemble(Student):
    """Students of the same teachers, classes and width as one student; made by `average`.

    Its logits are the log of the mean of the members' probabilities, so that their softmax is that mean. Its fused
    feature is the mean of theirs; its shares the mean of theirs, None where a member has none (all but bare).

    Args:
        members: at least one student.

    Attributes:
        config: teachers, classes and width of all members, depth of the deepest; the block is "bare" where all members
            are bare, "levels" where one has levels, else "residual"; the teacher dropout is the least of theirs.
        members: the students.

    >>> import torch, shazam_fast as sf
    >>> config = sf.StudentConfig({"uni": 8}, ("normal", "tumor"), dim=8, depth=1)
    >>> ensemble = sf.average([sf.Student(config), sf.Student(config)])
    >>> ensemble(torch.ones(3, 8)).logits.exp().sum(dim=1).allclose(torch.ones(3))
    True
    """

    def __init__(self, members: Sequence[Student]) -> None:
        nn.Module.__init__(self)  # an ensemble has the parameters of its members, none of its own
        self.config = _common_config([member.config for member in members])
        self.dims = list(self.config.teachers.values())
        self.members = nn.ModuleList(members)
        self.frozen_targets, self.teacher_heads = None, None
        self.training_record = {
            "teachers": _common_records(members),
            "members": [member.training_record for member in members],
        }

    @property
    def students(self) -> list[Student]:
        """The members."""
        return [member for member in self.members if isinstance(member, Student)]

    def forward(self, features: Tensor, present: Tensor | None = None) -> StudentOutput:
        """Mean of the members' outputs; arguments and shapes as for `Student.forward`."""
        return _mean_output([member(features, present) for member in self.members], self.config.block == "bare")

    def withhold(self, features: Tensor, keep: Tensor, present: Tensor | None = None) -> StudentOutput:
        """Mean of the members' outputs; arguments and shapes as for `Student.withhold`."""
        outputs = [member.withhold(features, keep, present) for member in self.students]
        return _mean_output(outputs, self.config.block == "bare")

    def tokens(self, *arguments: Any, **options: Any) -> Tensor:
        """Raises ShazamError: every member has tokens of its own."""
        raise ShazamError("an ensemble has no tokens of its own; ask its members (ensemble.members)")

    def fuse(self, *arguments: Any, **options: Any) -> StudentOutput:
        """Raises ShazamError: every member fuses tokens of its own."""
        raise ShazamError("an ensemble fuses no tokens of its own; ask its members (ensemble.members)")

    def freeze_targets(self, generator: torch.Generator | None = None) -> None:
        """Raises ShazamError: its members are trained, not the ensemble."""
        raise ShazamError("an ensemble is not trained; train its members and average them")

    def add_teacher_heads(self, generator: torch.Generator | None = None) -> None:
        """Raises ShazamError: its members are trained, not the ensemble."""
        raise ShazamError("an ensemble is not trained; train its members and average them")

    def fold(self) -> "FoldedEnsemble":
        """Every member folded; exact. Raises ShazamError when a member is residual."""
        return FoldedEnsemble(self.config, [member.fold() for member in self.students])

    def save(self, path: str | Path) -> None:
        """Write `student.json` and `student.safetensors` with all members; `shazam_fast.load` reads them.

        Raises ShazamError when they cannot be written.
        """
        shapes = [member.config for member in self.students]
        write_student(require_path("path", path), self.config, self.state_dict(), self.training_record, shapes)


class FoldedEnsemble(FoldedStudent):
    """A folded ensemble, for scoring; made by `Ensemble.fold`.

    >>> import torch, shazam_fast as sf
    >>> config = sf.StudentConfig({"uni": 8}, ("normal", "tumor"), dim=8, depth=1)
    >>> sf.average([sf.Student(config), sf.Student(config)]).fold()(torch.ones(3, 8)).shares.shape
    torch.Size([3, 1])
    """

    def __init__(self, config: StudentConfig, members: Sequence[FoldedStudent]) -> None:
        nn.Module.__init__(self)
        self.config, self.dims = config, list(config.teachers.values())
        self.members = nn.ModuleList(members)

    @property
    def folded(self) -> list[FoldedStudent]:
        """The folded members."""
        return [member for member in self.members if isinstance(member, FoldedStudent)]

    def forward(self, features: Tensor, present: Tensor | None = None) -> StudentOutput:
        """Mean of the members' outputs; arguments and shapes as for `FoldedStudent.forward`."""
        return _mean_output([member(features, present) for member in self.members], self.config.block == "bare")

    def withhold(self, features: Tensor, keep: Tensor, present: Tensor | None = None) -> StudentOutput:
        """Mean of the members' outputs; arguments and shapes as for `Student.withhold`."""
        outputs = [member.withhold(features, keep, present) for member in self.folded]
        return _mean_output(outputs, self.config.block == "bare")

    def to_core(self) -> _core.FoldedStudent | None:
        """None: the compiled core runs single students."""
        return None


def average(students: Sequence[Student]) -> Ensemble:
    """An ensemble that predicts the mean of the students' probabilities.

    Args:
        students: one or more, of the same teachers in the same order, the same classes and width; depth and block may
            differ. They are not copied.

    Returns the ensemble, a student.

    Raises:
        ShazamError: there is no student, or something else than a student.
        MismatchError: teachers, classes, widths or the records of the teachers' features differ.

    >>> import shazam_fast as sf
    >>> config = sf.StudentConfig({"uni": 8}, ("normal", "tumor"), dim=8, depth=1)
    >>> len(sf.average([sf.Student(config), sf.Student(config)]).members)
    2
    """
    if isinstance(students, Student) or not isinstance(students, Sequence) or len(students) == 0:
        raise ShazamError(f"average: a list of at least one student expected, found {_describe(students)}")
    for index, student in enumerate(students):
        if not isinstance(student, Student):
            raise ShazamError(
                f"average: students expected, found {type(student).__name__} at {index}; load saved ones with load()"
            )
    return Ensemble(students).train(all(student.training for student in students))


def _mean_output(outputs: Sequence[StudentOutput], shared: bool) -> StudentOutput:
    """The output whose softmax is the mean of the outputs' softmax, with the mean fused feature.

    And, where all have shares (`shared`), the mean of these.
    """
    withheld = [output.withheld for output in outputs if output.withheld is not None]
    return StudentOutput(
        _mean_logits([output.logits for output in outputs]),
        lambda: torch.stack([output.fused for output in outputs]).mean(dim=0),
        partial(_mean_shares, outputs) if shared else None,
        withheld=_mean_logits(withheld) if withheld else None,
    )


def _mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """The logits whose softmax over the last axis is the mean of the softmax of these."""
    logs = torch.stack([one.log_softmax(dim=-1) for one in logits])
    return logs.logsumexp(dim=0) - math.log(len(logs))


def _mean_shares(outputs: Sequence[StudentOutput]) -> Tensor:
    return torch.stack([shares for output in outputs if (shares := output.shares) is not None]).mean(dim=0)


def _describe(students: object) -> str:
    return "an empty list" if isinstance(students, Sequence) else type(students).__name__


def _common_config(configs: Sequence[StudentConfig]) -> StudentConfig:
    first = configs[0]
    for index, config in enumerate(configs):
        for name in ("teachers", "classes", "dim"):
            found, wanted = getattr(config, name), getattr(first, name)
            same = list(found.items()) == list(wanted.items()) if name == "teachers" else found == wanted
            if not same:
                raise MismatchError(
                    f"average: student {index} has {name} {found}, student 0 has {wanted}; "
                    f"average students with the same {name}"
                )
    blocks = {config.block for config in configs}
    mixed = "levels" if "levels" in blocks else "residual"  # levels of a teacher are then missing together
    return replace(
        first,
        depth=max(config.depth for config in configs),
        block="bare" if blocks == {"bare"} else mixed,
        teacher_dropout=min(config.teacher_dropout for config in configs),
    )


def _common_records(members: Sequence[Student]) -> dict[str, dict[str, str]]:
    """How the members' teachers made their features, as far as any member knows."""
    common: dict[str, dict[str, str]] = {}
    for index, member in enumerate(members):
        for teacher, record in member.training_record.get("teachers", {}).items():
            known = common.setdefault(teacher, {})
            for key, value in record.items():
                if known.setdefault(key, value) != value:
                    raise MismatchError(
                        f"average: student {index} was trained on features of teacher {teacher!r} with {key} {value}, "
                        f"a student before it on {key} {known[key]}; average students of the same features"
                    )
    return common
