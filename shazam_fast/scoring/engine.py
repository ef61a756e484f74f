"""Scoring rows of an archive in tiles: read the features, run the student, store its output.

The scores of a patch depend on the rows of its tile alone, not on threads, parts, or what was scored before.
"""

import copy
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import chain, pairwise
from threading import Barrier
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _core
from ..archive.archive import FeatureArchive
from ..errors import ArchiveError
from ..runtime.memory import exceeds_memory
from ..student.folded import FoldedStudent
from ..student.student import Student
from .gpu.streaming import Shapes, gpu_tile_rows, score_stream
from .inference import (
    ArchiveForm,
    CoreForm,
    RowScores,
    Tiles,
    infer,
    match_teachers,
    require_finite_results,
    store_output,
)

TILE_ROWS = 240  # rows per tile, one thread's work on the CPU; a multiple of the 12 rows that its products take
CHUNK_BYTES = 8 << 20  # bytes of features that are read from the disk at a time
CHUNKS_AHEAD = 16  # number of chunks that are read and not scored yet: 0.1 s of a fast disk, which may pause
BUFFERED_AHEAD = 8  # the same where chunks lie in buffers of our own
NO_ROWS = np.empty(0, np.int64)
STORED = {"float16": torch.float16, "bfloat16": torch.uint16, "float32": torch.float32}  # as `gather` takes them


