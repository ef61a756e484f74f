"""The loop of a fine-tuning: a state that can be saved after any step and continued."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ...images.table import ImageTable, describe_images
from ...runtime.progress import Progress
from ...training.saving.checkpoint import Checkpoint, TrainingState
from ...training.saving.records import OnEpoch, describe_start, tell_epoch
from ...training.validation import describe_validation
from .config import FinetuneConfig
from .model import FinetunedTeacher, ImageFeed


class FinetuningRun:
    """A fine-tuning that can be saved after any step and resumed.

    The order of images derives from (seed, epoch), dropout from (seed, epoch, step), so the parameters, the optimizer's
    moments and the losses of the current epoch are the whole state. On the CPU a resumed run gives the same bits. On
    GPUs without bfloat16 the scaling of gradients starts anew.

    Args:
        model: the teacher with a fresh head, on its device.
        images: the images with their labels.
        rows: split -> rows of "train" and "val", int64.
        config: what decides the fine-tuning.
        checkpoint: where the state is saved; if it holds one, the fine-tuning resumes from it.
        on_epoch: called with the record of every epoch that this run finishes.
    """

    def __init__(
        self,
        model: FinetunedTeacher,
        images: ImageTable,
        rows: Mapping[str, NDArray[np.int64]],
        config: FinetuneConfig,
        checkpoint: Checkpoint,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self._on_epoch = on_epoch
        self._images, self._rows, self._config, self._checkpoint = images, rows, config, checkpoint
        self._feed = ImageFeed(images, model, config.batch_size, config.workers)
        self._steps = -(-len(rows["train"]) // config.batch_size)
        optimizer = torch.optim.AdamW(
            [
                {"params": list(model.teacher.parameters()), "lr": config.backbone_lr},
                {"params": list(model.head.parameters()), "lr": config.head_lr},
            ],
            weight_decay=config.weight_decay,
        )
        losses = torch.zeros(self._steps, 1, device=model.device)
        self._state = TrainingState(model, optimizer, losses, ["the loss"], "lower backbone_lr and head_lr")
        self._scaler = torch.amp.GradScaler(enabled=model.autocast_dtype == torch.float16)
        checkpoint.load(self._state)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record per finished epoch."""
        return self._state.history

    def train(self, interrupted: Callable[[], bool]) -> None:
        """Train to the last epoch, or until the validation score has not improved for `patience` epochs.

        Once `interrupted()` is true the state is saved after the step at hand and KeyboardInterrupt raised.
        """
        n, state = len(self._rows["train"]), self._state
        seen = state.epoch * n + state.step * self._config.batch_size
        device, threads, images = state.student.device, torch.get_num_threads(), describe_images(self._images)
        with Progress("fine-tuning", self._config.epochs * n, "images", done=seen) as progress:
            progress.tell(describe_start(images, device, threads, self._config.batch_size, "fine-tuning"))
            while not state.is_finished(self._config.epochs, self._config.patience):
                self._train_epoch(interrupted, progress)

    def best_model(self) -> FinetunedTeacher:
        """The model of the epoch with the best validation score, in evaluation mode, on its device."""
        return self._state.kept_student()

    def predict(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probabilities of images by the model as it is, float32 [n, C]."""
        return self._feed.classify(self._state.student, rows).softmax(dim=1).numpy()

    def _train_epoch(self, interrupted: Callable[[], bool], progress: Progress) -> None:
        started, state, rows = time.monotonic(), self._state, self._rows["train"]
        order = np.random.default_rng([self._config.seed, state.epoch]).permutation(len(rows))
        left = rows[order[state.step * self._config.batch_size :]]
        state.student.train()
        for pixels, labels in self._feed.batches(left):
            seed = np.random.SeedSequence([self._config.seed, state.epoch, state.step])
            torch.manual_seed(int(seed.generate_state(1)[0]))
            loss = F.cross_entropy(state.student.classify(pixels), labels.to(state.losses.device))
            state.optimizer.zero_grad(set_to_none=True)
            self._scaler.scale(loss).backward()
            self._scaler.step(state.optimizer)
            self._scaler.update()
            state.losses[state.step] = loss.detach()
            state.step += 1
            progress.advance(len(labels))
            self._checkpoint.after_step(state, interrupted())
        self._finish_epoch(started)
        tell_epoch(self.history[-1], self._config.epochs, progress, self._on_epoch)

    def _finish_epoch(self, started: float) -> None:
        state, val = self._state, self._rows["val"]
        state.require_finite_losses()
        found = describe_validation(self._feed.classify(state.student, val), self._images.labels[val])
        loss = state.mean_losses(len(self._rows["train"]), self._config.batch_size)[0]
        state.end_epoch({"epoch": state.epoch, "loss": loss, **found, "seconds": time.monotonic() - started})
        self._checkpoint.save(state)
