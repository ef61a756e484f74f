"""The loop of a fine-tuning: a state that can be saved after any step and continued."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ...errors import NonFiniteError
from ...images.table import ImageTable
from ...runtime.progress import Progress
from ...scoring.metrics import compute_metrics, selection_score
from ...training.checkpoint import Checkpoint, TrainingState
from .config import FinetuneConfig
from .model import FinetunedTeacher, ImageFeed

logger = logging.getLogger("shazam_fast")


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
    """

    def __init__(
        self,
        model: FinetunedTeacher,
        images: ImageTable,
        rows: Mapping[str, NDArray[np.int64]],
        config: FinetuneConfig,
        checkpoint: Checkpoint,
    ) -> None:
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
        self._state = TrainingState(model, optimizer, torch.zeros(self._steps, 1, device=model.device))
        self._scaler = torch.amp.GradScaler(enabled=model.autocast_dtype == torch.float16)
        if checkpoint.load(self._state):
            self._state.best = {name: tensor.cpu() for name, tensor in self._state.best.items()}
            logger.info("continued from epoch %d, step %d", self._state.epoch, self._state.step)
        self._saved = time.monotonic()

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
        with Progress("fine-tuning", self._config.epochs * n, "images", done=seen) as progress:
            while not self._finished():
                self._train_epoch(interrupted, progress)

    def best_model(self) -> FinetunedTeacher:
        """The model of the epoch with the best validation score, in evaluation mode, on its device."""
        self._state.student.load_state_dict(self._state.best)
        return self._state.student.eval()

    def predict(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probabilities of images by the model as it is, float32 [n, C]."""
        return self._feed.predict(self._state.student, rows)

    def _finished(self) -> bool:
        stale = len(self.history) - 1 - self._best_epoch() if self.history else 0
        return self._state.epoch >= self._config.epochs or stale >= self._config.patience

    def _best_epoch(self) -> int:
        scores = [record["val_score"] for record in self.history]
        return scores.index(max(scores))

    def _train_epoch(self, interrupted: Callable[[], bool], progress: Progress) -> None:
        state, rows = self._state, self._rows["train"]
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
            if interrupted():
                self._save()
                logger.warning("stopped in epoch %d; the same call continues from there", state.epoch + 1)
                raise KeyboardInterrupt
            if time.monotonic() - self._saved >= self._config.checkpoint_seconds:
                self._save()
        self._finish_epoch()

    def _finish_epoch(self) -> None:
        state = self._state
        val = self._rows["val"]
        loss = self._mean_loss()
        metrics = compute_metrics(self.predict(val), self._images.labels[val], self._images.classes)
        self.history.append({
            "epoch": state.epoch,
            "loss": loss,
            "val_score": selection_score(metrics.balanced_accuracy, metrics.weighted_f1),
            "val_balanced_accuracy": metrics.balanced_accuracy,
            "val_weighted_f1": metrics.weighted_f1,
        })  # fmt: skip
        if self._best_epoch() == state.epoch:
            state.best = {name: tensor.cpu().clone() for name, tensor in state.student.state_dict().items()}
        state.epoch += 1
        state.step = 0
        self._save()

    def _mean_loss(self) -> float:
        """Loss of the steps so far of the epoch, mean over their images. Raises NonFiniteError for NaN or infinity."""
        state, size = self._state, self._config.batch_size
        weights = np.minimum(size, len(self._rows["train"]) - size * np.arange(state.step))
        losses = state.losses[: state.step, 0].cpu().double().numpy()
        loss = float(np.average(losses, weights=weights))
        if not np.isfinite(loss):
            raise NonFiniteError(f"epoch {state.epoch}: the loss is {loss}; lower backbone_lr and head_lr")
        return loss

    def _save(self) -> None:
        if not self._checkpoint.kept:
            return
        if self._state.step:
            self._mean_loss()
        _complete_moments(self._state.optimizer)
        self._checkpoint.save(self._state)
        self._saved = time.monotonic()


def _complete_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give moments of zero to parameters without a gradient (of a pooler that is not used), as checkpoints have all."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if not optimizer.state[p]:
                zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = {"step": torch.tensor(0.0), **zeros}