class Scorer:
    """Scores rows of an archive with a student in its fastest exact form; use it as a context manager.

    Args:
        student: the student; it stays as it is, a copy or its folded form computes.
        archive: where the features are.
        device: where to compute.
        fused: whether fused features are wanted.
        allow_missing_teachers: accept missing teachers though the student was trained without teacher dropout.
        influence: whether the influence of each encoder is wanted; two at least must be there.

    On the CPU every thread takes whole tiles, so that threads share no matrix product and no cache. Tiles are read from
    the disk before, one after another by a single thread: what several threads read in turns, the system takes for
    random reads, at a quarter of the disk's rate, and to announce them costs more than to read them. Features that
    would fill much of the machine's memory are read past the page cache: to fill it took a third of the processor's
    time, for bytes that are needed once. On a GPU tiles are gathered into pinned memory and copied on a stream of their
    own while the ones before are computed.

    Raises MismatchError when the archive's teachers are not the student's, see `match_teachers`.
    """

    def __init__(
        self,
        student: Student,
        archive: FeatureArchive,
        device: torch.device,
        *,
        fused: bool,
        allow_missing_teachers: bool,
        influence: bool = False,
    ) -> None:
        self.match = match_teachers(student, archive, allow_missing_teachers)
        self._student, self._config = student, student.config
        self._archive, self._device, self._fused, self._influence = archive, device, fused, influence
        self._threads_before = torch.get_num_threads()
        self._threads = self._threads_before if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        self._core: _core.FoldedStudent | None = None
        self._chunk_rows = max(1, CHUNK_BYTES // (TILE_ROWS * archive.row_bytes)) * TILE_ROWS
        self._rooms: list[NDArray[Any] | None] = [None] * CHUNKS_AHEAD  # where chunks lie, see Tiles

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            self._model = to_scoring_form(self._student, self._device)
            return self
        # OpenMP keeps a number of threads for every thread, MKL one for all: both are set, until we leave.
        torch.set_num_threads(1)
        try:
            self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
            everyone = Barrier(self._threads)
            wait([self._pool.submit(everyone.wait) for _ in range(self._threads)])
            # Folded by one thread too, as more would round in another order.
            self._model = to_scoring_form(self._student, self._device)
            if isinstance(self._model, FoldedStudent) and (core := self._model.to_core()):
                self._core, self._value_map = core, self._model.value_map
                del self._model  # the core has a copy
            if exceeds_memory(self._archive.n_rows * self._archive.row_bytes, often=False):
                self._rooms = [self._empty(self._chunk_rows) for _ in range(BUFFERED_AHEAD)]
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def score(self, rows: NDArray[np.int64], then: NDArray[np.int64] = NO_ROWS) -> RowScores:
        """Scores of the given rows, int64 [n].

        then: int64 [m], what will be asked for next; on the CPU its first rows are read from the disk while the last
        ones of `rows` are computed.

        Raises NonFiniteError naming the teacher and the first row with a NaN or infinite feature, or the first row
        with such a logit.
        """
        if self._pool is None:
            (scores,) = self._stream([rows], len(rows))
            return scores
        arrays = (None if shape is None else np.empty(shape, np.float32) for shape in self._shapes(len(rows)))
        scores = RowScores(*arrays)  # type: ignore[arg-type]
        self._share_out(rows, then, scores, self._pool)
        if self._core is not None:
            logits = torch.from_numpy(scores.probabilities)
            logits.copy_(logits.softmax(dim=1))
        self._check(rows, scores)
        return scores

    def score_parts(self, parts: Iterable[NDArray[np.int64]], most: int) -> Iterator[RowScores]:
        """Scores of part after part; on a GPU the next one's tiles are under way before a part's scores are waited for.

        Args:
            parts: the rows of each, int64 [n], n at least 1.
            most: rows of the largest part.

        Raises as `score`, at the part that has the fault.
        """
        if self._pool is None:
            yield from self._stream(parts, most)
            return
        for rows, following in pairwise(chain(parts, [NO_ROWS])):
            yield self.score(rows, following)

    def _shapes(self, n: int) -> Shapes:
        """Of the scores of n rows."""
        config = self._config
        return (
            (n, len(config.classes)),
            (n, len(config.teachers)) if config.block == "bare" else None,
            (n, config.dim) if self._fused else None,
            (n, len(config.encoder_names)) if self._influence else None,
        )

    def _check(self, rows: NDArray[np.int64], scores: RowScores) -> None:
        results = scores.probabilities.sum(axis=1)
        if scores.influence is not None:
            results += scores.influence.sum(axis=1)
        require_finite_results(self._archive, rows, results)

    def _leave(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        if self._device.type == "cpu":
            torch.set_num_threads(self._threads_before)

    def _share_out(
        self, rows: NDArray[np.int64], then: NDArray[np.int64], scores: RowScores, pool: ThreadPoolExecutor
    ) -> None:
        """Tiles of rows to the threads of the CPU, as soon as they were read from the disk."""
        tiles = Tiles(self._rooms, TILE_ROWS)
        work = [pool.submit(self._take_tiles, tiles, rows, scores) for _ in range(self._threads)]
        try:
            for start in range(0, len(rows), self._chunk_rows):
                chunk = tiles.wait_for_room()
                if chunk is None:
                    break
                here = rows[start : start + self._chunk_rows]
                tiles.put(start, start + len(here), chunk, self._read_chunk(here, chunk.buffer))
            tiles.end(self._threads)
            if self._rooms[0] is None:
                self._read_first(then, tiles)
        except BaseException:
            tiles.stop()
            tiles.end(self._threads)
            raise
        finally:
            wait(work)
        for task in work:
            task.result()

    def _read_chunk(self, rows: NDArray[np.int64], buffer: NDArray[Any] | None) -> NDArray[Any] | None:
        """Read rows from the disk: into the buffer, returned as far as it is filled, or into the page cache."""
        if buffer is None:
            self._archive.read_ahead(rows)
        elif self._archive.gather_past_cache(rows, buffer[: len(rows)]):
            return buffer[: len(rows)]
        return None

    def _read_first(self, then: NDArray[np.int64], tiles: Tiles) -> None:
        """Read the first chunks of other rows, as room is made for them."""
        with suppress(ArchiveError):  # whoever scores these rows meets it again
            for start in range(0, min(len(then), CHUNKS_AHEAD * self._chunk_rows), self._chunk_rows):
                if tiles.wait_for_room() is None:
                    break
                self._archive.read_ahead(then[start : start + self._chunk_rows])

    def _take_tiles(self, tiles: Tiles, rows: NDArray[np.int64], scores: RowScores) -> None:
        try:
            self._score_tiles(tiles, rows, scores)
        except BaseException:
            tiles.stop()  # the others
            raise

    def _score_tiles(self, tiles: Tiles, rows: NDArray[np.int64], scores: RowScores) -> None:
        size = min(TILE_ROWS, len(rows))
        gathered = self._gathered(tiles, rows, self._empty(size))
        if self._core is not None:
            form = CoreForm(self._core, self.match.starts, self._value_map, scores, size)
            for start, features in gathered:
                form(start, features)
            return
        targets = [None if array is None else torch.from_numpy(array) for array in _parts(scores)]
        batches = ((start, torch.from_numpy(features)) for start, features in gathered)
        for start, output in infer(ArchiveForm(self._model, self.match, self._influence), batches):
            store_output(targets, start, output)

    def _empty(self, rows: int) -> NDArray[Any]:
        """Room for features of some rows, as the model takes them: the core widens on its way."""
        dtype = torch.float32 if self._core is None else STORED[self._archive.dtype]
        return torch.empty(rows, self._archive.width, dtype=dtype).numpy()

    def _gathered(
        self, tiles: Tiles, rows: NDArray[np.int64], buffer: NDArray[Any]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Features of one tile after another, as far as there are any left; `buffer` holds one at a time."""
        for start, features in tiles:
            if features is not None:
                yield start, features
                continue
            here = rows[start : start + TILE_ROWS]
            yield start, self._archive.gather(here, out=buffer[: len(here)], threads=1)

    def _stream(self, parts: Iterable[NDArray[np.int64]], most: int) -> Iterator[RowScores]:
        """The same on a CUDA device, all parts in one stream."""
        form = ArchiveForm(self._model, self.match, self._influence)
        size = min(gpu_tile_rows(self._archive, self._config), most)
        for rows, scores in score_stream(form, self._archive, parts, size, self._shapes, self._device):
            self._check(rows, scores)
            yield scores


def to_scoring_form(student: Student, device: torch.device) -> Student | FoldedStudent:
    """The student in its fastest exact form, on `device`; the caller's own is left where it is."""
    if student.config.block != "bare":
        return copy.deepcopy(student).to(device).eval()
    folded = student.fold().to(device).eval()
    return folded.split() if device.type == "cuda" else folded


def _parts(scores: RowScores) -> tuple[NDArray[Any] | None, ...]:
    return scores.probabilities, scores.shares, scores.fused, scores.influence
