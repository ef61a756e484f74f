"""A student at work on an archive: tiles of rows from the disk through the model, and their scores back.

What a patch gets depends on its tile's rows and on nothing else: not on threads, parts, or what was scored before.
"""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from queue import Empty, SimpleQueue
from threading import Barrier
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _core
from ..archive.archive import FeatureArchive
from ..errors import NonFiniteError
from ..student.folded import FoldedStudent
from ..student.matching import TeacherMatch
from ..student.output import StudentOutput
from ..student.student import Student

TILE_ROWS = 240  # one thread's work at a time on the CPU; a multiple of the 12 rows that its products take at once
TILES_AHEAD = 16  # that the disk works on while the processors compute
GPU_TILE_ROWS = 16384  # a copy of 100 MB and more runs at the bus's full rate
GPU_TILES = 3  # one is gathered, one copied, one computed
STORED = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}  # as `gather` takes them

# Probabilities [B, C], teacher shares [B, N] and fused features [B, D], None where there are none or none are wanted.
Inferred = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class RowScores:
    """`probabilities` float32 [n, C], `shares` float32 [n, N] or None, `fused` float32 [n, D] or None."""

    probabilities: NDArray[np.float32]
    shares: NDArray[np.float32] | None
    fused: NDArray[np.float32] | None


class Scorer:
    """Scores rows of an archive with a student in its fastest exact form; use it as a context manager.

    On the CPU every thread takes whole tiles, so that neither a product nor a cache is shared. On a GPU tiles are
    gathered into pinned memory and copied on a stream of their own while the ones before are computed.

    Raises MismatchError when the archive's teachers are not the student's.
    """

    def __init__(
        self,
        student: Student,
        archive: FeatureArchive,
        device: torch.device,
        *,
        fused: bool,
        allow_missing_teachers: bool,
    ) -> None:
        self.match = TeacherMatch(archive.path, archive.teachers, student.config, allow_missing_teachers)
        self._student, self._config, self._dtype = student, student.config, student.qkv.dtype
        self._archive, self._device, self._fused = archive, device, fused
        self._threads_before = torch.get_num_threads()
        self._threads = self._threads_before if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        self._core: _core.FoldedStudent | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            self._model = to_scoring_form(self._student, self._device)
        else:
            # OpenMP keeps a number of threads for every thread, MKL one for all: both are set, until we leave.
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
            everyone = Barrier(self._threads)
            wait([self._pool.submit(everyone.wait) for _ in range(self._threads)])
            # Folded by one thread too, as more would round in another order.
            self._model = to_scoring_form(self._student, self._device)
            if isinstance(self._model, FoldedStudent) and (core := self._model.to_core()):
                self._core, self._value_map = core, self._model.value_map
                del self._model  # the core has a copy
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self._threads_before)

    def score(self, rows: NDArray[np.int64]) -> RowScores:
        """Scores of the given rows. Raises NonFiniteError naming the teacher and the first row with a NaN or inf."""
        config = self._config
        scores = RowScores(
            np.empty((len(rows), len(config.classes)), np.float32),
            np.empty((len(rows), len(config.teachers)), np.float32) if config.block == "bare" else None,
            np.empty((len(rows), config.dim), np.float32) if self._fused else None,
        )
        if self._pool is None:
            self._stream(rows, scores)
        else:
            self._share_out(rows, scores, self._pool)
        bad = np.flatnonzero(~np.isfinite(scores.probabilities.sum(axis=1)))
        if bad.size:
            first = rows[bad[:1]]
            self._archive.require_finite(first, self._archive.gather(first))
            raise NonFiniteError(f"{self._archive.path}: row {first[0]} gives non-finite logits")
        return scores

    def _share_out(self, rows: NDArray[np.int64], scores: RowScores, pool: ThreadPoolExecutor) -> None:
        tiles: SimpleQueue[int] = SimpleQueue()
        for start in range(0, len(rows), TILE_ROWS):
            tiles.put(start)
        work = [pool.submit(self._take_tiles, tiles, rows, scores) for _ in range(self._threads)]
        try:
            wait(work, return_when=FIRST_EXCEPTION)
        finally:
            for _ in _drain(tiles):
                pass  # after an error, or Ctrl-C, the threads have nothing left to take
        for task in work:
            task.result()

    def _take_tiles(self, tiles: "SimpleQueue[int]", rows: NDArray[np.int64], scores: RowScores) -> None:
        size = min(TILE_ROWS, len(rows))
        infer = self._infer_gathered if self._core is None else self._core_tiles(self._core, size)
        dtype = np.float32 if self._core is None else STORED[self._archive.dtype]  # the core widens on its way
        buffer = np.empty((size, self._archive.width), dtype)
        for start in _drain(tiles):
            here = slice(start, min(start + TILE_ROWS, len(rows)))
            ahead = start + TILES_AHEAD * TILE_ROWS
            self._archive.will_need(rows[ahead : ahead + TILE_ROWS])
            features = self._archive.gather(rows[here], out=buffer[: here.stop - start], threads=1)
            for target, found in zip(_parts(scores), infer(features), strict=True):
                if target is not None and found is not None:
                    target[here] = found.cpu().numpy()

    def _core_tiles(self, core: _core.FoldedStudent, size: int) -> Callable[[NDArray[Any]], Inferred]:
        """How one thread infers tiles of at most `size` patches through the core, in buffers of its own."""
        config, starts = self._config, self.match.starts
        widths = (len(config.classes), len(config.teachers), config.dim)
        buffers = [torch.empty(size, width) for width in widths]
        value_map = self._value_map if self._fused else None

        @torch.inference_mode()
        def infer(features: NDArray[Any]) -> Inferred:
            logits, shares, pooled = (buffer[: len(features)] for buffer in buffers)
            core.forward(features, starts, logits.numpy(), shares.numpy(), pooled.numpy())
            return logits.softmax(dim=1), shares, None if value_map is None else pooled @ value_map

        return infer

    def _infer_gathered(self, features: NDArray[np.float32]) -> Inferred:
        return self._infer(torch.from_numpy(features).to(self._device))

    def _stream(self, rows: NDArray[np.int64], scores: RowScores) -> None:
        """The same on a CUDA device, whose results stay there until all are computed."""
        results = [None if t is None else torch.empty(t.shape, device=self._device) for t in _parts(scores)]
        for start, features in stream_to_gpu(self._archive, rows, self._device):
            for target, found in zip(results, self._infer(features), strict=True):
                if target is not None and found is not None:
                    target[start : start + len(features)] = found
        for host, result in zip(_parts(scores), results, strict=True):
            if host is not None and result is not None:
                torch.from_numpy(host).copy_(result)

    @torch.inference_mode()
    def _infer(self, features: Tensor) -> Inferred:
        matched, present = self.match(features.to(self._dtype))
        output: StudentOutput = self._model(matched, present)
        return output.logits.softmax(dim=1), output.shares, output.fused if self._fused else None


