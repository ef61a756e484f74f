"""The training loop: a state that can be saved after any step and continued bit for bit."""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..archive.archive import FeatureArchive
from ..errors import NonFiniteError
from ..ops import dispatch as ops
from ..runtime.devices import choose_device
from ..runtime.progress import Progress
from ..scoring.engine import predict
from ..scoring.metrics import confusion_matrix, selection_metrics, selection_score
from ..student.output import StudentOutput
from ..student.student import Student
from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainConfig
from .feed import TrainingFeed, feature_statistics, resident_features
from .step import TrainingStep

logger = logging.getLogger("shazam_fast")


VALIDATION_ROWS = 16384  # at a time, of features that are on the GPU


class TrainingRun:
    """A training at some step of some epoch.

    All randomness of an epoch derives from (seed, epoch), so the parameters, the optimizer's moments and the losses of
    the current epoch are the whole state.
    """

    def __init__(
        self,
        archive: FeatureArchive,
        config: TrainConfig,
        train_rows: NDArray[np.int64],
        val_rows: NDArray[np.int64],
        checkpoint: Path | None,
    ) -> None:
        self._archive, self._config, self._val_rows, self._checkpoint = archive, config, val_rows, checkpoint
        self._job = config.job(archive.fingerprint)
        device = choose_device(config.device)
        self._student = _new_student(archive, config).to(device)
        trained = [p for p in self._student.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trained, lr=config.lr, weight_decay=config.weight_decay, fused=True, capturable=device.type == "cuda"
        )
        self._patches = len(train_rows)
        self._steps = math.ceil(self._patches / config.batch_size)
        self._terms = _term_names(list(archive.teachers))
        self._losses = torch.zeros(self._steps, len(self._terms), device=device)
        self._epoch = self._step = 0
        self._best: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)
        else:
            mean, scale = feature_statistics(archive, train_rows)
            if config.standardize:
                self._student.feature_mean.copy_(mean)
                self._student.feature_scale.copy_(scale)
        feed = TrainingFeed(archive, train_rows, device, config.batch_size)
        self._training_step = TrainingStep(self._student, self._optimizer, config.objective(), feed, self._losses)
        self._val_features = resident_features(archive, val_rows, device)
        self._saved = time.monotonic()

    def train(self, interrupted: Callable[[], bool]) -> None:
        """Train to the last epoch, or until the validation score has not improved for `patience` epochs.

        Once `interrupted()` is true the state is saved after the step at hand and KeyboardInterrupt raised.
        """
        seen = self._epoch * self._patches + self._step * self._config.batch_size
        total = self._config.epochs * self._patches
        with (
            ops.use(self._config.backend, self._config.precision),
            Progress("training", total, "patches", done=seen) as progress,
        ):
            while not self._finished():
                self._train_epoch(interrupted, progress)

    def best_student(self) -> Student:
        """The student of the epoch with the best validation score, on the CPU, in evaluation mode."""
        self._student.load_state_dict(self._best)
        return self._student.cpu().eval()

    def _finished(self) -> bool:
        stale = len(self.history) - 1 - self._best_epoch() if self.history else 0
        return self._epoch >= self._config.epochs or stale >= self._config.patience

    def _best_epoch(self) -> int:
        scores = [record["val_score"] for record in self.history]
        return scores.index(max(scores))

    def _train_epoch(self, interrupted: Callable[[], bool], progress: Progress) -> None:
        started = time.monotonic()
        note = self._note()
        self._student.train()
        self._training_step.begin(self._random(0).permutation(self._patches), self._kept_teachers(), self._step)
        while self._step < self._steps:
            size = min(self._config.batch_size, self._patches - self._step * self._config.batch_size)
            self._training_step.run(size)
            self._step += 1
            progress.advance(size, note)
            if interrupted():
                self._save()
                logger.warning("stopped in epoch %d; the same call continues from there", self._epoch + 1)
                raise KeyboardInterrupt
            if time.monotonic() - self._saved >= self._config.checkpoint_seconds:
                self._save()
        self._finish_epoch(started)

    def _kept_teachers(self) -> NDArray[np.bool_] | None:
        """Teacher dropout of an epoch: bool [patches, N] of the teachers left, at least one a patch."""
        p, N = self._config.teacher_dropout, len(self._archive.teachers)
        if p == 0.0:
            return None
        draw = self._random(1).random((self._patches, N))
        present = draw >= p
        present[np.arange(self._patches), draw.argmax(axis=1)] = True
        return present

    def _random(self, purpose: int) -> np.random.Generator:
        """Of this epoch; on the host, so that every device gets the same batches."""
        return np.random.default_rng([self._config.seed, purpose, self._epoch])

    def _finish_epoch(self, started: float) -> None:
        self._require_finite_losses()
        record = {"epoch": self._epoch, **self._mean_losses(), **self._validate()}
        self.history.append({**record, "seconds": time.monotonic() - started})
        if self._best_epoch() == self._epoch:
            self._best = {name: tensor.clone() for name, tensor in self._student.state_dict().items()}
        self._epoch += 1
        self._step = 0

    def _mean_losses(self) -> dict[str, Any]:
        """Losses of the epoch averaged over its patches."""
        last = self._patches - (self._steps - 1) * self._config.batch_size
        weight = np.full(self._steps, self._config.batch_size, dtype=np.float64)
        weight[-1] = last
        means = np.average(self._losses.cpu().double().numpy(), axis=0, weights=weight).tolist()
        teachers = list(self._archive.teachers)
        return {
            "loss": means[0],
            "cross_entropy": means[1],
            "cosine": dict(zip(teachers, means[2 : 2 + len(teachers)], strict=True)),
            "huber": dict(zip(teachers, means[2 + len(teachers) :], strict=True)),
        }

    def _validate(self) -> dict[str, Any]:
        """Selection score and mean teacher shares on the validation split."""
        self._student.eval()
        predictions, all_shares = [], []
        for output in self._validation_output():
            predictions.append(output.logits.argmax(dim=1))
            if output.shares is not None:
                all_shares.append(output.shares)
        labels = self._archive.labels[self._val_rows]
        prediction = torch.cat(predictions).cpu().numpy()
        confusion = confusion_matrix(labels, prediction, len(self._archive.classes))
        balanced_accuracy, weighted_f1 = selection_metrics(confusion)
        return {
            "val_score": selection_score(balanced_accuracy, weighted_f1),
            "val_balanced_accuracy": balanced_accuracy,
            "val_weighted_f1": weighted_f1,
            **(_describe_shares(torch.cat(all_shares), list(self._archive.teachers)) if all_shares else {}),
        }

    @torch.no_grad()
    def _validation_output(self) -> Iterator[StudentOutput]:
        """What the student gives for the validation split, batch by batch."""
        if self._val_features is None:
            yield from predict(self._student, self._archive, self._val_rows)
            return
        for features in self._val_features.split(VALIDATION_ROWS):
            yield self._student(features)

    def _require_finite_losses(self) -> None:
        finite = torch.isfinite(self._losses[: max(self._step, 1)]).cpu().numpy()
        if not finite.all():
            step, term = np.argwhere(~finite)[0]
            parts = np.flatnonzero(~finite[step, 1:]) + 1  # the total is not finite because a part is not
            name = self._terms[parts[0] if parts.size else term]
            raise NonFiniteError(
                f"epoch {self._epoch}, step {step}: {name} is not finite; "
                "lower lr, or check the features with FeatureArchive.verify()"
            )

    def _note(self) -> str:
        best = f", best val score {self.history[self._best_epoch()]['val_score']:.3f}" if self.history else ""
        return f"epoch {self._epoch + 1}/{self._config.epochs}{best}"

    def _save(self) -> None:
        if self._checkpoint is None:
            return
        self._require_finite_losses()
        state = {"job": self._job, "epoch": self._epoch, "step": self._step, "history": self.history}
        tensors = {"student": self._student.state_dict(), "best": self._best, "run": {"losses": self._losses}}
        save_checkpoint(self._checkpoint, state, tensors, self._optimizer)
        self._saved = time.monotonic()

    def _resume(self, checkpoint: Path) -> None:
        state, tensors = load_checkpoint(checkpoint, self._job, self._optimizer)
        self._student.load_state_dict(tensors["student"])
        self._losses.copy_(tensors["run"]["losses"])
        self._best = {name: t.to(self._losses.device) for name, t in tensors.get("best", {}).items()}
        self._epoch, self._step, self.history = state["epoch"], state["step"], state["history"]
        logger.info("%s: continued from epoch %d, step %d", checkpoint, self._epoch, self._step)


@contextmanager
def stop_on_interrupt(enabled: bool) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request that the training answers; the second acts at once."""
    requests: list[int] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(requests)
    finally:
        signal.signal(signal.SIGINT, before)


def _new_student(archive: FeatureArchive, config: TrainConfig) -> Student:
    generator = torch.Generator().manual_seed(config.seed)
    student = Student(config.student(archive.teachers, archive.classes), generator)
    if config.targets == "frozen":
        student.freeze_targets(generator)
    return student


def _term_names(teachers: list[str]) -> list[str]:
    losses = [f"the {kind} loss of teacher {name!r}" for kind in ("cosine", "Huber") for name in teachers]
    return ["the total loss", "the cross-entropy", *losses]


def _describe_shares(shares: Tensor, teachers: list[str]) -> dict[str, Any]:
    """Mean share per teacher and mean entropy (nats) of shares [n, N]."""
    entropy = torch.special.entr(shares).sum(dim=1).mean()
    means = shares.mean(dim=0).tolist()
    return {"teacher_shares": dict(zip(teachers, means, strict=True)), "share_entropy": float(entropy)}
