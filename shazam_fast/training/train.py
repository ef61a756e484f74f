"""Training a student: one call from an archive to a student with its history and metrics."""

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..archive.opening import ArchiveLike, open_archive
from ..archive.splits import require_whole_groups
from ..errors import MismatchError, ShazamError
from ..runtime.devices import choose_device
from ..scoring.evaluate import evaluate, require_same_classes
from ..scoring.metrics import Metrics
from ..student.files import CARD
from ..student.student import Student, load
from .checkpoint import CHECKPOINT, require_same_job
from .config import TrainConfig
from .loop import TrainingRun, stop_on_interrupt

logger = logging.getLogger("shazam_fast")


@dataclass(frozen=True)
class TrainResult:
    """A trained student, one record per epoch, and its metrics on "val" and, if there is one, "test".

    A record has `epoch`, `loss`, `cross_entropy`, `cosine` and `huber` per teacher, `val_score` (what the best
    epoch is chosen by) with its parts `val_balanced_accuracy` and `val_weighted_f1`, `teacher_shares` (mean
    share over the validation split) and their mean entropy `share_entropy` in nats, and `seconds`.
    """

    student: Student
    history: list[dict[str, Any]]
    metrics: dict[str, Metrics]


def train(
    archive: ArchiveLike,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    preset: str | None = None,
    **overrides: Any,
) -> TrainResult:
    """Train a student on the archive's "train" split, choose the best epoch on "val", read "test" once at the end.

    Args:
        archive: an archive or its path, with labels, classes and splits.
        config: a complete configuration; or give `preset` and single fields of `TrainConfig` by name.
        out: directory for the student and its checkpoint. A killed or interrupted training is continued by the
            same call, to the same bits; a finished one is loaded.

    Raises:
        ShazamError: an impossible configuration, an empty or too small split.
        MismatchError: `out` holds another training; a class that no training patch has; unlabelled patches;
            a group (patient) with patches in two splits.
        NonFiniteError: a NaN or infinite feature (names teacher and row) or loss (names epoch, step, term).
        KeyboardInterrupt: Ctrl-C, after the checkpoint was saved.
    """
    config = _resolve(config, preset, overrides)
    archive = open_archive(archive)
    job = config.job(archive.fingerprint)
    out = None if out is None else Path(out)
    if out is not None and (out / CARD).exists():
        return _finished(out, job, archive)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    require_whole_groups(archive.splits, archive.group_index, archive.groups)
    splits = {name: _labelled_rows(archive, name, config) for name in ("train", "val")}
    checkpoint = None if out is None else out / CHECKPOINT
    run = TrainingRun(archive, config, splits["train"], splits["val"], checkpoint)
    with stop_on_interrupt(enabled=checkpoint is not None) as interrupted:
        run.train(interrupted)
    student = run.best_student()
    metrics = _metrics(student, archive, choose_device(config.device))
    student.training_record = {
        "job": job,
        "history": run.history,
        "metrics": {name: m.to_dict() for name, m in metrics.items()},
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    if out is not None:
        student.save(out)
        (out / CHECKPOINT).unlink(missing_ok=True)
    return TrainResult(student, run.history, metrics)


def _resolve(config: TrainConfig | None, preset: str | None, overrides: dict[str, Any]) -> TrainConfig:
    unknown = sorted(set(overrides) - {field.name for field in fields(TrainConfig)})
    if unknown:
        known = ", ".join(field.name for field in fields(TrainConfig))
        raise ShazamError(f"train() has no option {', '.join(unknown)}; options are {known}")
    if config is not None and preset is not None:
        raise ShazamError("give either a config or a preset, not both")
    if preset is not None:
        return TrainConfig.from_preset(preset, **overrides)
    return replace(config or TrainConfig(), **overrides)


def _labelled_rows(archive: FeatureArchive, name: str, config: TrainConfig) -> NDArray[np.int64]:
    """Rows of a split, checked for what training needs of it."""
    rows = archive.split(name)
    if len(rows) == 0:
        raise MismatchError(
            f"{archive.path}: split {name!r} is empty; training needs patches in 'train' and in 'val' "
            "(give splits= when writing the archive)"
        )
    labels = archive.labels[rows]
    if (labels < 0).any():
        first = rows[labels < 0][0]
        raise MismatchError(
            f"{archive.path}: {np.count_nonzero(labels < 0)} patches of split {name!r} have no label, "
            f"the first is row {first}; put them in split 'none'"
        )
    if name == "train":
        absent = set(range(len(archive.classes))) - set(labels.tolist())
        if absent:
            names = [archive.classes[c] for c in sorted(absent)]
            raise MismatchError(f"{archive.path}: no training patch has class {', '.join(names)}")
        if config.batch_size > len(rows):
            raise MismatchError(
                f"{archive.path}: batch_size {config.batch_size} is larger than the training split, {len(rows)} patches"
            )
    return rows


def _metrics(student: Student, archive: FeatureArchive, device: torch.device) -> dict[str, Metrics]:
    metrics = {"val": evaluate(student, archive, "val", device=str(device))}
    test = archive.split("test")
    if len(test) and (archive.labels[test] >= 0).all():
        metrics["test"] = evaluate(student, archive, "test", device=str(device))
    elif len(test):
        logger.warning("%s: the test split has patches without a label, so it was not evaluated", archive.path)
    return metrics


def _finished(out: Path, job: dict[str, Any], archive: FeatureArchive) -> TrainResult:
    student = load(out)
    require_same_classes(student.config, archive)
    record = student.training_record
    require_same_job(out, record.get("job", {}), job)
    logger.info("%s: already trained, loaded", out)
    metrics = {name: Metrics.from_dict(values) for name, values in record["metrics"].items()}
    return TrainResult(student, record["history"], metrics)
