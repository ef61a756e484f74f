"""How an archive's teachers become a student's."""

import torch
from torch import Tensor

from .archive import FeatureArchive
from .errors import MismatchError
from .student_config import StudentConfig


class TeacherMatch:
    """How an archive's columns become a student's: by teacher name, in the student's order.

    Raises MismatchError naming the teachers that differ. Teachers may be missing from the archive only if the
    student was trained with teacher dropout, or by `force`; extra ones are left unread by the student.

    `starts` has the first of the archive's columns of each of the student's teachers, -1 for those `missing`.
    """

    def __init__(self, archive: FeatureArchive, config: StudentConfig, force: bool = False) -> None:
        missing = [name for name in config.teachers if name not in archive.teachers]
        widths = {n: d for n, d in config.teachers.items() if archive.teachers.get(n, d) != d}
        problems = [f"{n!r} has {archive.teachers[n]} columns, the student needs {d}" for n, d in widths.items()]
        untrained = config.teacher_dropout == 0.0 and not force
        if missing and (untrained or len(missing) == len(config.teachers)):
            problems.append(f"missing {missing}; found {list(archive.teachers)}")
            if untrained:
                problems.append(
                    "only a student trained with teacher_dropout can do without a teacher; "
                    "force it (force=True, --force) only if you know how far its answers can be trusted"
                )
        if problems:
            raise MismatchError(f"{archive.path}: the archive's teachers are not the student's: {'; '.join(problems)}")
        self._columns = [None if n in missing else archive.columns_of(n) for n in config.teachers]
        self._dims = list(config.teachers.values())
        self._as_they_are = list(archive.teachers.items()) == list(config.teachers.items())
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
