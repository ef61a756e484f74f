"""Fine-tuning a teacher: one call from images to a model with its history and metrics."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import MismatchError, ShazamError
from ...images.sources import labelled_images
from ...images.table import ImageTable, require_groups
from ...runtime.checks import require_path
from ...runtime.devices import choose_device, describe_device
from ...runtime.jobs.foreign import require_place_for
from ...runtime.jobs.locks import DirectoryLock, require_writable
from ...runtime.summaries import counted
from ...scoring.metrics import Metrics, compute_metrics
from ...teachers.models import load_teacher
from ...teachers.spec import TeacherSpec
from ...training.loop import stop_on_interrupt
from ...training.saving.checkpoint import CHECKPOINT, NO_CHECKPOINT, Checkpoint
from ...training.saving.records import OnEpoch
from ..fold import Fold
from .config import FinetuneConfig
from .files import describe_job, is_finished, read_finetuned, write_finetuned
from .loop import FinetuningRun
from .model import FinetunedTeacher

logger = logging.getLogger("shazam_fast")


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned teacher.

    Args:
        model: with the weights of its best epoch, on the CPU, in evaluation mode.
        history: one record per epoch: `epoch`, `loss`, `val_loss` (cross-entropy), `val_calibration_error`,
            `val_score` (which chooses the best epoch) with its parts `val_balanced_accuracy` and `val_weighted_f1`,
            and `seconds`.
        metrics: on "val" and, where there is a test split, on "test".
    """

    model: FinetunedTeacher
    history: list[dict[str, Any]]
    metrics: dict[str, Metrics]


# Over 40 lines: every option is documented here.
def finetune(
    images: ImageTable | str | Path,
    teacher: str | TeacherSpec,
    config: FinetuneConfig | None = None,
    *,
    out: str | Path | None = None,
    weights: str | Path = "hub",
    token: str | None = None,
    transform: str = "own",
    on_epoch: OnEpoch | None = None,
    **overrides: Any,
) -> FinetuneResult:
    """Fine-tune a teacher and a new head on the "train" split of `images`, and choose the best epoch on "val".

    Args:
        images: labelled images [n] with splits: an ImageTable, a CSV of paths, labels and splits, or a folder with
            train, val and test, and a folder per class in each.
        teacher: a name (`list_teachers` has all), or a spec of any timm or transformers model or callable.
        config: a complete configuration; or give single fields of `FinetuneConfig` by name.
        out: directory for the fine-tuned teacher and its checkpoint. If it holds an interrupted run, that resumes (on
            the CPU to the same bits); if a finished one, that is loaded. Its file teacher.safetensors can be given as
            weights to `extract`.
        weights, token, transform: see `load_teacher`.
        on_epoch: called with the record of every epoch once it is done, as `FinetuneResult.history` has it. An
            exception that it raises ends the fine-tuning; with `out`, that epoch is kept.
        overrides: fields of `FinetuneConfig` by name.

    A bar shows the progress in terminals and notebooks, and the logger `shazam_fast` gets device, threads and splits
    and a line per epoch elsewhere, as `train` says it. `out` also gets history.csv and metrics.json.

    Returns:
        The model of the best epoch, its history and its metrics.

    Raises:
        MismatchError: an empty split, an image without a label, a class that no training image has, a group in two
            splits, patches of slides; `out` holds another fine-tuning.
        NonFiniteError: a loss that is NaN or infinite (names the epoch).
        ImageError: an image that cannot be read (names file and row).
        ShazamError, ArchiveError: an option out of range or unknown; `out` cannot be written, is in use or damaged; see
            also `load_teacher`.
        KeyboardInterrupt: Ctrl-C, with `out` after the checkpoint was saved.

    >>> import tempfile
    >>> from PIL import Image
    >>> create = lambda: torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 4))
    >>> teacher = TeacherSpec("tiny", dim=4, library="torch", pooling="model", arguments={"create": create})
    >>> splits = np.array([0, 0, 0, 0, 1, 1, 2, 2], dtype=np.uint8)  # train, val, test
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = tuple(Path(folder) / f"{i}.png" for i in range(8))
    ...     for i, path in enumerate(paths):
    ...         Image.new("RGB", (8, 8), ("white", "black")[i % 2]).save(path)
    ...     images = ImageTable(paths, np.arange(8) % 2, ("light", "dark"), splits)
    ...     result = finetune(images, teacher, epochs=2, device="cpu", workers=1)
    >>> sorted(result.metrics)
    ['test', 'val']
    """
    config = _resolve(config, overrides)
    table = images if isinstance(images, ImageTable) else labelled_images(images)
    rows = _checked_rows(table)
    device = choose_device(config.device)
    folder = None if out is None else require_path("out", out)
    if folder is not None and not is_finished(folder):
        require_place_for(folder, "finetuned")
        require_writable(folder)
    model = _new_model(table, teacher, config, weights=weights, token=token, transform=transform)
    job = {} if folder is None else describe_job(table, rows, model, config)
    if folder is None:
        return _finetune(model, table, rows, config, device, on_epoch, None, job)
    if is_finished(folder):
        return _finished(folder, model, job)
    with DirectoryLock(folder):
        if is_finished(folder):  # by another process, by now
            return _finished(folder, model, job)
        return _finetune(model, table, rows, config, device, on_epoch, folder, job)


