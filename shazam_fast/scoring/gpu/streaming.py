"""Scoring on a GPU as one stream of tiles over all parts: gathered, copied and computed side by side.

Between two parts nothing runs empty: the next one's tiles are under way before the scores of a part are waited for.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...archive.archive import FeatureArchive
from ...student.config import StudentConfig
from ...student.output import StudentOutput
from ..inference import RowScores, infer, store_output

TILE_BYTES = 128 << 20  # largest tile; copies of 64 MB and more run at the bus's full rate
BETWEEN_BYTES = 1 << 30  # largest matrix that PyTorch makes of a tile, [B N, K D], where no kernel applies
BUFFERS = 3  # of tiles: one is gathered, one copied, one computed

Shapes = Sequence[tuple[int, ...] | None]  # of probabilities, shares, fused features and influence; None: not wanted


class Tile(NamedTuple):
    """Rows that are computed together: [start, stop) of a part's."""

    rows: NDArray[np.int64]  # of the part
    start: int
    stop: int


def cut_tiles(parts: Iterable[NDArray[np.int64]], size: int) -> Iterator[Tile]:
    """Every part in tiles of its own, so that a part's scores do not depend on which others are scored."""
    for rows in parts:
        for start in range(0, len(rows), size):
            yield Tile(rows, start, min(start + size, len(rows)))


def gpu_tile_rows(archive: FeatureArchive, config: StudentConfig) -> int:
    """Rows per tile: neither its features nor what a student without kernels keeps of them fills the GPU's memory."""
    between = 4 * len(config.teachers) * config.depth * config.dim  # bytes of [N, K D] in float32
    return max(1, min(TILE_BYTES // archive.row_bytes, BETWEEN_BYTES // between))


def page_locked(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory of the host that a GPU copies from and to by itself."""
    return torch.empty(*shape, dtype=dtype, pin_memory=True)


def stream_to_gpu(
    archive: FeatureArchive, tiles: Iterable[Tile], size: int, device: torch.device
) -> Iterator[tuple[Tile, Tensor]]:
    """Tile after tile, of at most `size` rows, and its features [rows, width] as stored, on the device.

    A tile is gathered, as stored, into one of a few pinned buffers and copied on a stream of its own; the host waits
    only for the copy that last used the buffer. Features are valid until the next tile is asked for.
    """
    stored: torch.dtype = getattr(torch, archive.dtype)
    pinned = [page_locked((size, archive.width), stored) for _ in range(BUFFERS)]
    there = [torch.empty(size, archive.width, dtype=stored, device=device) for _ in range(BUFFERS)]
    copied = [torch.cuda.Event() for _ in range(BUFFERS)]
    used = [torch.cuda.Event() for _ in range(BUFFERS)]
    copies, compute = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    copies.wait_stream(compute)  # the buffers' memory may still be in use by what was computed before
    try:
        for index, tile in enumerate(tiles):
            slot, chosen = index % BUFFERS, tile.rows[tile.start : tile.stop]
            n = len(chosen)
            copied[slot].synchronize()
            raw = pinned[slot].view(torch.uint16) if stored == torch.bfloat16 else pinned[slot]
            archive.gather(chosen, out=raw[:n].numpy())
            with torch.cuda.stream(copies):
                copies.wait_event(used[slot])
                there[slot][:n].copy_(pinned[slot][:n], non_blocking=True)
                copied[slot].record(copies)
            compute.wait_event(copied[slot])
            yield tile, there[slot][:n]
            used[slot].record(compute)
    finally:  # also where the consumer stops early: no buffer goes back while a copy into it is under way
        compute.wait_stream(copies)


class PartOnGpu:
    """Scores of a part in tensors of a GPU, and their way to the host, behind all that computes them.

    Args:
        shapes: of the scores.
        device: the GPU.
    """

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        self.results = [None if shape is None else torch.empty(*shape, device=device) for shape in shapes]
        self._host = [None if shape is None else page_locked(shape, torch.float32) for shape in shapes]
        self._compute, self._sent = torch.cuda.current_stream(device), torch.cuda.Event()

    def send(self) -> None:
        """Copy the scores to the host once they are computed; nothing waits for it yet."""
        for host, result in zip(self._host, self.results, strict=True):
            if host is not None and result is not None:
                host.copy_(result, non_blocking=True)
        self._sent.record(self._compute)

    def arrived(self) -> bool:
        """Whether the scores are on the host."""
        return bool(self._sent.query())

    def take(self) -> RowScores:
        """The scores, waited for."""
        self._sent.synchronize()
        return RowScores(*(None if host is None else host.numpy() for host in self._host))  # type: ignore[arg-type]


def score_stream(
    form: Callable[[Tensor], StudentOutput],
    archive: FeatureArchive,
    parts: Iterable[NDArray[np.int64]],
    size: int,
    shapes: Callable[[int], Shapes],
    device: torch.device,
) -> Iterator[tuple[NDArray[np.int64], RowScores]]:
    """The rows of part after part, and their scores.

    Args:
        form: the student as a function of features as stored, on the device.
        archive: where the features are.
        parts: the rows of each, int64 [n], n at least 1.
        size: rows per tile.
        shapes: of the scores of so many rows.
        device: the GPU.
    """
    sent: tuple[NDArray[np.int64], PartOnGpu] | None = None
    for tile, output in infer(form, stream_to_gpu(archive, cut_tiles(parts, size), size, device)):
        if tile.start == 0:
            part = PartOnGpu(shapes(len(tile.rows)), device)
        store_output(part.results, tile.start, output)
        last = tile.stop == len(tile.rows)
        if sent is not None and (last or sent[1].arrived()):
            yield sent[0], sent[1].take()
            sent = None
        if last:
            part.send()
            sent = tile.rows, part
    if sent is not None:
        yield sent[0], sent[1].take()
