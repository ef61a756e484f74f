"""A finished training, as its directory holds it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ArchiveError, MismatchError
from ...runtime.jobs.foreign import require_same_job
from ...scoring.metrics import Metrics
from ...student.loading import load
from ...student.saving.files import CARD, TENSORS
from ...student.student import Student
from .checkpoint import tidy_after_kill
from .records import HISTORY, METRICS

logger = logging.getLogger("shazam_fast")

FILES = (TENSORS, CARD, HISTORY, METRICS)  # that a finished training writes


def is_finished(out: Path) -> bool:
    """Whether a directory holds a finished training."""
    try:
        return (out / CARD).exists()
    except OSError:  # no permission to look
        return False


def read_finished(out: Path, job: Mapping[str, Any]) -> tuple[Student, list[dict[str, Any]], dict[str, Metrics]]:
    """The student of a finished training, its history and its metrics.

    Args:
        out: the directory.
        job: what makes two trainings the same.

    Raises MismatchError when it is another training; ArchiveError when something is missing or damaged.
    """
    student = load(out)
    record = student.training_record
    require_same_job(out, record.get("job", {}), job)
    tidy_after_kill(out, FILES)
    logger.info("%s: already trained, loaded", out)
    try:
        metrics = {str(name): Metrics.from_dict(values) for name, values in record["metrics"].items()}
        return student, list(record["history"]), metrics
    except (KeyError, TypeError, AttributeError, MismatchError) as error:
        raise ArchiveError(f"{out / CARD}: corrupt: its training record is incomplete: {error!r}") from None
