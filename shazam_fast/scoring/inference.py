"""The one inference loop: batches of an archive's features through a student, for scoring and for validation.

A student is brought into one of two forms that take the archive's columns as they lie: `ArchiveForm` in PyTorch, which
the loop runs, or `CoreForm` in the compiled core, which writes its results to where they belong.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from queue import SimpleQueue
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _core
from ..archive.archive import FeatureArchive
from ..errors import NonFiniteError
from ..student.folded import FoldedStudent
from ..student.influence import influence_of, leave_one_out
from ..student.matching import TeacherMatch, require_same_features
from ..student.output import StudentOutput
from ..student.student import Student

SPOILT_ROWS = 16  # most rows whose logits one NaN spoils: those that a GPU kernel computes together

Features = TypeVar("Features")
Place = TypeVar("Place")


@dataclass(frozen=True)
class RowScores:
    """Scores of n rows.

    Args:
        probabilities: float32 [n, C].
        shares: float32 [n, N]; None for residual students.
        fused: float32 [n, D]; None unless asked for.
        influence: float32 [n, E]; None unless asked for.
    """

    probabilities: NDArray[np.float32]
    shares: NDArray[np.float32] | None
    fused: NDArray[np.float32] | None
    influence: NDArray[np.float32] | None = None


def store_output(targets: Sequence[Tensor | None], start: int, output: StudentOutput) -> None:
    """Probabilities, shares, fused features and influence of a batch into the targets that are wanted."""
    probabilities, shares, fused, influence = targets
    here = slice(start, start + len(output.logits))
    assert probabilities is not None
    probabilities[here] = output.logits.softmax(dim=1)
    if shares is not None and output.shares is not None:
        shares[here] = output.shares
    if fused is not None:
        fused[here] = output.fused
    if influence is not None:
        assert output.withheld is not None, "it was asked for"
        influence[here] = influence_of(output.logits, output.withheld)


@torch.inference_mode()
def infer(
    form: Callable[[Features], StudentOutput], batches: Iterable[tuple[Place, Features]]
) -> Iterator[tuple[Place, StudentOutput]]:
    """Run a student over batches.

    Args:
        form: the student as a function of the archive's features.
        batches: which rows they are, and features [B, archive's width], of each batch.

    Returns rows and output of each batch; the output is valid until the next batch is asked for.
    """
    for place, features in batches:
        yield place, form(features)


def match_teachers(student: Student, archive: FeatureArchive, allow_missing_teachers: bool = False) -> TeacherMatch:
    """How the archive's columns become the student's.

    Raises MismatchError when teachers are missing or of another width, or their features were made with another
    transform, pooling or revision of the weights than those that the student was trained on, where both say so.
    """
    match = TeacherMatch(archive.path, archive.teachers, student.config, allow_missing_teachers)
    require_same_features(archive.path, archive.records, student.training_record.get("teachers", {}))
    return match


class ArchiveForm:
    """A student in PyTorch that takes an archive's features as they are stored: columns matched, on its device.

    Args:
        model: the student.
        match: how columns are matched.
        influence: whether outputs have `withheld`.
    """

    def __init__(self, model: Student | FoldedStudent, match: TeacherMatch, influence: bool = False) -> None:
        self._model, self._match = model, match
        self._device = next(chain(model.parameters(), model.buffers())).device
        self._keep = leave_one_out(model.config).to(self._device) if influence else None

    def __call__(self, features: Tensor) -> StudentOutput:
        """Features [B, archive's width] -> output."""
        matched, present = self._match(features.to(self._device))
        if self._keep is not None:
            return self._model.withhold(matched, self._keep, present)
        output: StudentOutput = self._model(matched, present)
        return output


class CoreForm:
    """A folded student in the compiled core, for one thread, which writes its results to where they belong.

    Args:
        core: the student there; threads share it.
        starts: first of the archive's columns of each of the student's teachers, -1 for missing ones.
        value_map: C_K [D, D], from pooled to fused features.
        scores: of all rows; `probabilities` gets logits.
        most: rows of the largest tile.
    """

    def __init__(
        self, core: _core.FoldedStudent, starts: list[int], value_map: Tensor, scores: RowScores, most: int
    ) -> None:
        self._core, self._starts, self._value_map, self._scores = core, starts, value_map, scores
        self._pooled = np.empty((most, len(value_map)), np.float32)
        withheld = 0 if scores.influence is None else len(starts) * most * scores.probabilities.shape[1]
        self._withheld = np.empty(withheld, np.float32)

    def __call__(self, start: int, features: NDArray[Any]) -> None:
        """Score the rows from `start` on, given their features as stored [B, archive's width]."""
        scores, here, pooled = self._scores, slice(start, start + len(features)), self._pooled[: len(features)]
        assert scores.shares is not None, "only bare students fold"
        logits, withheld = scores.probabilities[here], None
        if scores.influence is not None:
            shape = (len(self._starts), *logits.shape)
            withheld = self._withheld[: math.prod(shape)].reshape(shape)
        self._core.forward(features, self._starts, logits, scores.shares[here], pooled, withheld)
        if scores.fused is not None:
            scores.fused[here] = torch.from_numpy(pooled) @ self._value_map
        if scores.influence is not None and withheld is not None:
            scores.influence[here] = influence_of(torch.from_numpy(logits), torch.from_numpy(withheld))


class Chunk:
    """Room for rows that are read at a time: features [chunk, width], or None where the page cache is the room."""

    def __init__(self, buffer: NDArray[Any] | None) -> None:
        self.buffer = buffer
        self.left = 0  # tiles that are not scored yet


class Tiles:
    """Tiles of rows that one thread reads from the disk, a chunk at a time, and others score.

    Args:
        rooms: where chunks may lie, one that is read or scored in each: a buffer [chunk, width], or None where the page
            cache is the room.
        tile_rows: rows per tile.
    """

    def __init__(self, rooms: Sequence[NDArray[Any] | None], tile_rows: int) -> None:
        self._tile_rows = tile_rows
        self._read: SimpleQueue[tuple[int, NDArray[Any] | None, Chunk] | None] = SimpleQueue()
        self._room: SimpleQueue[Chunk | None] = SimpleQueue()
        for buffer in rooms:
            self._room.put(Chunk(buffer))
        self._lock = Lock()  # guards the chunks' counts
        self._stopped = False

    def wait_for_room(self) -> Chunk | None:
        """Wait until another chunk may be read, and where; None once threads are to stop."""
        chunk = self._room.get()
        return None if self._stopped else chunk

    def put(self, start: int, stop: int, chunk: Chunk, features: NDArray[Any] | None) -> None:
        """Hand out the tiles of rows [start, stop), one chunk; `features` of these rows if they are in its buffer."""
        starts = range(start, stop, self._tile_rows)
        chunk.left = len(starts)
        for tile in starts:
            mine = None if features is None else features[tile - start : tile - start + self._tile_rows]
            self._read.put((tile, mine, chunk))

    def end(self, threads: int) -> None:
        """There are no more tiles."""
        for _ in range(threads):
            self._read.put(None)

    def stop(self) -> None:
        """Let no thread take another tile, nor the reader wait."""
        self._stopped = True
        self._room.put(None)

    def __iter__(self) -> Iterator[tuple[int, NDArray[Any] | None]]:
        """Start of a tile, and its features if they are in a buffer, which are valid until the next is asked for."""
        while (tile := self._read.get()) is not None and not self._stopped:
            start, features, chunk = tile
            yield start, features
            with self._lock:
                chunk.left -= 1
                finished = chunk.left == 0
            if finished:
                self._room.put(chunk)


def require_finite_results(archive: FeatureArchive, rows: NDArray[np.int64], results: NDArray[np.floating]) -> None:
    """Check the results [n] of the given rows of an archive.

    Raises NonFiniteError when one is NaN or infinite: naming the teacher if a feature of that row is, or of one that
    was computed together with it; else the row.
    """
    bad = np.flatnonzero(~np.isfinite(results))
    if bad.size:
        first = rows[bad[:SPOILT_ROWS]]
        archive.require_finite(first, archive.gather(first))
        raise NonFiniteError(
            f"{archive.path}: row {first[0]} gives non-finite logits: its features are too large for the student's "
            "dtype; scale them, or compute with student.double()"
        )
