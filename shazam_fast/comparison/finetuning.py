"""The baseline of the Shazam paper's Table 1: one teacher, fine-tuned end to end on the task's images.

The backbone is trained at a learning rate of 1e-5, the MLP head at 1e-3 (arXiv 2503.00736); the head is that of the
authors' single-model script. The best epoch is the one with the best validation score, the score that also chooses a
student's best epoch (0.8 balanced accuracy + 0.2 weighted F1). The test split is read once, at the end.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ImageError, MismatchError, NonFiniteError, ShazamError
from ..images.decoding import decode
from ..images.table import ImageTable
from ..runtime.devices import choose_device
from ..runtime.progress import Progress
from ..scoring.metrics import Metrics, compute_metrics, selection_score
from ..teachers.models import Teacher, load_teacher
from ..teachers.spec import TeacherSpec
from ..teachers.transform import Transform

HIDDEN = 128  # width of the head
BATCHES_AHEAD = 2  # decoded while the model works on one


class FinetunedTeacher(nn.Module):
    """A teacher with an MLP head.

    Args:
        teacher: trained along with the head; its `transform` prepares the images.
        classes: [C] class names in label order.
    """

    def __init__(self, teacher: Teacher, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes
        self.teacher = teacher.requires_grad_(True)
        self.head = nn.Sequential(
            nn.Linear(teacher.spec.dim, HIDDEN), nn.LayerNorm(HIDDEN), nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), nn.GELU(),
            nn.Linear(HIDDEN, len(classes)),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to logits [B, C]."""
        return self.head(self.teacher.features(images))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned teacher.

    Args:
        model: with the weights of its best epoch, on the CPU, in evaluation mode.
        history: one record per epoch: `epoch`, `loss`, `val_score` (which chooses the best epoch), and what that is
            made of, `val_balanced_accuracy` and `val_weighted_f1`.
        metrics: on "val" and, where there is a test split, on "test".
    """

    model: FinetunedTeacher
    history: list[dict[str, float]]
    metrics: dict[str, Metrics]


# Over 40 lines: every option is documented here.
def finetune(
    images: ImageTable,
    teacher: str | TeacherSpec,
    *,
    weights: str | Path = "hub",
    token: str | None = None,
    transform: str = "own",
    epochs: int = 20,
    batch_size: int = 32,
    backbone_lr: float = 1e-5,
    head_lr: float = 1e-3,
    weight_decay: float = 1e-3,
    patience: int = 5,
    seed: int = 0,
    device: str | None = None,
    workers: int = 8,
) -> FinetuneResult:
    """Fine-tune a teacher and a new head on the "train" split of `images`, and choose the best epoch on "val".

    Args:
        images: labelled images [n] with splits: a manifest, class folders, or a data set of the paper.
        teacher: a name (`list_teachers` has all), or a spec of any timm or transformers model or callable.
        weights, token, transform: see `load_teacher`.
        epochs: passes over the training images, at most.
        batch_size: images per step.
        backbone_lr, head_lr: learning rates (> 0) of the teacher and of the head.
        weight_decay: of AdamW, >= 0.
        patience: stop after this many epochs without a better validation score.
        seed: random seed of the head's parameters, the order of images and dropout; the same seed on the same CPU
            gives the same bits.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if PyTorch finds one. GPUs compute in bfloat16 or float16.
        workers: threads that decode images.

    Returns:
        The model of the best epoch, its history and its metrics.

    Raises:
        MismatchError: an empty split, an image without a label, a class that no training image has, patches of slides.
        NonFiniteError: a loss that is NaN or infinite (names the epoch).
        ImageError: an image that cannot be read (names file and row).
        ShazamError, ArchiveError: an option out of range; see also `load_teacher`.

    >>> import tempfile
    >>> from PIL import Image
    >>> create = lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
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
    if min(epochs, batch_size, patience, workers) < 1 or min(backbone_lr, head_lr) <= 0 or weight_decay < 0:
        raise ShazamError("epochs, batch_size, patience, workers >= 1, learning rates > 0, weight_decay >= 0 expected")
    rows = {name: _labelled_rows(images, name) for name in ("train", "val", "test")}
    place = choose_device(device)
    built = load_teacher(teacher, weights, token, transform)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        model = FinetunedTeacher(built, images.classes).to(place)
        groups = [{"params": built.parameters(), "lr": backbone_lr}, {"params": model.head.parameters(), "lr": head_lr}]
        optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
        feed = _Feed(images, built.transform, batch_size, workers)
        history = _train(model, optimizer, feed, rows, epochs, patience)
        evaluated = {name: _evaluate(model, feed, rows[name]) for name in ("val", "test") if len(rows[name])}
    return FinetuneResult(model.cpu(), history, evaluated)


