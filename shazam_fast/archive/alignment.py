"""Align the rows of one slide's teachers by coordinates; any mismatch is an error."""

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ..errors import MismatchError, NotInPlaceError
from ..formats.geometry import Geometry, merge_geometry
from ..formats.pieces import SPLITS, Coords, Piece, Source, StoredCoords, read_coords
from .matrices import Loads

logger = logging.getLogger("shazam_fast")

FIELDS = {"label": "labels", "split": "splits", "group": "groups"}  # column -> attribute of Piece
NOTHING: Mapping[str, Any] = {"label": -1, "split": SPLITS["none"], "group": ""}  # the value for unknown
NO_COLUMNS: Mapping[str, NDArray[Any] | None] = dict.fromkeys(FIELDS)


class Joined(msgspec.Struct, frozen=True, eq=False):
    """One slide: a piece per teacher, with rows in the same order, and the columns that the files hold.

    Attributes:
        pieces: teacher -> its piece.
        n_rows: number of patches.
        coords: [n_rows, 2], int32 or float32; None without coordinates.
        columns: "label", "split" and "group" -> [n_rows], None where no file has it.
        geometry: where the patches lie.
    """

    pieces: Mapping[str, Piece]
    n_rows: int
    coords: Coords | None
    columns: Mapping[str, NDArray[Any] | None]  # label, split, group
    geometry: Geometry


def join_slide(sources: Mapping[str, Source], loads: Loads | None) -> Joined:
    """The slide's pieces in the order of the first teacher's rows.

    Args:
        sources: teacher -> its file of the slide.
        loads: None if files that cannot be memory-mapped are an error.

    Raises MismatchError when the files do not hold the same patches; ArchiveError when one cannot be read.
    """
    pieces = {teacher: _read(source, loads) for teacher, source in sources.items()}
    base, *others = sources
    geometry = pieces[base].geometry
    for other in others:
        merged = merge_geometry(geometry, pieces[other].geometry)
        if isinstance(merged, str):
            raise MismatchError(
                f"{sources[base].file} ({base!r}) and {sources[other].file} ({other!r}) hold other patches of one "
                f"slide: {merged}; open teachers together that were extracted with the same patches"
            )
        geometry = merged
        pieces[other] = _align(sources[base], pieces[base], sources[other], pieces[other])
    columns, coords = NO_COLUMNS, None
    for piece in pieces.values():
        coords = piece.coords if coords is None else coords
        if piece.labels is not None or piece.splits is not None or piece.groups is not None:
            columns = {name: _agreed(name, field, sources, pieces) for name, field in FIELDS.items()}
    return Joined(pieces, pieces[base].n_rows, coords, columns, geometry)


def _read(source: Source, loads: Loads | None) -> Piece:
    try:
        return source.read()
    except NotInPlaceError:
        if loads is None or source.load is None:
            raise
        return source.load()


def _agreed(name: str, field: str, sources: Mapping[str, Source], pieces: Mapping[str, Piece]) -> NDArray[Any] | None:
    """One column, merged from all files: they may leave rows unknown, but must not contradict each other."""
    column: NDArray[Any] | None = None
    first = ""
    for teacher, piece in pieces.items():
        given = getattr(piece, field)
        if given is None:
            continue
        if column is None:
            column, first = given, teacher
            continue
        differ = np.flatnonzero((column != given) & (column != NOTHING[name]) & (given != NOTHING[name]))
        if differ.size:
            row = differ[0]
            raise MismatchError(
                f"{field} in {sources[first].file} and {sources[teacher].file} differ: {column[row]!s} and "
                f"{given[row]!s} in row {row}"
            )
        column = np.where(column == NOTHING[name], given, column)
    return column


def _align(base: Source, reference: Piece, source: Source, piece: Piece) -> Piece:
    """The piece with its rows in the order of the reference."""
    if reference.coords is None or piece.coords is None:
        if piece.n_rows != reference.n_rows:
            raise _rows_differ(
                base,
                reference,
                source,
                piece,
                "at least one has no coordinates to match them by",
            )
        if (reference.coords is None) is not (piece.coords is None):
            _say_joined_by_number(base.teacher, source.teacher)
        return piece
    if _have_equal_digests(reference.coords, piece.coords):
        return piece
    expected, found = read_coords(reference.coords), read_coords(piece.coords)
    order = _matching_order(expected, found)
    if order is None:
        raise _rows_differ(base, reference, source, piece, _first_difference(expected, found))
    if np.array_equal(order, np.arange(len(order))):
        return piece
    runs, files = _reorder(piece, order)
    return replace(
        piece,
        runs=runs,
        files=files,
        coords=found[order],
        labels=None if piece.labels is None else piece.labels[order],
        splits=None if piece.splits is None else piece.splits[order],
        groups=None if piece.groups is None else piece.groups[order],
    )


def _have_equal_digests(left: Coords, right: Coords) -> bool:
    """Whether two pieces' positions are known to be equal, row by row, without reading them."""
    if isinstance(left, StoredCoords) and isinstance(right, StoredCoords):
        return left.digest == right.digest != b""
    return False


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


def _reorder(piece: Piece, order: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The piece's runs and their files with its rows in another order, as few runs as that allows."""
    first, rows, stride = piece.runs.T
    run = np.repeat(np.arange(len(rows)), rows)
    within = np.arange(rows.sum()) - np.repeat(rows.cumsum() - rows, rows)
    offsets, run = (first[run] + within * stride[run])[order], run[order]
    step = int(stride[0])
    names = dict.fromkeys(piece.files)
    file = np.array([list(names).index(name) for name in piece.files] or [0] * len(rows))[run]
    starts = np.concatenate([[0], np.flatnonzero((np.diff(offsets) != step) | (np.diff(file) != 0)) + 1])
    lengths = np.diff(np.append(starts, len(offsets)))
    runs = np.stack([offsets[starts], lengths, np.full(len(starts), step)], axis=1)
    return runs, tuple(piece.files[index] for index in run[starts]) if piece.files else ()


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
        logger.warning("%r or %r has no coordinates: their rows are matched by number", base, other)
