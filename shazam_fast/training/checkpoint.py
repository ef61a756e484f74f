"""The state of a training on disk, from which an interrupted run resumes to the same bits."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ArchiveError, MismatchError, ShazamError
from ..runtime.documents import Count, Json, Record, Text, decode_document
from ..runtime.files import UNFINISHED
from ..runtime.jobs import require_same_job
from ..runtime.locks import LOCK, DirectoryLock
from ..runtime.tensors import read_tensors, write_tensors
from ..student.files import CARD, TENSORS

CHECKPOINT = "checkpoint.safetensors"

Network = TypeVar("Network", bound=nn.Module)


@dataclass
class TrainingState(Generic[Network]):
    """A training after some step of some epoch.

    Attributes:
        student: the student, or another network, at that step.
        optimizer: its optimizer, with the moments.
        losses: of the current epoch, [steps, terms].
        best: the student's tensors after the epoch that is kept so far; empty before the first.
        epoch, step: how many are done, of the training and of the current epoch.
        history: one record per finished epoch.
    """

    student: Network
    optimizer: torch.optim.Optimizer
    losses: Tensor
    best: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class _Note(Record, frozen=True, kw_only=True):
    """What a checkpoint says beside its tensors."""

    job: dict[str, Json]
    epoch: Count
    step: Count
    history: list[dict[str, Json]]
    device: Text = ""


class Checkpoint:
    """The checkpoint of one training.

    Args:
        path: its file; None keeps none.
        job: what makes two trainings the same.
        device: "cpu" or the model of the GPU; a checkpoint of another device is refused, as results would differ.
    """

    def __init__(self, path: Path | None, job: Mapping[str, Any], device: str) -> None:
        self._path, self._job, self._device = path, job, device

    @property
    def kept(self) -> bool:
        """Whether there is a file to save to."""
        return self._path is not None

    def save(self, state: TrainingState[Any]) -> None:
        """Write a state, complete or not at all.

        Raises ShazamError when the disk is full; the checkpoint before stays as it was.
        """
        if self._path is None:
            return
        note = {"job": self._job, "epoch": state.epoch, "step": state.step, "history": state.history}
        groups = {
            "student": state.student.state_dict(),
            "best": state.best,
            "run": {"losses": state.losses},
            "optimizer": _moments(state.optimizer),
        }
        flat = {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
        try:
            write_tensors(self._path, flat, {"state": json.dumps({**note, "device": self._device})})
        except OSError as error:
            raise ShazamError(
                f"{self._path}: the checkpoint could not be written: {error}; free some space and run the same "
                "command again: it continues from the checkpoint before"
            ) from error

    def load(self, state: TrainingState[Any]) -> bool:
        """Fill a fresh `state` from the file; False when there is none.

        Raises ArchiveError when the file is corrupt or another file, MismatchError when it belongs to another job.
        """
        if self._path is None or not self._path.exists():
            return False
        flat, metadata = read_tensors(self._path)
        if "state" not in metadata:
            raise ArchiveError(f"{self._path}: not a checkpoint of a training; choose another --out", "foreign")
        note = decode_document(metadata["state"].encode(), _Note, self._path)
        require_same_job(self._path.parent, note.job, self._job)
        if note.device != self._device:
            raise MismatchError(
                f"{self._path.parent}: this training was begun on {note.device}, now on {self._device}; continue it "
                "with the same device=, or choose another out"
            )
        try:
            _fill(state, note, flat)
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            raise ArchiveError(f"{self._path}: corrupt: {error}; delete it to train from the beginning") from None
        return True


def remove_leftovers(out: Path) -> None:
    """Remove, from the directory of a finished training, its checkpoint and what a killed process left half-written."""
    for file in _leftovers(out):
        file.unlink(missing_ok=True)


def tidy_after_kill(out: Path) -> None:
    """Call `remove_leftovers` for a finished training that was killed before it did.

    Does nothing where the directory cannot be locked or written.
    """
    if _leftovers(out) or (out / LOCK).exists():
        with suppress(ShazamError), DirectoryLock(out):
            remove_leftovers(out)


def _leftovers(out: Path) -> list[Path]:
    unfinished = [file for name in (CHECKPOINT, TENSORS, CARD) for file in out.glob(f"{name}.*{UNFINISHED}")]
    return [*unfinished, *([out / CHECKPOINT] if (out / CHECKPOINT).exists() else [])]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def _fill(state: TrainingState[Any], note: _Note, flat: Mapping[str, Tensor]) -> None:
    """Raises KeyError, ValueError or RuntimeError when a tensor is missing or of another shape."""
    groups: dict[str, dict[str, Tensor]] = {"student": {}, "best": {}, "optimizer": {}, "run": {}}
    for name, tensor in flat.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = tensor
    if note.epoch != len(note.history) or note.step > len(state.losses) or bool(groups["best"]) != bool(note.epoch):
        raise ValueError(f"epoch {note.epoch}, step {note.step} with {len(note.history)} records")
    state.student.load_state_dict(groups["student"])
    state.losses.copy_(_like({"losses": state.losses}, groups["run"])["losses"])
    if groups["best"]:
        state.best = _like(state.student.state_dict(), groups["best"])
    _fill_optimizer(state.optimizer, groups["optimizer"])
    state.epoch, state.step, state.history = note.epoch, note.step, list(note.history)


def _like(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors found, on the device of those wanted. Raises ValueError unless names and shapes agree."""
    if {n: t.shape for n, t in wanted.items()} != {n: t.shape for n, t in found.items()}:
        raise ValueError(f"tensors {sorted(wanted)} of certain shapes expected, found {sorted(found)}")
    return {name: found[name].to(tensor.device) for name, tensor in wanted.items()}


def _fill_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        index, _, key = name.partition(".")
        if tensor.ndim and tensor.shape != parameters[int(index)].shape:
            raise ValueError(f"moment {name} has shape {list(tensor.shape)}")
        moments.setdefault(int(index), {})[key] = tensor
    if moments and {index: set(entry) for index, entry in moments.items()} != {
        index: {"step", "exp_avg", "exp_avg_sq"} for index in range(len(parameters))
    }:
        raise ValueError("the optimizer's moments are incomplete")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
