"""Scoring archives with a trained student, and evaluating it on labelled splits."""

from pathlib import Path

import numpy as np

from ..archive.archive import FeatureArchive
from ..archive.opening import ArchiveLike, open_archive
from ..errors import MismatchError
from ..student.config import StudentConfig
from ..student.student import Student, load_student
from .metrics import Metrics, compute_metrics
from .score import score


def evaluate(
    student: Student | str | Path, archive: ArchiveLike, split: str = "test", *, device: str | None = None
) -> Metrics:
    """Metrics of a student on a labelled split; arguments and errors as `score`.

    Raises MismatchError also when the archive's classes are not the student's, or a label is unknown.
    """
    student, archive = load_student(student), open_archive(archive)
    require_same_classes(student.config, archive)
    rows = archive.split(split)
    unlabelled = np.flatnonzero(archive.labels[rows] < 0)
    if unlabelled.size:
        raise MismatchError(
            f"{archive.path}: {unlabelled.size} of {len(rows)} patches of split {split!r} have no label, "
            f"the first is row {rows[unlabelled[0]]}"
        )
    scores = score(student, archive, split=split, device=device)
    return compute_metrics(scores.probabilities, archive.labels[rows], tuple(student.config.classes))


def require_same_classes(config: StudentConfig, archive: FeatureArchive) -> None:
    """Raise MismatchError when labels of the archive mean other classes than the student's."""
    if tuple(config.classes) != archive.classes:
        raise MismatchError(
            f"{archive.path}: its classes {list(archive.classes)} are not the student's {list(config.classes)}"
        )