class _Feed:
    """Batches of images as bytes; threads decode and resize the next ones while the model works on one."""

    def __init__(self, images: ImageTable, transform: Transform, batch_size: int, workers: int) -> None:
        self.images, self.transform, self.batch_size, self._workers = images, transform, batch_size, workers

    def batches(self, rows: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels uint8 [B, 3, size, size] and labels [B] of the rows, in their order."""
        starts = range(0, len(rows), self.batch_size)
        waiting: deque[tuple[NDArray[np.int64], list[Future[NDArray[np.uint8]]]]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        try:
            for start in starts:
                batch = rows[start : start + self.batch_size]
                waiting.append((batch, [pool.submit(self._pixels, row) for row in batch.tolist()]))
                if len(waiting) > BATCHES_AHEAD:
                    yield self._collect(*waiting.popleft())
            while waiting:
                yield self._collect(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        try:
            return self.transform.pixels(decode(self.images.paths[row]))
        except ImageError as error:
            raise ImageError(f"{error} (row {row} of the images)") from None

    def _collect(self, batch: NDArray[np.int64], futures: Sequence[Future[NDArray[np.uint8]]]) -> tuple[Tensor, Tensor]:
        pixels = np.stack([future.result() for future in futures])
        return torch.from_numpy(pixels), torch.from_numpy(self.images.labels[batch])


def _train(
    model: FinetunedTeacher,
    optimizer: torch.optim.Optimizer,
    feed: _Feed,
    rows: dict[str, NDArray[np.int64]],
    epochs: int,
    patience: int,
) -> list[dict[str, float]]:
    """Train, and leave the model with the weights of its best epoch."""
    history: list[dict[str, float]] = []
    best, best_score = {}, -1.0
    scaler = torch.amp.GradScaler(enabled=_autocast(model) == torch.float16)
    with Progress("fine-tuning", epochs * len(rows["train"]), "images") as progress:
        for epoch in range(epochs):
            loss = _train_epoch(model, optimizer, scaler, feed, rows["train"], progress)
            if not np.isfinite(loss):
                raise NonFiniteError(f"epoch {epoch}: the loss is {loss}; lower backbone_lr and head_lr")
            metrics = _evaluate(model, feed, rows["val"])
            score = selection_score(metrics.balanced_accuracy, metrics.weighted_f1)
            history.append({
                "epoch": epoch, "loss": loss, "val_score": score,
                "val_balanced_accuracy": metrics.balanced_accuracy, "val_weighted_f1": metrics.weighted_f1,
            })  # fmt: skip
            if score > best_score:
                best, best_score = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}, score
            elif epoch - max(history, key=lambda record: record["val_score"])["epoch"] >= patience:
                break
    model.load_state_dict(best)
    return history


def _train_epoch(
    model: FinetunedTeacher,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    feed: _Feed,
    rows: NDArray[np.int64],
    progress: Progress,
) -> float:
    """One pass in random order; the mean loss."""
    model.train()
    device = _device(model)
    order = rows[torch.randperm(len(rows)).numpy()]
    total = torch.zeros((), device=device, dtype=torch.float64)
    for pixels, labels in feed.batches(order):
        images = feed.transform.normalize(pixels.to(device, non_blocking=True))
        with torch.autocast(device.type, _autocast(model), enabled=device.type == "cuda"):
            loss = F.cross_entropy(model(images).float(), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        total += loss.detach().double() * len(labels)
        progress.advance(len(labels))
    return float(total) / len(rows)


@torch.inference_mode()
def _evaluate(model: FinetunedTeacher, feed: _Feed, rows: NDArray[np.int64]) -> Metrics:
    """Metrics on the rows. Raises NonFiniteError, naming the image, for logits that are NaN or infinite."""
    model.eval()
    device = _device(model)
    found = []
    for pixels, _ in feed.batches(rows):
        images = feed.transform.normalize(pixels.to(device, non_blocking=True))
        with torch.autocast(device.type, _autocast(model), enabled=device.type == "cuda"):
            logits = model(images)
        found.append(logits.float().softmax(dim=1))
    probabilities = torch.cat(found).cpu().numpy()  # [n, C]
    if not (finite := np.isfinite(probabilities).all(axis=1)).all():
        first = feed.images.paths[rows[~finite][0]]
        raise NonFiniteError(f"{first}: its logits are NaN or infinite; lower backbone_lr and head_lr")
    return compute_metrics(probabilities, feed.images.labels[rows], model.classes)


def _labelled_rows(images: ImageTable, name: str) -> NDArray[np.int64]:
    """Rows of a split, checked for what fine-tuning needs of it."""
    if images.sides is not None:
        raise MismatchError("fine-tuning reads image files; write the slides' patches out as images first")
    rows = images.split(name)
    labels = images.labels[rows]
    if len(rows) == 0 and name != "test":
        raise MismatchError(f"split {name!r} is empty; fine-tuning needs images in 'train' and in 'val'")
    if (labels < 0).any():
        first = images.paths[rows[labels < 0][0]]
        raise MismatchError(
            f"{np.count_nonzero(labels < 0)} images of split {name!r} have no label, the first: {first}"
        )
    absent = set(range(len(images.classes))) - set(labels.tolist())
    if name == "train" and absent:
        raise MismatchError(f"no training image has class {', '.join(images.classes[c] for c in sorted(absent))}")
    return rows


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _autocast(model: nn.Module) -> torch.dtype:
    """The dtype of autocast: float16, which needs its gradients scaled, only on GPUs without bfloat16."""
    gpu = _device(model).type == "cuda"
    return torch.float16 if gpu and not torch.cuda.is_bf16_supported(including_emulation=False) else torch.bfloat16