def finetune_fold(
    fold: Fold,
    images: ImageTable,
    teacher: str | TeacherSpec,
    *,
    weights: str | Path = "hub",
    token: str | None = None,
    transform: str = "own",
    **overrides: Any,
) -> dict[str, NDArray[np.float64]]:
    """Fine-tune a teacher on the images behind an archive, split as a fold is: a method of a comparison.

    Args:
        fold: a split of the archive; its seed is that of the fine-tuning.
        images: the images that the archive's features were extracted from, one per row, in the order of rows.
        teacher, weights, token, transform: as for `finetune`.
        overrides: fields of `FinetuneConfig` by name.

    Returns "val" and "test" -> probabilities, float64 [n, C], in the order of the fold's rows.

    Raises MismatchError when images and archive differ in number, classes or labels; and what `finetune` raises.
    """
    archive = fold.archive
    table = replace(images, splits=archive.splits)
    if images.classes != archive.classes or not np.array_equal(images.labels, archive.labels):
        raise MismatchError(
            f"{archive.path}: images with the archive's classes and labels expected, row by row; give the images that "
            "its features were extracted from"
        )
    config = _resolve(None, {"seed": fold.seed, **overrides})
    rows = _checked_rows(table)
    model = _new_model(table, teacher, config, weights=weights, token=token, transform=transform)
    run = _run(model, table, rows, config, choose_device(config.device), NO_CHECKPOINT)
    return {name: run.predict(rows[name]).astype(np.float64) for name in ("val", "test")}


def _finetune(
    model: FinetunedTeacher,
    images: ImageTable,
    rows: Mapping[str, NDArray[np.int64]],
    config: FinetuneConfig,
    device: torch.device,
    on_epoch: OnEpoch | None,
    out: Path | None,
    job: dict[str, Any],
) -> FinetuneResult:
    file = None if out is None else out / CHECKPOINT
    checkpoint = Checkpoint(file, job, describe_device(device), config.checkpoint_seconds)
    run = _run(model, images, rows, config, device, checkpoint, on_epoch)
    metrics = {
        name: compute_metrics(run.predict(rows[name]), images.labels[rows[name]], images.classes)
        for name in ("val", "test")
        if len(rows[name])
    }
    model = model.cpu()
    if out is not None:
        write_finetuned(out, model, job, run.history, metrics)
    return FinetuneResult(model, run.history, metrics)


def _run(
    model: FinetunedTeacher,
    images: ImageTable,
    rows: Mapping[str, NDArray[np.int64]],
    config: FinetuneConfig,
    device: torch.device,
    checkpoint: Checkpoint,
    on_epoch: OnEpoch | None = None,
) -> FinetuningRun:
    """Train to the end and leave the model at its best epoch. The caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        run = FinetuningRun(model.to(device), images, rows, config, checkpoint, on_epoch)
        with stop_on_interrupt(enabled=checkpoint.kept) as interrupted:
            run.train(interrupted)
    run.best_model()
    return run


def _finished(out: Path, model: FinetunedTeacher, job: dict[str, Any]) -> FinetuneResult:
    history, metrics = read_finetuned(out, model, job)
    logger.info("%s: already fine-tuned, loaded", out)
    return FinetuneResult(model.eval(), history, metrics)


def _new_model(
    images: ImageTable, teacher: str | TeacherSpec, config: FinetuneConfig, **loading: Any
) -> FinetunedTeacher:
    """The teacher with a fresh head, on the CPU."""
    built = load_teacher(teacher, **loading)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return FinetunedTeacher(built, images.classes)


def _resolve(config: FinetuneConfig | None, overrides: dict[str, Any]) -> FinetuneConfig:
    known = [field.name for field in fields(FinetuneConfig)]
    if unknown := sorted(set(overrides) - set(known)):
        raise ShazamError(f"finetune() has no option {', '.join(unknown)}; options are {', '.join(known)}")
    if config is not None and not isinstance(config, FinetuneConfig):
        raise ShazamError(f"config: a FinetuneConfig expected, found {config!r}; write finetune(..., epochs=1)")
    return replace(config or FinetuneConfig(), **overrides)


def _checked_rows(images: ImageTable) -> dict[str, NDArray[np.int64]]:
    """Rows of every split, checked for what fine-tuning needs of them."""
    if images.sides is not None:
        raise MismatchError("fine-tuning reads image files; write the slides' patches out as images first")
    if images.groups:
        require_groups(images.splits, images.groups)
    return {name: _labelled_rows(images, name) for name in ("train", "val", "test")}


def _labelled_rows(images: ImageTable, name: str) -> NDArray[np.int64]:
    rows = images.split(name)
    labels = images.labels[rows]
    if len(rows) == 0 and name != "test":
        raise MismatchError(f"split {name!r} is empty; fine-tuning needs images in 'train' and in 'val'")
    if (labels < 0).any():
        first = images.paths[rows[labels < 0][0]]
        raise MismatchError(
            f"split {name!r}: {counted(int((labels < 0).sum()), 'image')} without a label, the first: {first}"
        )
    absent = set(range(len(images.classes))) - set(labels.tolist())
    if name == "train" and absent:
        raise MismatchError(f"no training image has class {', '.join(images.classes[c] for c in sorted(absent))}")
    return rows
