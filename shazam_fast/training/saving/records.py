"""What a training says while it runs, and the tables that it leaves beside the student."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...runtime.devices import describe_device
from ...runtime.files import write_durably
from ...runtime.progress import Progress
from ...runtime.summaries import counted
from ...scoring.metrics import Metrics

HISTORY, METRICS = "history.csv", "metrics.json"
OnEpoch = Callable[[dict[str, Any]], object]  # what is called with the record of every finished epoch
SHOWN = {  # field of a record -> its name in the line of an epoch, and how its number is written
    "loss": ("loss", ".4f"),
    "val_loss": ("val loss", ".4f"),
    "val_balanced_accuracy": ("val balanced accuracy", ".3f"),
    "val_calibration_error": ("val calibration error", ".3f"),
    "lr": ("lr", ".1e"),
    "seconds": ("seconds", ".1f"),
}


def describe_start(
    splits: Mapping[str, Mapping[str, int | None]],
    device: torch.device,
    threads: int,
    batch_size: int,
    work: str = "training",
) -> str:
    """Where a training runs and on what: device, threads, the patients, slides and patches or images of each split,
    and how many of these make a batch.

    Args:
        splits: split -> how many of each there are; None where that is not known.
        device: where the network computes.
        threads: of the CPU.
        batch_size: patches or images per step.
        work: what the training is called.

    >>> splits = {"train": {"images": 30, "slides": None, "groups": 1}}
    >>> describe_start(splits, torch.device("cpu"), 2, 8, "fine-tuning")
    'fine-tuning on cpu, 2 threads; train 1 patient, 30 images; 8 per batch'
    """
    place = f"cpu, {counted(threads, 'thread')}" if device.type == "cpu" else f"{device} ({describe_device(device)})"
    words = {"groups": "patient", "slides": "slide", "patches": "patch", "images": "image"}
    named = [
        f"{name} {', '.join(counted(n, word) for what, word in words.items() if (n := found.get(what)) is not None)}"
        for name, found in splits.items()
        if name != "none"
    ]
    return f"{work} on {place}; {'; '.join(named)}; {batch_size:,} per batch"


def describe_epoch(record: Mapping[str, Any], epochs: int) -> str:
    """The line of a finished epoch.

    >>> describe_epoch({"epoch": 2, "loss": 0.51234, "lr": 1e-3, "seconds": 2.26}, 40)
    'epoch 3/40: loss 0.5123, lr 1.0e-03, seconds 2.3'
    """
    numbers = [f"{name} {record[key]:{form}}" for key, (name, form) in SHOWN.items() if key in record]
    return f"epoch {record['epoch'] + 1}/{epochs}: {', '.join(numbers)}"


def tell_epoch(record: Mapping[str, Any], epochs: int, progress: Progress, on_epoch: OnEpoch | None) -> None:
    """Say the line of a finished epoch, and hand a copy of its record to `on_epoch`.

    Args:
        record: of the epoch.
        epochs: of the whole training.
        progress: of the training.
        on_epoch: what the caller of the training gave.
    """
    progress.tell(describe_epoch(record, epochs))
    if on_epoch is not None:
        on_epoch(dict(record))


def write_records(out: Path, history: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metrics]) -> None:
    """Write history.csv, one row per epoch, and metrics.json, {split: metrics}.

    Raises OSError when the disk is full.
    """
    rows = [_flat(record) for record in history]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_durably(out / HISTORY, text.getvalue().encode())
    content = {split: found.to_dict() for split, found in metrics.items()}
    write_durably(out / METRICS, json.dumps(content, indent=1).encode())


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without nesting: the cosine loss of teacher uni is in column cosine_uni."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}_{key}": number for key, number in value.items()}
        else:
            flat[name] = value
    return flat
