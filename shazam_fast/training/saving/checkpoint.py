"""The state of a training, and its checkpoint, from which an interrupted training resumes to the same bits."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ArchiveError, MismatchError, NonFiniteError, ShazamError
from ...runtime.documents import Count, Json, Record, Text, decode_document
from ...runtime.files import UNFINISHED
from ...runtime.jobs.foreign import require_same_job
from ...runtime.jobs.locks import LOCK, DirectoryLock
from ...runtime.tensors import read_tensors, write_tensors

logger = logging.getLogger("shazam_fast")

CHECKPOINT = "checkpoint.safetensors"

Network = TypeVar("Network", bound=nn.Module)


@dataclass
class TrainingState(Generic[Network]):
    """A training after some step of some epoch.

    Attributes:
        student: the student, or another network, at that step.
        optimizer: its optimizer, with the moments.
        losses: of the current epoch, [steps, terms].
        terms: names of the losses' columns, for messages.
        remedy: what a user can do about a loss that is NaN or infinite.
        selection: which epoch is kept: "best", of the highest "val_score" in the history, or "last".
        best: the student's tensors after the epoch that is kept so far, on the CPU; empty before the first.
        threads: of the CPU, on which the last bits depend; 0 where it is not recorded.
        epoch, step: how many are done, of the training and of the current epoch.
        history: one record per finished epoch.
    """

    student: Network
    optimizer: torch.optim.Optimizer
    losses: Tensor
    terms: Sequence[str]
    remedy: str
    selection: str = "best"
    threads: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The first finished epoch of the highest "val_score"; the last one where nothing is validated."""
        scores = [record["val_score"] for record in self.history if "val_score" in record]
        return scores.index(max(scores)) if scores else len(self.history) - 1

    @property
    def kept_epoch(self) -> int:
        """The finished epoch whose student is kept so far."""
        return self.best_epoch if self.selection == "best" else len(self.history) - 1

    def is_finished(self, epochs: int, patience: int) -> bool:
        """Whether `epochs` are done, or the last `patience` were no better than the one that is kept."""
        stale = len(self.history) - 1 - self.kept_epoch if self.history else 0
        return self.epoch >= epochs or stale >= patience

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Add the record of an epoch whose steps are all done, and keep its student if it is the one to keep."""
        self.history.append(record)
        if self.kept_epoch == self.epoch:
            self.best = {name: tensor.to("cpu", copy=True) for name, tensor in self.student.state_dict().items()}
        self.epoch, self.step = self.epoch + 1, 0

    def kept_student(self) -> Network:
        """The student with the tensors of the epoch that is kept, on its device, in evaluation mode."""
        self.student.load_state_dict(self.best)
        return self.student.eval()

    def mean_losses(self, n_rows: int, batch_size: int) -> list[float]:
        """Losses of an epoch whose steps are all done, [terms], averaged over its rows."""
        sizes = np.minimum(batch_size, n_rows - batch_size * np.arange(len(self.losses)))
        means: list[float] = np.average(self.losses.cpu().double().numpy(), axis=0, weights=sizes).tolist()
        return means

    def require_finite_losses(self) -> None:
        """Raise NonFiniteError, naming step and loss, when a loss of the current epoch is NaN or infinite."""
        finite = torch.isfinite(self.losses[: self.step]).cpu().numpy()
        if finite.all():
            return
        step, term = np.argwhere(~finite)[0]
        parts = np.flatnonzero(~finite[step, 1:]) + 1  # the total, first, is not finite because a part is not
        name = self.terms[parts[0] if parts.size else term]
        raise NonFiniteError(f"epoch {self.epoch}, step {step}: {name} is not finite; {self.remedy}")


class _Note(Record, frozen=True, kw_only=True):
    """What a checkpoint says beside its tensors."""

    job: dict[str, Json]
    epoch: Count
    step: Count
    history: list[dict[str, Json]]
    device: Text = ""
    threads: Count = 0


class Checkpoint:
    """The checkpoint of one training.

    Args:
        path: its file; None keeps none.
        job: what makes two trainings the same.
        device: "cpu" or the model of the GPU; a checkpoint of another device is refused, as results would differ.
        seconds: from one checkpoint to the next that `after_step` saves.
    """

    def __init__(self, path: Path | None, job: Mapping[str, Any], device: str, seconds: float) -> None:
        self._path, self._job, self._device, self._seconds = path, job, device, seconds
        self._saved = time.monotonic()

    @property
    def kept(self) -> bool:
        """Whether there is a file to save to."""
        return self._path is not None

    def after_step(self, state: TrainingState[Any], interrupted: bool) -> None:
        """Save the state if that is due; if the training was interrupted, save it and raise KeyboardInterrupt.

        Raises also what `save` raises.
        """
        if interrupted or time.monotonic() - self._saved >= self._seconds:
            self.save(state)
        if interrupted:
            logger.warning("stopped in epoch %d; the same call continues from there", state.epoch + 1)
            raise KeyboardInterrupt

    def save(self, state: TrainingState[Any]) -> None:
        """Write a state, complete or not at all.

        Raises NonFiniteError when its losses are not finite, and ShazamError when the disk is full; the checkpoint
        before stays as it was.
        """
        if self._path is None:
            return
        state.require_finite_losses()
        note = {
            "job": self._job, "epoch": state.epoch, "step": state.step, "history": state.history,
            "device": self._device, "threads": state.threads,
        }  # fmt: skip
        groups = {
            "student": state.student.state_dict(),
            "best": state.best,
            "run": {"losses": state.losses},
            "optimizer": _moments(state.optimizer),
        }
        flat = {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
        try:
            write_tensors(self._path, flat, {"state": json.dumps(note)})
        except OSError as error:
            raise ShazamError(
                f"{self._path}: the checkpoint could not be written: {error}; free some space and run the same "
                "command again: it continues from the checkpoint before"
            ) from error
        self._saved = time.monotonic()

    def load(self, state: TrainingState[Any]) -> bool:
        """Fill a fresh `state` from the file and log where it continues; False when there is none.

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
        logger.info("continued from epoch %d, step %d", state.epoch, state.step)
        return True


