"""Parts of a native archive: some of its teachers, some of its slides, or every slide as a source to be joined."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError
from ..formats.geometry import NOT_KNOWN, Geometry
from ..formats.pieces import ITEM_BYTES, Contents, Extents, InMemory, Piece, Source


def take_teachers(contents: Contents, teachers: Sequence[str]) -> Contents:
    """The contents of an archive with these teachers, in this order.

    Raises MismatchError for another name, or one that comes twice.
    """
    require_teachers(contents.path, list(contents.teachers), teachers)
    blocks = tuple(_columns_of(contents, teacher) for teacher in teachers)
    return replace(contents, teachers={name: contents.teachers[name] for name in teachers}, blocks=blocks)


def take_teacher(contents: Contents, teacher: str) -> Contents:
    """The teacher of that name in a native archive, or its only one under that name.

    Raises MismatchError when it holds several, none of that name.
    """
    if teacher in contents.teachers:
        return take_teachers(contents, [teacher])
    if len(contents.teachers) > 1:
        raise MismatchError(f"{contents.path}: teacher {teacher!r} not found; it holds {', '.join(contents.teachers)}")
    old, dim = next(iter(contents.teachers.items()))
    record = contents.records.get(old.partition(":")[0])
    records = {teacher.partition(":")[0]: record} if record else {}
    return replace(contents, teachers={teacher: dim}, records=records)


def require_teachers(path: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise MismatchError unless all teachers that are wanted were found at `path`, and each is named once."""
    if absent := [teacher for teacher in wanted if teacher not in found]:
        raise MismatchError(f"{path}: no teacher {absent[0]!r}; found {', '.join(found)}")
    if len(set(wanted)) < len(wanted):
        raise MismatchError(f"teachers: each name once expected, found {list(wanted)}")


def take_slides(contents: Contents, chosen: Sequence[int]) -> Contents:
    """The contents with the patches of some slides (indices into its slides), slide after slide in this order."""
    slide = _column(contents, "slide")
    rows = np.concatenate([np.flatnonzero(slide == index) for index in chosen])
    if not rows.size:
        raise MismatchError(f"{contents.path}: no patches: the {len(chosen)} chosen slides are empty")
    code_of = np.full(len(contents.slides), -1, dtype=np.int32)
    code_of[list(chosen)] = np.arange(len(chosen))
    columns = {name: _column(contents, name)[rows] for name in contents.columns}
    columns["slide"] = code_of[columns["slide"]]
    slides = tuple(contents.slides[index] for index in chosen)
    return replace(
        contents,
        blocks=tuple(_rows_of(block, rows) for block in contents.blocks),
        slides=slides,
        columns={name: InMemory(column) for name, column in columns.items()},
        geometry={slide: contents.geometry[slide] for slide in slides if slide in contents.geometry},
    )


def sources_of(contents: Contents, classes: Mapping[str, int]) -> list[Source]:
    """A source for every teacher and slide of a native archive, with its labels, splits and groups.

    Args:
        contents: the archive.
        classes: class name -> label in the archive that the sources are joined to.

    Raises MismatchError when the archive has named slides and patches of none of them.
    """
    slide = _column(contents, "slide")
    if (lost := int(np.count_nonzero(slide < 0))) and contents.slides:
        raise MismatchError(
            f"{contents.path}: {lost} of its {len(slide)} patches belong to no slide, so they cannot be joined with "
            "other files; open it with slides=[...] and write the patches of these slides with shazam_fast.convert"
        )
    recode = np.array([*(classes[name] for name in contents.classes), -1], dtype=np.int64)  # the last for -1
    columns: dict[str, NDArray[Any]] = {
        "labels": recode[_column(contents, "label")],
        "splits": _column(contents, "split").astype(np.uint8),
        "groups": np.array([*contents.groups, ""])[_column(contents, "group")],
        "coords": _column(contents, "coords"),
    }
    order = np.argsort(slide, kind="stable")
    names = contents.slides or ("",)
    cuts = np.searchsorted(slide[order], np.arange(1, len(names)))
    return [
        Source(teacher, name, os.fspath(contents.path), partial(_read_slide, block, columns, rows, geometry))
        for teacher in contents.teachers
        for block in [_columns_of(contents, teacher)]
        for name, rows in zip(names, np.split(order, cuts), strict=True)
        for geometry in [contents.geometry.get(name, NOT_KNOWN)]
    ]


def _read_slide(
    teacher: Extents, columns: Mapping[str, NDArray[Any]], rows: NDArray[np.int64], geometry: Geometry
) -> Piece:
    block = _rows_of(teacher, rows)
    coords = columns["coords"][rows]
    return Piece(
        block.columns,
        block.dtype,
        block.table[:, 1:],
        coords=None if (coords == -1).all() else coords,
        labels=columns["labels"][rows],
        splits=columns["splits"][rows],
        groups=columns["groups"][rows],
        geometry=geometry,
        files=tuple(block.files[index] for index in block.table[:, 0]),
    )


def _column(contents: Contents, name: str) -> NDArray[np.int64]:
    return contents.columns[name]().astype(np.int64)


def _columns_of(contents: Contents, teacher: str) -> Extents:
    """One teacher's columns of the block that holds them."""
    names = list(contents.teachers)
    first = sum(contents.teachers[name] for name in names[: names.index(teacher)])
    blocks = iter(contents.blocks)
    while first >= (block := next(blocks)).columns:
        first -= block.columns
    shift = np.array([0, first * ITEM_BYTES[block.dtype], 0, 0])
    return replace(block, columns=contents.teachers[teacher], table=block.table + shift)


def _rows_of(block: Extents, rows: NDArray[np.int64]) -> Extents:
    """Some rows of a matrix, in this order, as few extents as that allows."""
    file, offset, count, stride = block.table.T
    first = np.cumsum(count) - count
    extent = np.searchsorted(first, rows, side="right") - 1
    place = offset[extent] + (rows - first[extent]) * stride[extent]
    if not rows.size:
        return replace(block, table=np.empty((0, 4), dtype=np.int64))
    together = (np.diff(place) == stride[extent[:-1]]) & (np.diff(file[extent]) == 0)
    starts = np.concatenate([[0], np.flatnonzero(~together) + 1])
    lengths = np.diff(np.append(starts, len(rows)))
    table = np.stack([file[extent[starts]], place[starts], lengths, stride[extent[starts]]], axis=1)
    return replace(block, table=table)
