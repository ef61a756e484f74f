"""The training loop: a state that can be saved after any step and continued bit for bit."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..archive.inspection import describe_splits
from ..ops import dispatch as ops
from ..runtime.progress import Progress
from ..student.student import Student
from .config import TrainConfig
from .feed import TrainingFeed, feature_statistics
from .plan import plan_epoch
from .saving.checkpoint import Checkpoint, TrainingState
from .saving.records import OnEpoch, describe_start, tell_epoch
from .step import TrainingStep
from .threads import choose_threads, use_threads
from .validation import Validation


class TrainingRun:
    """A training that can be saved after any step and resumed.

    All randomness of an epoch derives from (seed, epoch), so the parameters, the optimizer's moments and the losses of
    the current epoch are the whole state.

    Args:
        archive: where the features and labels are.
        config: what decides the training.
        device: where the student computes.
        train_rows, val_rows: the labelled rows of the two splits, int64. Without `val_rows` nothing is validated, and
            the last epoch counts as the best.
        checkpoint: where the state is saved; if it holds one, the training resumes from it.
        class_weights: weight of a patch by its class, in the cross-entropy and in the validation score, float64 [C];
            None: patches count alike.
        on_epoch: called with the record of every epoch that this run finishes.
    """

    def __init__(
        self,
        archive: FeatureArchive,
        config: TrainConfig,
        device: torch.device,
        train_rows: NDArray[np.int64],
        val_rows: NDArray[np.int64] | None,
        checkpoint: Checkpoint,
        class_weights: NDArray[np.float64] | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self._on_epoch = on_epoch
        self._config, self._checkpoint, self._teachers = config, checkpoint, list(archive.teachers)
        self._heads = config.teacher_heads > 0
        self._patches = len(train_rows)
        self._steps = math.ceil(self._patches / config.batch_size)
        self._state = _new_state(archive, config, device, self._steps)
        resumed = checkpoint.load(self._state)
        feed = TrainingFeed(archive, train_rows, device, config.batch_size)
        if not resumed:
            with use_threads(self.threads):
                mean, scale = feature_statistics(archive, train_rows, feed.table)
            if config.standardize:
                self._state.student.feature_mean.copy_(mean)
                self._state.student.feature_scale.copy_(scale)
        counts = np.bincount(archive.labels[train_rows], minlength=len(archive.classes))
        objective = config.objective(torch.from_numpy(counts).to(device))
        if class_weights is not None:
            objective = replace(objective, class_weights=torch.from_numpy(class_weights).float().to(device))
        state = self._state
        self._training_step = TrainingStep(
            state.student, state.optimizer, objective, feed, state.losses, config.feature_dropout
        )
        self._validate = None if val_rows is None else Validation(archive, val_rows, device, class_weights)
        self._start = describe_start(describe_splits(archive), device, self.threads, config.batch_size)

    @property
    def threads(self) -> int:
        """Number of threads of the CPU; a resumed training keeps that of its beginning."""
        return self._state.threads

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record per finished epoch."""
        return self._state.history

    def train(self, interrupted: Callable[[], bool]) -> None:
        """Train to the last epoch, or, where the best is kept, until none was better for `patience` epochs.

        Once `interrupted()` is true the state is saved after the step at hand and KeyboardInterrupt raised.
        """
        seen = self._state.epoch * self._patches + self._state.step * self._config.batch_size
        total = self._config.epochs * self._patches
        with (
            ops.use(self._config.backend, self._config.precision),
            use_threads(self.threads),
            Progress("training", total, "patches", done=seen) as progress,
        ):
            progress.tell(self._start)
            while not self._state.is_finished(self._config.epochs, self._config.patience):
                self._train_epoch(interrupted, progress)

    def best_student(self) -> Student:
        """The student of the epoch that is kept, on the CPU, in evaluation mode."""
        return self._state.kept_student().cpu()

    def _train_epoch(self, interrupted: Callable[[], bool], progress: Progress) -> None:
        started, state = time.monotonic(), self._state
        note = self._note()
        state.student.train()
        encoders, width = state.student.config.encoders, len(state.student.feature_scale)
        plan = plan_epoch(self._config, state.epoch, self._patches, encoders, width)
        self._training_step.begin(plan, state.step)
        while state.step < self._steps:
            size = min(self._config.batch_size, self._patches - state.step * self._config.batch_size)
            self._training_step.run(size)
            state.step += 1
            progress.advance(size, note)
            self._checkpoint.after_step(state, interrupted())
        state.require_finite_losses()
        found = {} if self._validate is None else self._validate(state.student)
        rate = self._config.lr if plan.rates is None else float(plan.rates[-1])
        record = {"epoch": state.epoch, **self._mean_losses(), **found, "lr": rate}
        state.end_epoch({**record, "seconds": time.monotonic() - started})
        tell_epoch(self.history[-1], self._config.epochs, progress, self._on_epoch)

    def _mean_losses(self) -> dict[str, Any]:
        """Losses of the epoch averaged over its patches."""
        means = self._state.mean_losses(self._patches, self._config.batch_size)
        N = len(self._teachers)
        return {
            "loss": means[0],
            "cross_entropy": means[1],
            "cosine": dict(zip(self._teachers, means[2 : 2 + N], strict=True)),
            "huber": dict(zip(self._teachers, means[2 + N : 2 + 2 * N], strict=True)),
            **({"teacher_heads": dict(zip(self._teachers, means[2 + 2 * N :], strict=True))} if self._heads else {}),
        }

    def _note(self) -> str:
        validated = self.history and self._validate is not None
        best = f", best val score {self.history[self._state.best_epoch]['val_score']:.3f}" if validated else ""
        return f"epoch {self._state.epoch + 1}/{self._config.epochs}{best}"


@contextmanager
def stop_on_interrupt(enabled: bool) -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C stop the training after its step; a second Ctrl-C stops it at once."""
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


def new_student(archive: FeatureArchive, config: TrainConfig) -> Student:
    """A student with its initial parameters, drawn from the configuration's seed, on the CPU."""
    generator = torch.Generator().manual_seed(config.seed)
    student = Student(config.student(archive.teachers, archive.classes), generator)
    if config.targets == "frozen":
        student.freeze_targets(generator)
    if config.teacher_heads:
        student.add_teacher_heads(generator)
    return student


def _new_state(
    archive: FeatureArchive, config: TrainConfig, device: torch.device, steps: int
) -> TrainingState[Student]:
    student = new_student(archive, config).to(device)
    trained = [p for p in student.parameters() if p.requires_grad]
    varies = config.schedule != "constant"  # then a tensor, which a step can set without the host
    optimizer = torch.optim.AdamW(
        trained,
        lr=torch.tensor(config.lr, device=device) if varies else config.lr,
        weight_decay=config.weight_decay,
        fused=True,
        capturable=device.type == "cuda",
    )
    terms = _term_names(list(archive.teachers), config.teacher_heads > 0)
    losses = torch.zeros(steps, len(terms), device=device)
    remedy = "lower lr, or check the features with FeatureArchive.verify()"
    threads = choose_threads(config, archive.teachers)
    return TrainingState(student, optimizer, losses, terms, remedy, config.selection, threads)


def _term_names(teachers: list[str], heads: bool) -> list[str]:
    losses = [f"the {kind} loss of teacher {name!r}" for kind in ("cosine", "Huber") for name in teachers]
    single = [f"the cross-entropy of the head of teacher {name!r}" for name in teachers] if heads else []
    return ["the total loss", "the cross-entropy", *losses, *single]
