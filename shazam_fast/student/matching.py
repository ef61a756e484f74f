"""Matching the teachers of an archive to those of a student."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MismatchError
from ..runtime.levels import split_level
from .config import StudentConfig


class TeacherMatch:
    """Selects and orders an archive's columns as a student needs them, by teacher name ("uni:high" is "uni").

    Raises MismatchError naming the teachers that differ. Teachers may be missing from the archive only if the
    student was trained with teacher dropout, or with `allow_missing`, and only with all their levels. The student
    ignores extra teachers.

    Args:
        archive: what messages call the archive.
        teachers: the archive's teachers, {name: dim}, side by side in this order.
        config: the student's configuration.
        allow_missing: accept missing teachers without teacher dropout.

    `starts` has the first of the archive's columns of each of the student's teachers, -1 for those `missing`.
    """

    def __init__(
        self, archive: str | Path, teachers: Mapping[str, int], config: StudentConfig, allow_missing: bool = False
    ) -> None:
        teachers = _as_the_student_spells(teachers, config)
        missing = [name for name in config.teachers if name not in teachers]
        widths = {n: d for n, d in config.teachers.items() if teachers.get(n, d) != d}
        problems = [f"{n!r} has {teachers[n]} columns, the student needs {d}" for n, d in widths.items()]
        partly = _partly_missing(missing, config)
        problems += [f"{name!r} is missing, other levels of that teacher are not" for name in partly]
        untrained = config.teacher_dropout == 0.0 and not allow_missing
        if missing and (untrained or len(missing) == len(config.teachers)):
            problems.append(f"missing {missing}; found {list(teachers)}")
            if untrained:
                problems.append(
                    "only a student trained with teacher_dropout can do without a teacher; "
                    "score all the same with allow_missing_teachers=True (--allow-missing-teachers); "
                    "results may be unreliable"
                )
        if problems:
            raise MismatchError(f"{archive}: the archive's teachers are not the student's: {'; '.join(problems)}")
        ends = dict(zip(teachers, accumulate(teachers.values()), strict=True))
        self._columns = [None if n in missing else slice(ends[n] - d, ends[n]) for n, d in config.teachers.items()]
        self._dims = list(config.teachers.values())
        self._as_they_are = list(teachers.items()) == list(config.teachers.items())
        self.starts = [-1 if columns is None else columns.start for columns in self._columns]
        self.missing = tuple(missing)
        self.forced = bool(missing) and config.teacher_dropout == 0.0

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """features [B, archive's width] -> features [B, student's width], present bool [B, N] or None."""
        if self._as_they_are:
            return features, None
        blocks = [
            features.new_zeros(len(features), dim) if columns is None else features[:, columns]
            for dim, columns in zip(self._dims, self._columns, strict=True)
        ]
        present = torch.tensor([c is not None for c in self._columns], device=features.device)
        return torch.cat(blocks, dim=1), present.expand(len(features), -1) if self.missing else None


def _as_the_student_spells(teachers: Mapping[str, int], config: StudentConfig) -> dict[str, int]:
    """The archive's teachers, of which "uni" is called "uni:high", or the other way round, where the student does."""
    wanted = {split_level(name): name for name in config.teachers if name not in teachers}
    return {n if n in config.teachers else wanted.get(split_level(n), n): dim for n, dim in teachers.items()}


def _partly_missing(missing: Sequence[str], config: StudentConfig) -> list[str]:
    """Those of the missing names whose encoder is there with other levels."""
    pairs = list(zip(config.teachers, config.encoders, strict=True))
    there = {encoder for name, encoder in pairs if name not in missing}
    return [name for name, encoder in pairs if name in missing and encoder in there]


def require_same_features(
    archive: str | Path,
    found: Mapping[str, Mapping[str, str]],
    wanted: Mapping[str, Mapping[str, str]],
) -> None:
    """Raise MismatchError when features were made in another way than those that a student was trained on.

    Args:
        archive: what messages call the archive.
        found: transform, pooling and weights' revision of the archive's teachers, as far as they are known.
        wanted: the same of the features that the student was trained on. What only one side records is not compared.
    """
    for name, record in wanted.items():
        for key, value in record.items():
            other = found.get(name, {}).get(key, value)
            if other != value:
                raise MismatchError(
                    f"{archive}: teacher {name!r}: its features have {key} {other}, the student was trained on "
                    f"{key} {value}; extract the features again as for training, or train a student on these"
                )
