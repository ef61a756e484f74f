"""Rows of a table for bags: which row gives each slide or patient its value in a column."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MismatchError
from ...tables.cells import without_decimals
from ...tables.reader import Table
from ...tables.slide_names import match_slides, show
from ..bags import Bags

logger = logging.getLogger("shazam_fast")


# Over 40 lines with what it documents.
def rows_of_bags(
    table: Table, bags: Bags, known: NDArray[np.bool_], value: Callable[[int], Any], column: str
) -> NDArray[np.int64]:
    """The first row of the table that gives each bag its value, int64 [n], -1 where none does.

    Args:
        table: with a column of slides, or of patients.
        bags: of slides or of patients.
        known: which rows have a value.
        value: row -> its value, in which the rows of a bag must agree.
        column: where the values stand, for messages.

    Bags without a value are counted in a warning. Raises MismatchError when rows contradict each other (both are
    named), no bag has a value, or the table has neither slides nor patients.
    """
    rows = np.flatnonzero(known)
    if not len(rows):
        raise MismatchError(
            f"{table.where}, column {column!r}: all {len(table)} cells are empty; fill them, or leave the column out"
        )
    names, keys, owners = _owners(table, bags, rows)
    found = np.full(len(bags), -1, dtype=np.int64)
    for row, key in zip(rows.tolist(), keys, strict=True):
        for bag in owners.get(key, ()):
            first = int(found[bag]) if found[bag] >= 0 else row
            if value(first) != value(row):
                raise MismatchError(
                    f"{table.where}, column {column!r}: rows {table.rows[first]} and {table.rows[row]} contradict each "
                    f"other: {bags.names[bag]!r} has {value(first)} and {value(row)}; correct one of them"
                )
            found[bag] = first
    if (found < 0).all():
        raise MismatchError(
            f"{table.where}: none of the {len(bags)} slides or patients of {bags.archive.path} ({show(bags.names)}) "
            f"has a value in column {column!r} there ({show(list(dict.fromkeys(names)))})"
        )
    if without := [bags.names[bag] for bag in np.flatnonzero(found < 0).tolist()]:
        logger.warning(
            "%d of %d bags have no value in column %r of %s: %s",
            len(without), len(bags), column, table.where, show(without),
        )  # fmt: skip
    return found


def texts_of_bags(table: Table, bags: Bags, header: str, needed: NDArray[np.bool_]) -> NDArray[np.str_]:
    """The text of each bag in a column, [n], the same for all bags of a patient; "" where it is unknown.

    Args:
        table, bags: as for `rows_of_bags`.
        header: of the column.
        needed: bool [n], which bags must have a text.

    Raises MismatchError when a needed one is missing, and when bags of a patient differ.
    """
    texts = without_decimals(table.texts(header))
    rows = rows_of_bags(table, bags, texts != "", lambda row: texts[row].item(), header)
    if (missing := np.flatnonzero((rows < 0) & needed)).size:
        raise MismatchError(
            f"{table.where}, column {header!r}: {bags.names[missing[0]]!r} has a target but no value here; fill the "
            "cell, or leave the target empty"
        )
    found = np.where(rows >= 0, texts[rows], "")
    require_one_per_patient(bags, found.tolist(), rows >= 0, f"{table.where}, column {header!r}")
    return found


def require_one_per_patient(bags: Bags, values: list[Any], known: NDArray[np.bool_], where: str) -> None:
    """Raise MismatchError when two bags of a patient have different values; both are named."""
    first: dict[str, int] = {}
    for bag in np.flatnonzero(known).tolist():
        other = first.setdefault(bags.patients[bag], bag)
        if values[other] != values[bag]:
            raise MismatchError(
                f"{where}: patient {bags.patients[bag]!r} has two values, but a patient has one: {values[other]} for "
                f"slide {bags.names[other]!r}, {values[bag]} for slide {bags.names[bag]!r}; correct one of them"
            )


def _owners(
    table: Table, bags: Bags, rows: NDArray[np.int64]
) -> tuple[list[str], list[Any], Mapping[Any, Sequence[int]]]:
    """The name in each of `rows`, its key, and the bags of each key. Raises MismatchError where neither is named."""
    slide, group = table.find("slide"), table.find("group")
    if slide is not None:
        names = table.texts(slide)[rows].tolist()
        return names, *_by_slide(names, table, bags)
    if group is not None:
        names = without_decimals(table.texts(group))[rows].tolist()
        return names, *_by_patient(names, bags)
    raise MismatchError(
        f"{table.where}: a column of slides (slide_id, slide, filename, ...) or of patients expected, found "
        f"{table.headers}"
    )


def _by_slide(names: list[str], table: Table, bags: Bags) -> tuple[list[Any], dict[Any, list[int]]]:
    """The key of each name, and the bags of each key. Names of patients where none of them is a slide."""
    archive = bags.archive
    slides = match_slides(names, archive.slides, table.where, str(archive.path)).tolist()
    if max(slides, default=-1) < 0 and not set(names).isdisjoint(bags.patients):
        return _by_patient(names, bags)
    return slides, {slide: [bag] for bag, members in enumerate(bags.slides) for slide in members}


def _by_patient(names: list[str], bags: Bags) -> tuple[list[Any], dict[Any, list[int]]]:
    owners: dict[Any, list[int]] = {}
    for bag, patient in enumerate(bags.patients):
        owners.setdefault(patient, []).append(bag)
    return list(names), owners
