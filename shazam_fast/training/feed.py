"""Features for training: their statistics, and batches on the training device."""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..archive.archive import BATCHES_AHEAD, FeatureArchive
from ..ops.training_step import Batch
from ..runtime.progress import Progress

logger = logging.getLogger("shazam_fast")


RESIDENT_SHARE = 0.6  # fraction of the free device memory that the features of a split may take
WINDOWS_HELD = 2  # one that batches are taken from, one that is read
LOADED_ROWS = 16384  # rows that are copied to the device at a time


def feature_statistics(archive: FeatureArchive, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column over the given rows, float32 [width] each.

    Args:
        archive: where the features are.
        rows: int64 [n], at least one.

    Accumulated in float64 around the first batch's mean; a constant column gets scale 1.
    Raises NonFiniteError naming the teacher and the row of the first NaN or infinity.
    """
    total = torch.zeros(archive.width, dtype=torch.float64)
    squares = torch.zeros_like(total)
    shift: Tensor | None = None
    with Progress("reading features", len(rows), "patches") as progress:
        for batch in archive.stream(rows):
            x = torch.from_numpy(batch.features).double()
            shift = x.mean(dim=0) if shift is None else shift
            x -= shift
            total += x.sum(dim=0)
            if not torch.isfinite(total).all():
                archive.require_finite(batch.rows, batch.features)
            squares += x.square_().sum(dim=0)
            progress.advance(len(batch.rows))
    assert shift is not None
    mean = total / len(rows)
    scale = (squares / len(rows) - mean.square()).clamp_min(0.0).sqrt()
    mean += shift
    constant = scale <= 1e-12 * mean.abs()  # what rounding leaves of a constant column
    return mean.float(), torch.where(constant, 1.0, scale).float()


class TrainingFeed:
    """The training split as batches on a device, in the order that each epoch gives.

    On a GPU the features stay resident in their stored dtype where they fit, and a batch is a list of rows, made on
    the device. Otherwise batches are gathered from the memory map, for a GPU ahead of time into page-locked memory; in
    an order of windows, each window is read as it lies on the disk, ahead of time, and batches are taken from it.
    """

    def __init__(self, archive: FeatureArchive, rows: NDArray[np.int64], device: torch.device, batch_size: int) -> None:
        self._archive, self._rows, self._device, self._size = archive, rows, device, batch_size
        self._labels = torch.from_numpy(archive.labels[rows]).to(device)
        self._order = torch.zeros(len(rows), dtype=torch.int64, device=device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self._table = resident_features(archive, rows, device)
        if self._table is None:
            self._features = torch.zeros(batch_size, archive.width, device=device)
            self._batches: Iterator[Tensor] = iter(())
            self._copied = torch.cuda.Event() if device.type == "cuda" else None

    @property
    def state(self) -> list[Tensor]:
        """What `take` moves on."""
        return [self._cursor]

    def begin(self, order: NDArray[np.int64], step: int, window: int | None = None) -> None:
        """Give the batches of an epoch from the given step on; `order` numbers the split's rows [n].

        window: rows of `order` that are read together, a multiple of the batch size; None: each by itself.
        """
        self._order.copy_(torch.from_numpy(order))
        self._cursor.fill_(step * self._size)
        if self._table is None:
            rows = self._rows[order]
            first = step * self._size
            self._batches = self._gathered(rows[first:]) if window is None else self._from_windows(rows, first, window)

    def fetch(self) -> None:
        """What the host does for the next batch before `take`: nothing where the features are resident."""
        if self._table is not None:
            return
        if self._copied is None:
            next(self._batches)
            return
        self._copied.synchronize()  # the buffer that was copied from is about to be filled again
        features = next(self._batches)
        self._features[: len(features)].copy_(features, non_blocking=True)
        self._copied.record(torch.cuda.current_stream(self._device))

    def take(self, size: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """The next batch, by the device alone: features, and their rows that make it up (None: all), labels, positions.

        `positions` int64 [size] number the split's rows.
        """
        positions = self._order.index_select(0, self._cursor + torch.arange(size, device=self._device))
        self._cursor += size
        labels = self._labels.index_select(0, positions)
        if self._table is not None:
            return self._table, positions, labels, positions
        return self._features[:size], None, labels, positions

    def next_batch(self, size: int) -> Batch:
        """The next batch, still to be taken: whoever takes it moves the cursor on."""
        features = self._features[:size] if self._table is None else self._table
        return Batch(features, self._table is not None, self._order, self._cursor, self._labels)

    def _gathered(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """The rows batch by batch, on the host; on the CPU in the buffer that `take` gives, without a thread beside."""
        if self._copied is None:
            for start in range(0, len(rows), self._size):
                part = rows[start : start + self._size]
                here = self._features[: len(part)]
                self._archive.gather(part, out=here.numpy())
                yield here
            return
        buffers = torch.empty(BATCHES_AHEAD + 1, *self._features.shape, pin_memory=True)
        for batch in self._archive.stream(rows, self._size, list(buffers.numpy())):
            yield torch.from_numpy(batch.features)

    def _from_windows(self, rows: NDArray[np.int64], first: int, window: int) -> Iterator[Tensor]:
        """The batches from row `first` on, on the host, each from a window that is read in the order of the disk."""
        start = first // window * window
        windows = [rows[at : at + window] for at in range(start, len(rows), window)]
        size = min(window, len(rows))
        buffers = [np.empty((size, self._archive.width), np.float32) for _ in range(WINDOWS_HELD)]
        staged = self._features if self._copied is None else torch.empty_like(self._features, device="cpu").pin_memory()
        read = self._archive.stream(np.concatenate([np.sort(part) for part in windows]), window, buffers)
        for part, batch in zip(windows, read, strict=True):
            places = np.searchsorted(batch.rows, part)
            for at in range(max(first - start, 0), len(part), self._size):
                chosen = places[at : at + self._size]
                here = staged[: len(chosen)]
                batch.features.take(chosen, axis=0, out=here.numpy(), mode="clip")  # "raise" would copy once more
                yield here
            start += len(part)


def resident_features(archive: FeatureArchive, rows: NDArray[np.int64], device: torch.device) -> Tensor | None:
    """Features of the rows [n, width] on a GPU, in their stored dtype; None where they do not fit, and on the CPU.

    Raises NonFiniteError naming the teacher and the row of the first NaN or infinity.
    """
    if device.type != "cuda":
        return None
    dtype: torch.dtype = getattr(torch, archive.dtype)  # the widest of the teachers' own
    free, _ = torch.cuda.mem_get_info(device)
    needed = len(rows) * archive.width * dtype.itemsize
    if needed > RESIDENT_SHARE * free:
        logger.warning(
            "%s: %.1f GB of features do not fit in the %.1f GB that the GPU has free: they are streamed",
            archive.path, needed / 1e9, free / 1e9,
        )  # fmt: skip
        return None
    table = torch.empty(len(rows), archive.width, dtype=dtype, device=device)
    for start in range(0, len(rows), LOADED_ROWS):
        part = rows[start : start + LOADED_ROWS]
        loaded = torch.empty(len(part), archive.width, dtype=dtype)
        archive.gather(part, out=(loaded.view(torch.uint16) if dtype == torch.bfloat16 else loaded).numpy())
        here = table[start : start + len(part)].copy_(loaded)
        if not torch.isfinite(here).all():
            archive.require_finite(part, loaded.float().numpy())
    return table
