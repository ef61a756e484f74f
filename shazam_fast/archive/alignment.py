"""Rows of several teachers joined by slide and coordinates, never by hope."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError
from ..formats.pieces import Contents, DTypeName, Extents, Piece, Source
from ..runtime.progress import Progress

logger = logging.getLogger("shazam_fast")


def join(path: Path, sources: Sequence[Source], slides: Sequence[str] | None = None) -> Contents:
    """One archive from every teacher's files.

    Rows of a slide are joined by coordinates where files have them, in whatever order, and by row number where
    one has none and the counts match. `slides` names the slides to open; all of them by default.

    Raises MismatchError naming both files, the first row that differs and the counts, when two teachers do not hold
    the same patches; ArchiveError when a file cannot be read in place.
    """
    by_teacher: dict[str, dict[str, Source]] = {}
    for source in sources:
        by_teacher.setdefault(source.teacher, {})[source.slide] = source
    names = _common_slides(path, by_teacher, slides)
    matrices = {teacher: _Matrix(teacher) for teacher in by_teacher}
    rows, coords, labels = [], [], []
    with Progress(f"opening {path.name}", len(names), "slides") as progress:
        for slide in names:
            joined = _join_slide([by_teacher[teacher][slide] for teacher in by_teacher])
            for teacher, piece in zip(by_teacher, joined.pieces, strict=True):
                matrices[teacher].append(by_teacher[teacher][slide].file, piece)
            rows.append(joined.pieces[0].n_rows)
            coords.append(joined.coords)
            labels.append(joined.labels)
            progress.advance(1)
    if sum(rows) == 0:
        raise MismatchError(f"{path}: no patches: all {len(names)} slides are empty")
    blocks = tuple(matrix.extents() for matrix in matrices.values())
    known: dict[str, NDArray[Any]] = {}
    if names != [""]:
        known["slide"] = np.repeat(np.arange(len(names), dtype=np.int32), rows)
    if any(c is not None for c in coords):
        known["coords"] = _concatenate(coords, rows, (2,))
    if any(c is not None for c in labels):
        known["label"] = _concatenate(labels, rows, ())
    return Contents(
        path=path,
        teachers={teacher: block.columns for teacher, block in zip(by_teacher, blocks, strict=True)},
        blocks=blocks,
        classes=tuple(str(c) for c in range(int(known["label"].max()) + 1)) if "label" in known else (),
        slides=tuple(names) if names != [""] else (),
        columns={name: constant(column) for name, column in known.items()},
    )


@dataclass(frozen=True)
class _Joined:
    """A slide's pieces, one a teacher, brought into the same order of rows."""

    pieces: list[Piece]
    coords: NDArray[np.generic] | None
    labels: NDArray[np.int64] | None


class _Matrix:
    """Extents of one teacher, slide after slide."""

    def __init__(self, teacher: str) -> None:
        self._teacher = teacher
        self._files: list[str] = []
        self._tables: list[NDArray[np.int64]] = []
        self._like: tuple[Path, int, DTypeName] | None = None

    def append(self, file: Path, piece: Piece) -> None:
        if piece.n_rows == 0:
            return  # an empty slide; it may not even say how wide it would be
        if self._like is None:
            self._like = (file, piece.columns, piece.dtype)
        first, columns, dtype = self._like
        if (piece.columns, piece.dtype) != (columns, dtype):
            raise MismatchError(
                f"teacher {self._teacher!r}: {first} holds {columns} columns of {dtype}, "
                f"{file} {piece.columns} of {piece.dtype}; were they made by the same encoder?"
            )
        index = np.full((len(piece.runs), 1), len(self._files), dtype=np.int64)
        self._files.append(os.fspath(file))
        self._tables.append(np.concatenate([index, piece.runs], axis=1))

    def extents(self) -> Extents:
        assert self._like is not None, "join refuses archives without rows"
        _, columns, dtype = self._like
        return Extents(columns, dtype, tuple(self._files), np.concatenate(self._tables))


def _common_slides(
    path: Path, by_teacher: Mapping[str, Mapping[str, Source]], slides: Sequence[str] | None
) -> list[str]:
    first, *others = by_teacher
    if slides is not None:
        for teacher, found in by_teacher.items():
            missing = [slide for slide in slides if slide not in found]
            if missing:
                raise MismatchError(f"{path}: teacher {teacher!r} has no slide {missing[0]!r} ({len(missing)} missing)")
        return list(slides)
    for other in others:
        left, right = by_teacher[first], by_teacher[other]
        lone = sorted(left.keys() ^ right.keys())
        if lone:
            slide = lone[0]
            has, lacks = (first, other) if slide in left else (other, first)
            raise MismatchError(
                f"{path}: slides of two teachers do not match: {first!r} has {len(left)}, {other!r} has {len(right)}; "
                f"{by_teacher[has][slide].file} has no counterpart of {lacks!r} ({len(lone)} such slides). "
                "Extract the missing ones, or choose with slides=[...]"
            )
    return sorted(by_teacher[first])


