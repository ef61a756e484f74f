"""Tables that users have: CSV with commas, semicolons or tabs, Excel files, pandas frames. One reader for all.

Columns are found by the names that the field's tools give them, in any case, with or without blanks and underscores.
An ambiguous table (two columns that could be meant, several possible separators, a repeated column) is an error that
says what to do.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError, MismatchError
from ..runtime.checks import require_path
from ..runtime.files import open_regular
from .cells import category_order, cell_of, quote, require_distinct

DELIMITERS = (",", ";", "\t")
EXCEL_SUFFIXES = (".xlsx", ".xlsm")
TABLE_SUFFIXES = (".csv", ".tsv", *EXCEL_SUFFIXES)

# What a column holds -> its usual names, and names that are tried where none of those is there. Written without case,
# blanks, "_" and "-"; from CLAM, TRIDENT, STAMP, Patho-Bench, torchmil, eva, slide2vec and clinical tables.
ROLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "slide": (
        ("slideid", "slide"),
        ("slidename", "imageid", "imagename", "wsi", "wsiid", "filename", "filenameext", "bagname", "bag", "sampleid"),
    ),
    "label": (("label", "labels"), ("target", "class", "diagnosis", "groundtruth")),
    "group": (("patientid", "patient"), ("caseid", "case", "group", "participantid", "subjectid")),
    "split": (("split",), ("set", "subset", "partition")),
    "x": (("x",), ("xcoord", "coordx", "coordsx", "tilex", "patchx", "posx")),
    "y": (("y",), ("ycoord", "coordy", "coordsy", "tiley", "patchy", "posy")),
    "path": (("path", "imagepath"), ("image", "file", "filename", "filepath")),
    "slide of an image": (("slideid", "slide"), ("slidename", "wsi", "wsiid")),
}
KNOWN = frozenset(name for tiers in ROLES.values() for tier in tiers for name in tier)
FOLD = re.compile(r"fold_?[0-9]+", re.IGNORECASE)
ROW_NUMBERS = re.compile(r"(unnamed:? ?[0-9]*|index)?", re.IGNORECASE)  # what pandas calls the column of row numbers
REMEDY = {"label": "choose one with label_column="}


@dataclass(frozen=True)
class Table:
    """Named columns, one entry per row.

    Args:
        where: the file, or other words for the source ("the DataFrame"), for messages.
        columns: cells by the names in the header, as they stand in the file (text without blanks around it).
        rows: [n] name of each row in messages: its line number in the file, or its key.
        orders: the order of the categories of columns that are ordered pandas categoricals, by their header.
    """

    where: str
    columns: Mapping[str, list[Any]]
    rows: Sequence[object]
    orders: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, row: int) -> str:
        """Words for where a row is."""
        return f"{self.where}: row {self.rows[row]}"

    def find(self, role: str, exclude: Sequence[str] = ()) -> str | None:
        """The header of the column that holds "slide", "label", "group", "split", "x", "y" or "path"; None without one.

        Raises MismatchError when several columns could be it and their values differ.

        >>> Table("t.csv", {"Slide ID": ["a"], "Diagnosis": ["t"]}, [2]).find("slide")
        'Slide ID'
        """
        for tier in ROLES[role]:
            found = [name for name in self._known if self._known[name] in tier and name not in exclude]
            differing = [name for name in found[1:] if self.columns[name] != self.columns[found[0]]]
            if differing:
                raise MismatchError(
                    f"{self.where}: columns {found[0]!r} and {differing[0]!r} could both hold the {role}; "
                    f"{REMEDY.get(role, 'rename or remove one of them')}"
                )
            if found:
                return found[0]
        return None

    def find_position(self, used: str = "") -> tuple[str, str] | None:
        """The headers of x and y; None without either. `used`: a column that holds something else.

        Raises MismatchError when one of them is there without the other.
        """
        x, y = self.find("x"), self.find("y")
        if x is not None and y is not None:
            return x, y
        if (found := x or y) is not None and found != used:
            raise MismatchError(
                f"{self.where}: a column {'x' if x is None else 'y'} expected beside {found!r}, found {self.headers}; "
                "add it if rows are patches, or remove the other if rows are slides"
            )
        return None

    def require(self, name: str, option: str) -> str:
        """The header of the column that a user names, in the header's own case or in any.

        Raises MismatchError when it is not there; `option` is what the user set.
        """
        same = [name] if name in self.columns else [h for h in self.columns if _plain(h) == _plain(name)]
        if len(same) != 1:
            raise MismatchError(f"{self.where}: {option}: no column {name!r}; it has {self.headers}")
        return same[0]

    def find_label(self, column: str | None = None) -> str | None:
        """The header of the labels' column: the one named, the usual one, or the only one that holds nothing else."""
        if column is not None:
            return self.require(column, "label_column")
        if (found := self.find("label")) is not None:
            return found
        positions = self.find("x") and self.find("y")
        taken = KNOWN - (frozenset() if positions else {"x", "y"})
        rest = [h for h in self.columns if _plain(h) not in taken and not FOLD.fullmatch(h) and not _is_row_number(h)]
        return rest[0] if len(rest) == 1 else None

    @property
    def headers(self) -> str:
        """The names of all columns, for messages."""
        return ", ".join(self.columns) or "none: it is empty"

    def texts(self, header: str) -> NDArray[np.str_]:
        """A column [n] as text, "" where it is unknown. Raises MismatchError naming a cell that cannot be used."""
        where = f"column {header!r}"
        cells = [str(cell_of(cell, f"{self.place(row)}, {where}")) for row, cell in enumerate(self.columns[header])]
        require_distinct(self.columns[header], f"{self.where}: {where}")
        return np.array(cells, dtype=np.str_)

    @cached_property
    def _known(self) -> dict[str, str]:
        return {header: _plain(header) for header in self.columns if _plain(header) in KNOWN}


