"""Assign rows of a table to patches: by slide, by position within a slide, or by patient."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError
from ..formats.pieces import UNKNOWN, Contents
from ..tables.cells import read_numbers, without_decimals
from ..tables.reader import Table
from ..tables.slide_names import match_slides, show
from .columns import check_indices

logger = logging.getLogger("shazam_fast")

FARTHEST = 1 << 31  # positions at level 0 are int32 in archives


@dataclass(frozen=True)
class Patches:
    """The patches of an archive, to which the rows of tables are assigned."""

    contents: Contents

    @cached_property
    def n_rows(self) -> int:
        """Number of patches."""
        return int(self.contents.blocks[0].table[:, 2].sum())

    @cached_property
    def slides(self) -> NDArray[np.int64]:
        """Index of every patch's slide [n_rows], -1 unknown. Raises ArchiveError when one is out of range."""
        return self._indices("slide", self.contents.slides)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """Index of every patch's group (patient) [n_rows], -1 unknown. Raises ArchiveError when one is out of range."""
        return self._indices("group", self.contents.groups)

    def find_rows(
        self, table: Table, header: str, values: NDArray[np.str_], what: str, required: bool = True
    ) -> NDArray[np.int64]:
        """The row of the table that gives each patch its value [n_rows], -1 where none does.

        Args:
            table: with columns of slides; of slides, x and y; or of patients.
            header: the column that the values are of.
            values: [rows of the table] the labels, splits or groups, "" unknown. Repeated rows must have equal values.
            what: "labels", "splits" or "groups", for messages.
            required: whether a table without a value for any patch is an error, or only a warning.

        Rows without a patch in the archive, and slides, patches or patients without a row, are counted in a warning
        with examples.

        Raises MismatchError for rows that contradict each other (both are named), names that fit several slides,
        positions that are not numbers, x without y, a table without rows, and one without a value for any patch of the
        archive.
        """
        if not len(table):
            raise MismatchError(f"{table.where}: the table has no rows, so it says no {what}; it has {table.headers}")
        slide = table.find("slide")
        if slide is not None and (position := table.find_position(header)) is not None:
            return self._by_position(table, values, what, (slide, *position), required)
        if slide is not None:
            names = table.texts(slide)
            return self._by_name(table, names, values, what, "slide", required)
        group = None if what == "groups" else table.find("group")
        if group is None:
            raise MismatchError(
                f"{table.where}: a column of slides (slide_id, slide, filename, ...) or of patients expected, "
                f"found {table.headers}"
            )
        if not self.contents.groups:
            raise MismatchError(
                f"{table.where}: {what} by patient ({group!r}), but the patients of the slides are not known; "
                "give groups=, a table of slides and patients"
            )
        return self._by_name(table, without_decimals(table.texts(group)), values, what, "patient", required)

    def _indices(self, name: str, names: Sequence[str]) -> NDArray[np.int64]:
        if name not in self.contents.columns or not names:
            return np.full(self.n_rows, -1, dtype=np.int64)
        column = self.contents.columns[name]().astype(np.int64)
        check_indices(self.contents.path, name, column, len(names))
        return column

    def _by_name(
        self, table: Table, names: NDArray[np.str_], values: NDArray[np.str_], what: str, kind: str, required: bool
    ) -> NDArray[np.int64]:
        """By slide or by patient: the row of each of the archive's, spread to its patches."""
        there = self.contents.slides if kind == "slide" else self.contents.groups
        if not there:
            raise MismatchError(f"{self.contents.path}: {table.where} gives {what} by slide; no slides are known")
        stated = _first_rows(table, names.tolist(), values, what)
        found = self._match(list(stated), kind, table.where)
        row_of = np.full(len(there), -1, dtype=np.int64)
        lost = []
        for (name, row), index in zip(stated.items(), found.tolist(), strict=True):
            if index >= 0:
                row_of[index] = row
            else:
                lost.append(name)
        known = (row_of >= 0) & (values[row_of] != "")
        if required and not known.any():
            raise MismatchError(
                f"{self.contents.path}: none of its {len(there)} {kind}s ({show(there)}) has {what} in {table.where} "
                f"({show(list(stated))})"
            )
        _say(len(lost), len(stated), f"{kind}s in {table.where} with {what} are not in {self.contents.path}", lost)
        without = [name for name, has in zip(there, known.tolist(), strict=True) if not has]
        _say(len(without), len(there), f"{kind}s have no {what} in {table.where}", without)
        of_patch = self.slides if kind == "slide" else self.groups
        none = int((of_patch < 0).sum())
        _say(none, self.n_rows, f"patches belong to no {kind}, so they get no {what} from {table.where}", ())
        return np.where(of_patch >= 0, row_of[of_patch], -1)

    def _match(self, names: list[str], kind: str, where: str) -> NDArray[np.int64]:
        if kind == "slide":
            return match_slides(names, self.contents.slides, where, str(self.contents.path))
        codes = {name: code for code, name in enumerate(self.contents.groups)}
        return np.array([codes.get(name, -1) for name in names], dtype=np.int64)

    def _by_position(
        self, table: Table, values: NDArray[np.str_], what: str, headers: tuple[str, str, str], required: bool
    ) -> NDArray[np.int64]:
        if not self.contents.slides or "coords" not in self.contents.columns:
            raise MismatchError(
                f"{self.contents.path}: {table.where} gives {what} by position; no slides and coords are known"
            )
        coords: NDArray[Any] = self.contents.columns["coords"]()
        names, x, y = (table.texts(header).tolist() for header in headers)
        rows = range(len(table))
        columns = [read_positions(table, h, c, rows, coords.dtype) for h, c in zip(headers[1:], (x, y), strict=True)]
        slides = match_slides(names, self.contents.slides, table.where, str(self.contents.path))
        known_slides = [name if slide < 0 else slide for slide, name in zip(slides.tolist(), names, strict=True)]
        keys = list(zip(known_slides, columns[0].tolist(), columns[1].tolist(), strict=True))
        stated = _first_rows(table, keys, values, what)
        here = zip(self.slides.tolist(), *coords.T.tolist(), strict=True)
        found = np.array([stated.get(key, -1) for key in here], dtype=np.int64)
        found[(coords == UNKNOWN["coords"]).all(axis=1)] = -1  # a position that is not known is no position
        known = (found >= 0) & (values[found] != "")
        if required and not known.any():
            raise MismatchError(
                f"{self.contents.path}: none of its {self.n_rows} patches has {what} in {table.where}; "
                f"slides there are {show(list(dict.fromkeys(names)))}, first position {x[:1]}, {y[:1]}"
            )
        used = set(found.tolist())
        lost = [table.rows[row] for row in stated.values() if row not in used]
        _say(len(lost), len(stated), f"rows of {table.where} with {what} belong to no patch of the archive", lost)
        _say(int((~known).sum()), self.n_rows, f"patches have no {what} in {table.where}", ())
        return found