NO_CHECKPOINT = Checkpoint(None, {}, "", 0.0)


def remove_leftovers(out: Path, files: Sequence[str]) -> None:
    """Remove, from the directory of a finished training, its checkpoint and what a killed process left half-written.

    Args:
        out: the directory.
        files: names of the files of the training's result.
    """
    for file in _leftovers(out, files):
        file.unlink(missing_ok=True)


def tidy_after_kill(out: Path, files: Sequence[str]) -> None:
    """Call `remove_leftovers` for a finished training that was killed before it did.

    Does nothing where the directory cannot be locked or written.
    """
    if _leftovers(out, files) or (out / LOCK).exists():
        with suppress(ShazamError), DirectoryLock(out):
            remove_leftovers(out, files)


def _leftovers(out: Path, files: Sequence[str]) -> list[Path]:
    unfinished = [file for name in (CHECKPOINT, *files) for file in out.glob(f"{name}.*{UNFINISHED}")]
    return [*unfinished, *([out / CHECKPOINT] if (out / CHECKPOINT).exists() else [])]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of every parameter; zeros for one without a gradient, such as of a pooler that is not used."""
    flat: dict[str, Tensor] = {}
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        entry = optimizer.state.get(parameter) or {"step": torch.tensor(0.0), **zeros}
        flat |= {f"{index}.{key}": value for key, value in entry.items()}
    return flat


def _fill(state: TrainingState[Any], note: _Note, flat: Mapping[str, Tensor]) -> None:
    """Raises KeyError, ValueError or RuntimeError when a tensor is missing or of another shape."""
    groups: dict[str, dict[str, Tensor]] = {"student": {}, "best": {}, "optimizer": {}, "run": {}}
    for name, tensor in flat.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = tensor
    if note.epoch != len(note.history) or note.step > len(state.losses) or bool(groups["best"]) != bool(note.epoch):
        raise ValueError(f"epoch {note.epoch}, step {note.step} with {len(note.history)} records")
    state.student.load_state_dict(groups["student"])
    _require_like({"losses": state.losses}, groups["run"])
    state.losses.copy_(groups["run"]["losses"])
    if groups["best"]:
        _require_like(state.student.state_dict(), groups["best"])
        state.best = groups["best"]
    _fill_optimizer(state.optimizer, groups["optimizer"])
    state.threads = note.threads or state.threads
    state.epoch, state.step, state.history = note.epoch, note.step, list(note.history)


def _require_like(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless names and shapes agree."""
    if {n: t.shape for n, t in wanted.items()} != {n: t.shape for n, t in found.items()}:
        raise ValueError(f"tensors {sorted(wanted)} of certain shapes expected, found {sorted(found)}")


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