def _join_slide(sources: Sequence[Source]) -> _Joined:
    pieces = [source.read() for source in sources]
    base, *others = range(len(pieces))
    for other in others:
        pieces[other] = _align(sources[base], pieces[base], sources[other], pieces[other])
    labelled = [(source, piece) for source, piece in zip(sources, pieces, strict=True) if piece.labels is not None]
    for source, piece in labelled[1:]:
        if not np.array_equal(piece.labels, labelled[0][1].labels):  # type: ignore[arg-type]
            raise MismatchError(f"labels in {labelled[0][0].file} and {source.file} differ")
    coords = next((piece.coords for piece in pieces if piece.coords is not None), None)
    return _Joined(pieces, coords, labelled[0][1].labels if labelled else None)


def _align(base: Source, reference: Piece, source: Source, piece: Piece) -> Piece:
    """The piece with its rows in the order of the reference."""
    if reference.coords is None or piece.coords is None:
        if piece.n_rows != reference.n_rows:
            raise _rows_differ(base, reference, source, piece, "at least one has no coordinates to join by")
        if (reference.coords is None) is not (piece.coords is None):
            _say_joined_by_number(base.teacher, source.teacher)
        return piece
    order = _matching_order(reference.coords, piece.coords)
    if order is None:
        raise _rows_differ(base, reference, source, piece, _first_difference(reference.coords, piece.coords))
    if np.array_equal(order, np.arange(len(order))):
        return piece
    labels = None if piece.labels is None else piece.labels[order]
    return Piece(piece.columns, piece.dtype, _reorder(piece.runs, order), piece.coords[order], labels)


def _matching_order(reference: NDArray[np.generic], coords: NDArray[np.generic]) -> NDArray[np.int64] | None:
    """Which row of `coords` belongs to each row of `reference`; None when they are not the same positions.

    Repeated positions have no unique order, so they match only where both files have them in the same one.
    """
    if reference.shape != coords.shape:
        return None
    if np.array_equal(reference, coords):
        return np.arange(len(reference))
    left, right = np.lexsort(reference.T), np.lexsort(coords.T)
    ordered = reference[left]
    if not np.array_equal(ordered, coords[right]) or (ordered[1:] == ordered[:-1]).all(axis=1).any():
        return None
    order = np.empty(len(left), dtype=np.int64)
    order[left] = right
    return order


def _reorder(runs: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The runs' rows in another order, as few runs as that allows."""
    first, rows, stride = runs.T
    within = np.arange(rows.sum()) - np.repeat(rows.cumsum() - rows, rows)
    offsets = (np.repeat(first, rows) + within * np.repeat(stride, rows))[order]
    step = int(stride[0])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(offsets) != step) + 1])
    lengths = np.diff(np.append(starts, len(offsets)))
    return np.stack([offsets[starts], lengths, np.full(len(starts), step)], axis=1)


def _first_difference(reference: NDArray[np.generic], coords: NDArray[np.generic]) -> str:
    left, right = ([tuple(row) for row in c.tolist()] for c in (reference, coords))
    for mine, theirs in ((left, set(right)), (right, set(left))):
        row = next((i for i, position in enumerate(mine) if position not in theirs), None)
        if row is not None:
            where = "first" if mine is left else "second"
            return f"position {mine[row]} in row {row} of the {where} is not in the other"
    row = next((i for i, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), len(left))
    return f"positions repeat, and in another order from row {row} on"


def _rows_differ(base: Source, reference: Piece, source: Source, piece: Piece, why: str) -> MismatchError:
    return MismatchError(
        f"rows of two teachers do not match: {base.file} ({base.teacher!r}) has {reference.n_rows}, "
        f"{source.file} ({source.teacher!r}) has {piece.n_rows}; {why}"
    )


_said: set[tuple[str, str]] = set()


def _say_joined_by_number(base: str, other: str) -> None:
    if (base, other) not in _said:
        _said.add((base, other))
        logger.warning("%r or %r has no coordinates: their rows are joined by number", base, other)


def _concatenate(
    parts: Sequence[NDArray[np.generic] | None], rows: Sequence[int], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Columns of all slides one after another, -1 where a slide has none; integers as int32 where they fit."""
    filled = [np.full((n, *shape), -1) if part is None else part for part, n in zip(parts, rows, strict=True)]
    column = np.concatenate([part for part in filled if len(part)])
    narrow = column.astype(np.int32 if shape else np.int64)
    return narrow if np.array_equal(narrow, column) else column.astype(np.float32)


def constant(column: NDArray[Any]) -> Callable[[], NDArray[Any]]:
    """A column that is in memory already, as `Contents.columns` wants it."""
    return lambda: column