def read_table(path: str | Path) -> Table:
    """A table from a file: CSV (comma, semicolon or tab, decided by the header; UTF-8 or UTF-16) or .xlsx.

    Rows without any entry are left out.

    Raises ArchiveError when the file is missing, not a regular file or cannot be decoded, when columns have the same
    name, a row has more or fewer fields than the header, or several separators are possible.
    """
    path = require_path("table", path)
    try:
        with open_regular(path) as file:
            if path.suffix.lower() in EXCEL_SUFFIXES:
                from .excel import read_sheet

                return make_table(str(path), *read_sheet(path))
            content = file.readall()
    except OSError as error:
        raise ArchiveError(f"{path}: the table cannot be read: {error.strerror}") from None
    return make_table(str(path), *_read_csv(path, content))


def table_of_frame(frame: Any) -> Table:
    """The table that a pandas (or polars) DataFrame holds, with its index as the first column unless it is 0, 1, 2, ...

    Raises MismatchError for columns of the same name, or a cell that is neither text nor a number.
    """
    headers = [str(name) for name in frame.columns]
    where = "the DataFrame"
    _require_distinct(headers, where)
    cells = [list(frame[name]) for name in frame.columns]
    orders = {str(name): order for name in frame.columns if (order := category_order(frame[name])) is not None}
    rows: Sequence[object] = range(len(frame))
    if hasattr(frame, "index"):
        rows = list(frame.index)
        if not counts(frame.index) and str(frame.index.name) not in headers:
            headers = [str(frame.index.name or ""), *headers]
            cells = [list(rows), *cells]
    return Table(where, dict(zip(headers, cells, strict=True)), rows, orders)


def table_of_mapping(values: Mapping[Any, Any], role: str, where: str = "the mapping") -> Table:
    """The table of {slide: value}, with the columns "slide" and `role`."""
    return Table(where, {"slide": list(values), role: list(values.values())}, [repr(key) for key in values])


def is_frame(given: Any) -> bool:
    """Whether something is a DataFrame, of pandas or polars; neither is imported."""
    return hasattr(given, "columns") and hasattr(given, "to_dict") and hasattr(given, "__getitem__")


def counts(index: Any) -> bool:
    """Whether a pandas index only counts rows from 0."""
    return getattr(index, "name", None) is None and list(index) == list(range(len(index)))


def make_table(where: str, header: list[str], rows: list[list[Any]], numbers: list[int]) -> Table:
    """A Table of rows as read from a file.

    Raises ArchiveError when two columns have the same name, or a row has another number of fields than the header.
    """
    _require_distinct(header, where)
    for row, number in zip(rows, numbers, strict=True):
        if len(row) != len(header):
            raise ArchiveError(f"{where}: row {number} has {len(row)} fields, the header {len(header)}")
    return Table(where, {name: [row[i] for row in rows] for i, name in enumerate(header)}, numbers)


def _read_csv(path: Path, content: bytes) -> tuple[list[str], list[list[str]], list[int]]:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{path}: no text in UTF-8 (byte {error.start}); save the table as CSV in UTF-8") from None
    if "\0" in text:
        raise ArchiveError(f"{path}: no text: it holds zero bytes; save the table as CSV in UTF-8")
    delimiter = _find_delimiter(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    rows, numbers = [], []
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                numbers.append(reader.line_num)
    except csv.Error as error:
        raise ArchiveError(f"{path}: row {reader.line_num} cannot be read as CSV: {error}") from None
    return header, rows, numbers


def _find_delimiter(path: Path, text: str) -> str:
    """The separator that splits the header; where several do, the one that gives a column that is known."""
    headers: dict[str, list[str]] = {}
    for delimiter in DELIMITERS:
        try:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue  # quotes that do not fit this separator
        if len(header) > 1:
            headers[delimiter] = header
    if len(headers) > 1:
        headers = {d: header for d, header in headers.items() if any(_plain(name) in KNOWN for name in header)}
        if len(headers) != 1:
            raise ArchiveError(
                f"{path}: the header {quote(text.splitlines()[0])} can be split at commas, semicolons or tabs; "
                "use one separator and leave the others out of the names"
            )
    return next(iter(headers), ",")


def _require_distinct(header: Sequence[str], where: str) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    blank = header.count("") > 1
    if twice or blank:
        found = f"two columns are called {twice[0]!r}" if twice else "two columns have no name"
        raise ArchiveError(f"{where}: {found}; rename or remove one")


def _plain(header: str) -> str:
    """The header without case, blanks, underscores and hyphens."""
    return re.sub(r"[\s_\-]+", "", header).casefold()


def _is_row_number(header: str) -> bool:
    return ROW_NUMBERS.fullmatch(header) is not None
