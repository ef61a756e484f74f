"""A teacher with a head, and the images that it reads."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import ImageError, NonFiniteError
from ...images.decoding import decode
from ...images.table import ImageTable
from ...teachers.models import Teacher

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

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def classify(self, pixels: Tensor) -> Tensor:
        """Logits [B, C] of pixels uint8 [B, 3, H, W], on a GPU in `autocast_dtype`."""
        device = self.device
        images = self.teacher.transform.normalize(pixels.to(device, non_blocking=True))
        with torch.autocast(device.type, self.autocast_dtype, enabled=device.type == "cuda"):
            logits: Tensor = self(images)
        return logits.float()

    @property
    def autocast_dtype(self) -> torch.dtype:
        """bfloat16; float16, which needs its gradients scaled, only on GPUs without bfloat16."""
        gpu = self.device.type == "cuda"
        return torch.float16 if gpu and not torch.cuda.is_bf16_supported(including_emulation=False) else torch.bfloat16


class ImageFeed:
    """Batches of images as bytes; threads decode and resize the next ones while the model works on one.

    Args:
        images: the images.
        model: says how they are resized.
        batch_size: images per batch.
        workers: threads.
    """

    def __init__(self, images: ImageTable, model: FinetunedTeacher, batch_size: int, workers: int) -> None:
        self._images, self._transform = images, model.teacher.transform
        self._size, self._workers = batch_size, workers

    def batches(self, rows: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels uint8 [B, 3, size, size] and labels [B] of the rows, in their order.

        Raises ImageError, with the row, for an image that cannot be read.
        """
        waiting: deque[tuple[NDArray[np.int64], list[Future[NDArray[np.uint8]]]]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        try:
            for start in range(0, len(rows), self._size):
                batch = rows[start : start + self._size]
                waiting.append((batch, [pool.submit(self._pixels, row) for row in batch.tolist()]))
                if len(waiting) > BATCHES_AHEAD:
                    yield self._collect(*waiting.popleft())
            while waiting:
                yield self._collect(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @torch.inference_mode()
    def classify(self, model: FinetunedTeacher, rows: NDArray[np.int64]) -> Tensor:
        """Logits of the rows, float32 [n, C], on the CPU.

        Raises NonFiniteError, naming the image, for logits that are NaN or infinite.
        """
        model.eval()
        logits = torch.cat([model.classify(pixels) for pixels, _ in self.batches(rows)]).cpu()
        if not (finite := logits.isfinite().all(dim=1).numpy()).all():
            first = self._images.paths[rows[~finite][0]]
            raise NonFiniteError(f"{first}: its logits are NaN or infinite; lower backbone_lr and head_lr")
        return logits

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        try:
            return self._transform.pixels(decode(self._images.paths[row]))
        except ImageError as error:
            raise ImageError(f"{error} (row {row} of the images)") from None

    def _collect(self, batch: NDArray[np.int64], futures: Sequence[Future[NDArray[np.uint8]]]) -> tuple[Tensor, Tensor]:
        pixels = np.stack([future.result() for future in futures])
        return torch.from_numpy(pixels), torch.from_numpy(self._images.labels[batch])
