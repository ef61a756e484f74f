"""Training a student: one call from an archive to a student with its history and metrics."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import __version__
from ..annotation.splits import require_whole_groups
from ..archive.archive import FeatureArchive
from ..archive.inspection import describe_splits, slides_by_split
from ..archive.opening import ArchiveLike, as_archive
from ..archive.writer import write_archive
from ..errors import MismatchError
from ..ops import dispatch as ops
from ..runtime.checks import require_path
from ..runtime.devices import choose_device, describe_device
from ..runtime.jobs.foreign import require_place_for
from ..runtime.jobs.locks import DirectoryLock, require_writable
from ..runtime.progress import Progress
from ..runtime.summaries import Plottable, counted, name_some, summary_html
from ..scoring.evaluate import labelled_rows, measure
from ..scoring.intervals import bootstrap_groups, metric_intervals
from ..scoring.metrics import FRACTIONS, Metrics
from ..student.student import Student
from .config import TrainConfig, resolve_config
from .loop import TrainingRun, stop_on_interrupt
from .saving.checkpoint import CHECKPOINT, NO_CHECKPOINT, Checkpoint, remove_leftovers
from .saving.finished import FILES, is_finished, read_finished
from .saving.records import OnEpoch, write_records

logger = logging.getLogger("shazam_fast")

CLASSES_NAMED = 5  # in a message


@dataclass(frozen=True, repr=False)
class TrainResult(Plottable):
    """A trained student, one record per epoch, and its metrics.

    Attributes:
        student: on the CPU, of the epoch that is kept.
        history: one record per epoch: `epoch`, `loss`, `cross_entropy`, `cosine` and `huber` (each by teacher),
            `val_loss` (cross-entropy), `val_calibration_error`, `val_score` (what a best epoch is chosen by) with its
            parts `val_balanced_accuracy` and `val_weighted_f1`, `teacher_shares` (mean share over the validation
            split) and their mean entropy `share_entropy` in nats (bare students), `lr` (learning rate of the last
            step) and `seconds`.
        metrics: of "val" and, if there is such a split with labels, "test".

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> labels, splits = np.arange(80) % 2, np.repeat(["train", "val", "test", "train"], 20)
    >>> features = {"uni": np.random.default_rng(0).normal(size=(80, 8)) + labels[:, None]}
    >>> archive = sf.write_archive(f"{tempfile.mkdtemp()}/patches", features, labels=labels, splits=splits)
    >>> result = sf.train(archive, epochs=1, dim=8, depth=1, batch_size=8, device="cpu")
    >>> result.history[0]["epoch"], result.metrics["test"].n_rows
    (0, 20)
    """

    student: Student
    history: list[dict[str, Any]]
    metrics: dict[str, Metrics]

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} balanced accuracy {m.balanced_accuracy:.3f}" for name, m in self.metrics.items())
        return f"TrainResult({counted(len(self.history), 'epoch')}; {scores or 'no metrics'}; {self.student!r})"

    def _repr_html_(self) -> str:
        facts = {"epochs": len(self.history), "student": repr(self.student)}
        head = ("split", "rows", *(name.replace("_", " ") for name in FRACTIONS))
        rows = ((n, m.n_rows, *(f"{getattr(m, f):.3f}" for f in FRACTIONS)) for n, m in self.metrics.items())
        return summary_html("TrainResult", facts, head, rows)


# Over 40 lines: every option is documented here.
def train(
    archive: ArchiveLike,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    preset: str | None = None,
    on_epoch: OnEpoch | None = None,
    **overrides: Any,
) -> TrainResult:
    """Train a student on the archive's "train" split, follow it on "val", read "test" once at the end.

    Args:
        archive: an archive or its path, with labels, classes and splits.
        config: a complete configuration; or give `preset` and single fields of `TrainConfig` by name.
        out: directory for the student and its checkpoint. If it holds an interrupted run, training resumes, to the
            same bits; if a finished one, that is loaded.
        preset: "recommended" (the default), "unitopatho", "huncrc" (the paper's two tasks), "authors_script" (the
            released script) or "authors_levels" (the scripts of the later versions, for features of three levels).
        on_epoch: called with the record of every epoch once it is done, as `TrainResult.history` has it. For
            TensorBoard: `on_epoch=lambda r: writer.add_scalar("val_loss", r["val_loss"], r["epoch"])`. An exception
            that it raises ends the training.
        overrides: fields of `TrainConfig` by name.

    A bar shows the progress in terminals and notebooks. Elsewhere device, threads and splits at the start, and a line
    per epoch, go to the logger `shazam_fast`, or to stderr where logging is not set up. `out` also gets history.csv
    and metrics.json.

    Returns the student of the epoch that is kept, on the CPU, with its history and metrics.

    Raises:
        ShazamError: an unknown option or one out of range; a device that is not there; `out` cannot be written, or
            another process trains there.
        ArchiveError: the archive, or what `out` holds, is missing or damaged.
        MismatchError: `out` holds another training; the archive has no labels; an empty split; a class that no
            training patch has; a patch without a label; a group (patient) with patches in two splits; fewer patches
            than a batch.
        NonFiniteError: a NaN or infinite feature (names teacher and row) or loss (names epoch, step, term).
        KeyboardInterrupt: Ctrl-C, after the checkpoint was saved.

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> labels = np.arange(80) % 2
    >>> features = {"uni": np.random.default_rng(0).normal(size=(80, 8)) + labels[:, None]}
    >>> splits = np.repeat(["train", "val", "test", "train"], 20)
    >>> archive = sf.write_archive(f"{tempfile.mkdtemp()}/patches", features, labels=labels, splits=splits)
    >>> result = sf.train(archive, epochs=2, dim=8, depth=1, batch_size=8, device="cpu")
    >>> len(result.history), sorted(result.metrics)
    (2, ['test', 'val'])
    """
    chosen = config is not None or "batch_size" in overrides
    config = resolve_config(config, preset, overrides)
    device = choose_device(config.device)
    ops.require_available(config.backend, config.precision, device)
    folder = None if out is None else require_path("out", out)
    finished = folder is not None and is_finished(folder)
    if folder is not None and not finished:
        require_place_for(folder, "student")
        require_writable(folder)
    archive = as_archive(archive)
    if not chosen:
        config = config.fit_batch(len(archive.split("train")))
    fingerprint = archive.fingerprint
    del fingerprint["positions"]  # which decide no training
    job = config.job(fingerprint)
    if folder is not None and finished:
        return TrainResult(*read_finished(folder, job))
    rows = checked_rows(archive, config)
    if folder is None:
        return _train(archive, config, device, rows, None, job, on_epoch)
    with DirectoryLock(folder):
        if is_finished(folder):  # by another process, by now
            return TrainResult(*read_finished(folder, job))
        return _train(archive, config, device, rows, folder, job, on_epoch)


# Over 40 lines: every option is documented here.
def train_arrays(
    features: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.int64],
    splits: NDArray[np.uint8],
    classes: Sequence[str],
    config: TrainConfig,
    class_weights: NDArray[np.float64] | None = None,
) -> TrainResult:
    """Train a student on features in memory. They are stored, as float32, in a temporary directory meanwhile.

    Args:
        features: {teacher: float32 [n, dim]}, finite.
        labels: int64 [n], index into `classes`; every class has a row in "train".
        splits: uint8 [n], 0 train, 1 val. Without a row in "val" nothing is validated, and the student is that of the
            last epoch.
        classes: C class names.
        config: what decides the training; its `batch_size` is at most the number of training rows.
        class_weights: weight of a row by its class, in the cross-entropy and in the validation score, float64 [C];
            None: rows count alike.

    Returns the student, with its history and no metrics.

    Raises ShazamError when the device is not there; NonFiniteError for a loss that is NaN or infinite.
    """
    device = choose_device(config.device)
    ops.require_available(config.backend, config.precision, device)
    numbers = [str(code) for code in range(len(classes))]  # any text may be the name of a class here
    with TemporaryDirectory(prefix="shazam-") as folder:
        place = Path(folder) / "features"
        write_archive(place, features, labels=labels, splits=splits, classes=numbers, dtype="float32")
        archive = as_archive(place)
        val = archive.split("val")
        with Progress("training", config.epochs, "epochs") as progress:  # without a line per epoch
            run = TrainingRun(
                archive, config, device, archive.split("train"), val if len(val) else None,
                NO_CHECKPOINT, class_weights, lambda _: progress.advance(1),
            )  # fmt: skip
            run.train(lambda: False)
    student = run.best_student()
    student.config = replace(student.config, classes=tuple(classes))
    about = {**circumstances(device), "threads": run.threads}
    student.training_record = {"job": asdict(config), "history": run.history, **about}
    return TrainResult(student, run.history, {})


def _train(
    archive: FeatureArchive,
    config: TrainConfig,
    device: torch.device,
    rows: Mapping[str, NDArray[np.int64]],
    out: Path | None,
    job: dict[str, Any],
    on_epoch: OnEpoch | None,
) -> TrainResult:
    file = None if out is None else out / CHECKPOINT
    checkpoint = Checkpoint(file, job, describe_device(device), config.checkpoint_seconds)
    run = TrainingRun(archive, config, device, rows["train"], rows["val"], checkpoint, on_epoch=on_epoch)
    with stop_on_interrupt(enabled=out is not None) as interrupted:
        run.train(interrupted)
    student = run.best_student()
    metrics = _metrics(student, archive, rows["val"], device)
    student.training_record = {
        "job": job,
        "history": run.history,
        "metrics": {name: m.to_dict() for name, m in metrics.items()},
        "intervals": {name: _intervals(m, archive, name) for name, m in metrics.items()},
        "archive": archive.path.name,
        "data": describe_splits(archive),
        "slides": slides_by_split(archive),
        "teachers": archive.records,
        **circumstances(device),
        "threads": run.threads,
    }
    if out is not None:
        write_records(out, run.history, metrics)
        student.save(out)
        remove_leftovers(out, FILES)
    return TrainResult(student, run.history, metrics)


def circumstances(device: torch.device) -> dict[str, Any]:
    """Where and with what a student was trained, for its record."""
    versions = {"shazam_fast": __version__, "torch": str(torch.__version__), "numpy": np.__version__}
    return {"device": describe_device(device), "versions": versions}


def checked_rows(archive: FeatureArchive, config: TrainConfig) -> dict[str, NDArray[np.int64]]:
    """Rows of "train" and "val", checked for what training needs of them.

    Raises MismatchError, as `train`.
    """
    require_whole_groups(archive.splits, archive.group_index, archive.groups)
    rows = {name: labelled_rows(archive, name) for name in ("train", "val")}
    if absent := sorted(set(range(len(archive.classes))) - set(archive.labels[rows["train"]].tolist())):
        names = name_some([repr(archive.classes[c]) for c in absent], CLASSES_NAMED)
        raise MismatchError(
            f"{archive.path}: no training patch has class {names}; put slides of it into 'train', or "
            "leave the class out with classes="
        )
    if config.batch_size > len(rows["train"]):
        raise MismatchError(
            f"{archive.path}: batch_size {config.batch_size} is larger than the training split, "
            f"{counted(len(rows['train']), 'patch')}; give a smaller batch_size (--batch-size)"
        )
    try:
        config.student(archive.teachers, archive.classes)
    except MismatchError as error:
        raise MismatchError(f"{archive.path}: {error}") from None
    return rows


def _metrics(
    student: Student, archive: FeatureArchive, val: NDArray[np.int64], device: torch.device
) -> dict[str, Metrics]:
    metrics = {"val": measure(student, archive, val, device)}
    test = archive.split("test")
    if len(test) and (archive.labels[test] >= 0).all():
        metrics["test"] = measure(student, archive, test, device)
    elif len(test):
        logger.warning("%s: the test split has patches without a label, so it was not evaluated", archive.path)
    return metrics


def _intervals(metrics: Metrics, archive: FeatureArchive, split: str) -> dict[str, Any]:
    """95% intervals [low, high] of metrics of a split, and the number of groups that they were drawn from."""
    groups = bootstrap_groups(archive, archive.split(split))
    limits = {name: [i.low, i.high] for name, i in metric_intervals(metrics, groups).items()}
    return {"groups": len(np.unique(groups)), **limits}