def stream_to_gpu(
    archive: FeatureArchive, rows: NDArray[np.int64], device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """(position of the first row, features [B, width] float32 on the device) of tile after tile.

    A tile is gathered, as stored, into one of a few pinned buffers and copied on a stream of its own; the host waits
    only for the copy that last used the buffer. Features are valid until the next tile is asked for.
    """
    stored: torch.dtype = getattr(torch, archive.dtype)
    size = min(GPU_TILE_ROWS, len(rows))
    pinned = [torch.empty(size, archive.width, dtype=stored, pin_memory=True) for _ in range(GPU_TILES)]
    there = [torch.empty(size, archive.width, dtype=stored, device=device) for _ in range(GPU_TILES)]
    copied = [torch.cuda.Event() for _ in range(GPU_TILES)]
    used = [torch.cuda.Event() for _ in range(GPU_TILES)]
    copies, compute = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    copies.wait_stream(compute)  # the buffers' memory may still be in use by what was computed before
    for index, start in enumerate(range(0, len(rows), size)):
        slot, chosen = index % GPU_TILES, rows[start : start + size]
        n = len(chosen)
        copied[slot].synchronize()
        raw = pinned[slot].view(torch.uint16) if stored == torch.bfloat16 else pinned[slot]
        archive.gather(chosen, out=raw[:n].numpy())
        with torch.cuda.stream(copies):
            copies.wait_event(used[slot])
            there[slot][:n].copy_(pinned[slot][:n], non_blocking=True)
            copied[slot].record(copies)
        compute.wait_event(copied[slot])
        yield start, there[slot][:n].float()
        used[slot].record(compute)
    compute.wait_stream(copies)


def to_scoring_form(student: Student, device: torch.device) -> Student | FoldedStudent:
    """The student in its fastest exact form, on `device`; the caller's own is left where it is."""
    model = student.fold() if student.config.block == "bare" else copy.deepcopy(student)
    return model.to(device).eval()


def _parts(scores: RowScores) -> tuple[NDArray[np.float32] | None, ...]:
    return scores.probabilities, scores.shares, scores.fused


def _drain(tiles: "SimpleQueue[int]") -> Iterator[int]:
    while True:
        try:
            yield tiles.get_nowait()
        except Empty:
            return


BATCH_ROWS = 2048


@torch.no_grad()
def predict(
    model: Student | FoldedStudent, archive: FeatureArchive, rows: NDArray[np.int64], batch_size: int = BATCH_ROWS
) -> Iterator[StudentOutput]:
    """What the model gives for the given rows, batch by batch, on the model's device, in its dtype.

    For a model that is still in training; `Scorer` is faster for one that is not.
    Raises NonFiniteError naming the teacher and the row when a feature is NaN or infinite.
    """
    match = TeacherMatch(archive.path, archive.teachers, model.config)
    like = next(chain(model.parameters(), model.buffers()))
    for batch in archive.stream(rows, batch_size):
        features, present = match(torch.from_numpy(batch.features).to(like))
        output: StudentOutput = model(features, present)
        if not torch.isfinite(output.logits).all():
            archive.require_finite(batch.rows, batch.features)
            raise NonFiniteError(f"{archive.path}: rows {batch.rows[0]}..{batch.rows[-1]} give non-finite logits")
        yield output
