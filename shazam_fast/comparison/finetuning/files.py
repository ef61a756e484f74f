"""A fine-tuned teacher on disk, and what makes two fine-tunings the same.

`finetuned.json` holds the history, the metrics and the job; `head.safetensors` the head; `teacher.safetensors` the
teacher under the names of its library, so that it can be given as weights to `shazam_fast.extract`. For other programs
the history is in history.csv too, and the metrics in metrics.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import nn

from ...errors import ArchiveError, MismatchError, ShazamError
from ...images.table import ImageTable
from ...runtime.documents import Digest, Json, Name, Record, Text, encode_document, read_document
from ...runtime.files import file_checksum, write_durably
from ...runtime.jobs.foreign import require_same_job
from ...runtime.tensors import fill_module, read_described, write_tensors
from ...scoring.metrics import Metrics
from ...training.saving.checkpoint import remove_leftovers, tidy_after_kill
from ...training.saving.records import HISTORY, METRICS, write_records
from .config import FinetuneConfig
from .model import FinetunedTeacher

FORMAT = "shazam_fast finetuned"
CARD = "finetuned.json"
TENSORS = {"teacher": "teacher.safetensors", "head": "head.safetensors"}
FILES = (*TENSORS.values(), CARD, HISTORY, METRICS)  # that a finished fine-tuning writes


class Card(Record, frozen=True, kw_only=True):
    """`finetuned.json`."""

    format: Text
    version: int
    teacher: Text
    classes: list[Text]
    xxh3: dict[Name, Digest]  # of the files with tensors
    job: dict[str, Json]
    history: list[dict[str, Json]]
    metrics: dict[str, dict[str, Json]]


def describe_job(
    images: ImageTable, rows: Mapping[str, NDArray[np.int64]], model: FinetunedTeacher, config: FinetuneConfig
) -> dict[str, Any]:
    """What makes two fine-tunings the same.

    Args:
        images: the images.
        rows: split -> its rows, int64.
        model: the teacher as it was loaded; its head does not matter.
        config: the options.

    Returns JSON values.
    """
    digests = {name: xxhash.xxh3_128() for name in ("images", "labels", "splits")}
    for name, chosen in rows.items():
        for row in chosen.tolist():
            path = images.paths[row]
            status = path.stat()
            digests["images"].update(f"{path.name}\0{status.st_size} {status.st_mtime_ns}\0".encode(errors="replace"))
        digests["labels"].update(images.labels[chosen].tobytes())
        digests["splits"].update(f"{name} ".encode() + chosen.tobytes())
    teacher = model.teacher
    return {
        **config.job(),
        **{name: digest.hexdigest() for name, digest in digests.items()},
        "classes": list(images.classes),
        "teacher": teacher.spec.name,
        "weights": _digest(teacher),
        "transform": teacher.transform.to_dict(),
        "pooling": teacher.spec.pooling,
    }


def is_finished(out: Path) -> bool:
    """Whether a directory holds a fine-tuned teacher."""
    try:
        return (out / CARD).exists()
    except OSError:  # no permission to look
        return False


def write_finetuned(
    out: Path,
    model: FinetunedTeacher,
    job: Mapping[str, Any],
    history: list[dict[str, Any]],
    metrics: Mapping[str, Metrics],
) -> None:
    """Write a fine-tuned teacher, the card last, and remove its checkpoint.

    Args:
        out: the directory, which exists.
        model: with the weights of its best epoch.
        job: as `describe_job` gives it.
        history, metrics: of the result.

    Raises ShazamError when the disk is full; the checkpoint then stays.
    """
    parts: dict[str, nn.Module] = {"teacher": model.teacher.model, "head": model.head}
    try:
        for name, file in TENSORS.items():
            write_tensors(out / file, parts[name].state_dict(), {})
        card = Card(
            format=FORMAT,
            version=1,
            teacher=model.teacher.spec.name,
            classes=list(model.classes),
            xxh3={file: file_checksum(out / file) for file in TENSORS.values()},
            job=dict(job),
            history=history,
            metrics={name: found.to_dict() for name, found in metrics.items()},
        )
        write_records(out, history, metrics)
        write_durably(out / CARD, encode_document(card))
    except OSError as error:
        raise ShazamError(
            f"{out}: the fine-tuned teacher could not be saved: {error}; free some space and run the same command again"
        ) from error
    remove_leftovers(out, FILES)


def read_finetuned(
    out: Path, model: FinetunedTeacher, job: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Metrics]]:
    """Fill a model with what a directory holds.

    Args:
        out: the directory.
        model: the teacher that it was made from, with a head.
        job: as `describe_job` gives it.

    Returns history and metrics.

    Raises MismatchError when it is that of another job; ArchiveError when a file is missing or damaged.
    """
    card = read_document(out / CARD, Card, format=FORMAT)
    require_same_job(out, card.job, job)
    parts: dict[str, nn.Module] = {"teacher": model.teacher.model, "head": model.head}
    for name, file in TENSORS.items():
        fill_module(parts[name], read_described(out / file, card.xxh3.get(file), CARD), out / file, CARD)
    try:
        metrics = {name: Metrics.from_dict(values) for name, values in card.metrics.items()}
    except MismatchError as error:
        raise ArchiveError(f"{out / CARD}: corrupt: {error}") from None
    tidy_after_kill(out, FILES)
    return card.history, metrics


def _digest(module: nn.Module) -> str:
    """Of the names, types, shapes and values of parameters and buffers."""
    digest = xxhash.xxh3_128()
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {list(flat.shape)}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
