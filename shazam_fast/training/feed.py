"""Features for training: their statistics, and batches on the training device."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _core
from ..archive.archive import BATCHES_AHEAD, FeatureArchive
from ..ops.training_step import Batch
from ..runtime.memory import exceeds_memory
from ..runtime.progress import Progress

logger = logging.getLogger("shazam_fast")


RESIDENT_SHARE = 0.6  # fraction of the free device memory that the features of a split may take
WINDOWS_HELD = 2  # one that batches are taken from, one that is read
STORED = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}  # half the memory that float32 takes
LOADED_ROWS = 16384  # rows that are copied to the device at a time
SUMMED_ROWS = 4096  # rows of a resident table that are widened to float64 at a time


def feature_statistics(
    archive: FeatureArchive, rows: NDArray[np.int64], table: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column over the given rows, float32 [width] each.

    Args:
        archive: where the features are.
        rows: int64 [n], at least one.
        table: their features [n, width] where a GPU has them already, all finite; then it takes the sums.

    Accumulated in float64 around the first batch's mean; a constant column gets scale 1.
    Raises NonFiniteError naming the teacher and the row of the first NaN or infinity.
    """
    if table is not None:
        sums = _Sums(table[:1])
        for part in table.split(SUMMED_ROWS):
            sums.add(part.double())
        return sums.statistics(len(table))
    sums = _Sums(torch.empty(1, archive.width))
    with Progress("reading features", len(rows), "patches") as progress:
        for batch in archive.stream(rows):
            sums.add(torch.from_numpy(batch.features).double())
            if not torch.isfinite(sums.total).all():
                archive.require_finite(batch.rows, batch.features)
            progress.advance(len(batch.rows))
    return sums.statistics(len(rows))


class _Sums:
    """Sums over rows like those of `like` [1, width], in float64, on its device."""

    def __init__(self, like: Tensor) -> None:
        self.total = like.new_zeros(like.shape[1], dtype=torch.float64)
        self._squares = torch.zeros_like(self.total)
        self._shift: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Rows [n, width] in float64, which are overwritten."""
        self._shift = x.mean(dim=0) if self._shift is None else self._shift
        x -= self._shift
        self.total += x.sum(dim=0)
        self._squares += x.square_().sum(dim=0)

    def statistics(self, n: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over n rows, float32 [width] each."""
        assert self._shift is not None
        mean = self.total / n
        scale = (self._squares / n - mean.square()).clamp_min(0.0).sqrt()
        mean += self._shift
        least = 1e-12 * mean.abs()  # what rounding leaves of a constant column
        constant = scale <= least.clamp_min(torch.finfo(torch.float32).tiny)  # 1 / scale is a float32 too
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
        self._past_cache = exceeds_memory(len(rows) * archive.row_bytes, often=True)
        if self._table is None:
            self._features = torch.zeros(batch_size, archive.width, device=device)
            self._batches: Iterator[Tensor] = iter(())
            self._copied = torch.cuda.Event() if device.type == "cuda" else None

    @property
    def table(self) -> Tensor | None:
        """The features of the split [n, width] where they are resident."""
        return self._table

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
        shape = min(window, len(rows)), self._archive.width
        held = [np.empty(shape, STORED[self._archive.dtype]) for _ in range(WINDOWS_HELD)]
        staged = self._features if self._copied is None else torch.empty_like(self._features, device="cpu").pin_memory()
        ordered = np.concatenate([np.sort(part) for part in windows])
        read = self._archive.stream(ordered, window, held, self._past_cache)
        for part, batch in zip(windows, read, strict=True):
            places = np.searchsorted(batch.rows, part)
            for at in range(max(first - start, 0), len(part), self._size):
                chosen = places[at : at + self._size]
                here = staged[: len(chosen)]
                _core.take_rows(batch.features, chosen, here.numpy())
                yield here
            start += len(part)


def _as_stored(features: Tensor) -> NDArray[Any]:
    """The same memory in the form in which an archive fills it: bfloat16 as uint16."""
    return (features.view(torch.uint16) if features.dtype == torch.bfloat16 else features).numpy()


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
        archive.gather(part, out=_as_stored(loaded))
        here = table[start : start + len(part)].copy_(loaded)
        if not torch.isfinite(here).all():
            archive.require_finite(part, loaded.float().numpy())
    return table