def require_all_splits(
    column: NDArray[np.uint8], codes: NDArray[np.uint8], table: Table, names: dict[int, str]
) -> None:
    """Raise MismatchError when the table marks a split (`codes` [rows of the table]) to which no patch belongs."""
    for code in sorted(set(codes.tolist()) - set(column.tolist())):
        if names[code] != "none":
            raise MismatchError(
                f"{table.where}: its {int((codes == code).sum())} rows marked {names[code]!r} belong to no patch that "
                f"is opened, so this split is empty; first {table.place(int(np.argmax(codes == code)))}"
            )


def _first_rows(table: Table, keys: Sequence[Any], values: NDArray[np.str_], what: str) -> dict[Any, int]:
    """The first row of each key that says something; raises MismatchError for two that differ."""
    rows: dict[Any, int] = {}
    said = values.tolist()
    unnamed = []
    for row, key in enumerate(keys):
        if not said[row]:
            continue
        if key == "":
            unnamed.append(table.rows[row])
            continue
        first = rows.setdefault(key, row)
        if said[first] != said[row]:
            raise MismatchError(
                f"{table.where}: rows {table.rows[first]} and {table.rows[row]} contradict each other: "
                f"{_words(key)} has the {what} {said[first]!r} and {said[row]!r}; correct one of them"
            )
    _say(len(unnamed), len(keys), f"rows of {table.where} with {what} name no slide or patient", unnamed)
    return rows


def read_positions(
    table: Table, header: str, texts: Sequence[str], rows: Sequence[int] | NDArray[np.int64], dtype: Any = np.int32
) -> NDArray[Any]:
    """Positions [n] that the cells of a column state, in the dtype of an archive's coords.

    Args:
        table, header: the table and the column, for messages.
        texts: [n] its cells.
        rows: [n] their rows.
        dtype: an integer for whole pixels at level 0, a float for micrometres.

    Raises MismatchError, naming the row and the value, for text that is not a number, and for pixels that are not
    whole or beyond 32 bits.
    """
    numbers = read_numbers(texts, (f"{table.place(int(row))}, column {header!r}" for row in rows))
    if np.dtype(dtype).kind == "f":
        return numbers.astype(dtype)
    wrong = np.flatnonzero((numbers != np.floor(numbers)) | (np.abs(numbers) >= FARTHEST))
    if wrong.size:
        raise MismatchError(
            f"{table.place(int(rows[wrong[0]]))}, column {header!r}: a whole number of pixels below 2**31 expected, "
            f"found {texts[wrong[0]]!r}"
        )
    return numbers.astype(dtype)


def _words(key: Any) -> str:
    return f"the patch at {key[1:]}" if isinstance(key, tuple) else repr(key)


def _say(count: int, total: int, what: str, examples: Sequence[object]) -> None:
    """Log a warning with counts and examples; nothing for a count of 0."""
    if count:
        logger.warning("%d of %d %s%s", count, total, what, f": {show(examples)}" if len(examples) else "")
