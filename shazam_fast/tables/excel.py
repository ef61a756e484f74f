"""Tables in Excel files, read through openpyxl."""

import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

from ..errors import ArchiveError, ShazamError
from .cells import Unreadable

LARGEST = 1 << 30  # bytes of an unpacked file; a packed one says little about its size
NOT_AVAILABLE = "#N/A"  # the one error value that means a missing entry


def read_sheet(path: Path) -> tuple[list[str], list[list[Any]], list[int]]:
    """Header, rows and their numbers of the only sheet that holds anything.

    Raises:
        ArchiveError: not an Excel file; several sheets with entries; entries beyond the header.
        ShazamError: openpyxl is not installed.
    """
    try:
        import openpyxl
    except ImportError:
        raise ShazamError(
            f"{path}: openpyxl is needed to read it: pip install 'shazam_fast[tables]', or save it as CSV"
        ) from None
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > LARGEST:
                raise ArchiveError(f"{path}: more than 1 GiB unpacked; save the table as CSV")
        with (
            closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as values,
            closing(openpyxl.load_workbook(path, read_only=True)) as formulas,
        ):
            sheets = {sheet.title: _rows(sheet, formulas[sheet.title]) for sheet in values.worksheets}
    except (ShazamError, OSError):
        raise
    except Exception as error:  # openpyxl hands on whatever zip, XML and numbers raise
        raise ArchiveError(f"{path}: cannot be read as an Excel file: {error}") from None
    return _one_table(path, {name: rows for name, rows in sheets.items() if rows})


def _one_table(path: Path, filled: dict[str, dict[int, list[Any]]]) -> tuple[list[str], list[list[Any]], list[int]]:
    if len(filled) > 1:
        raise ArchiveError(f"{path}: {len(filled)} sheets hold entries ({', '.join(filled)}); save one of them as CSV")
    empty: dict[int, list[Any]] = {1: []}
    (_, names), *rows = next(iter(filled.values()), empty).items()
    width = max((i + 1 for i, name in enumerate(names) if name is not None), default=0)
    for number, cells in rows:
        if any(cell is not None for cell in cells[width:]):
            raise ArchiveError(f"{path}: row {number} has entries beyond the header's {width} columns")
    header = ["" if name is None else str(name).strip() for name in names[:width]]
    return header, [(cells + [None] * width)[:width] for _, cells in rows], [number for number, _ in rows]


def _rows(values: Any, formulas: Any) -> dict[int, list[Any]]:
    """Number -> cells of every row that has any."""
    pairs = zip(values.iter_rows(), formulas.iter_rows(), strict=True)
    rows = {n: [_cell(*two) for two in zip(*pair, strict=True)] for n, pair in enumerate(pairs, start=1)}
    return {n: cells for n, cells in rows.items() if any(cell is not None for cell in cells)}


def _cell(cell: Any, written: Any) -> Any:
    value = cell.value
    if value is None and isinstance(written.value, str) and written.value.startswith("="):
        return Unreadable("a formula without a stored value; open the file in a spreadsheet program and save it")
    if cell.data_type == "e" and value != NOT_AVAILABLE:
        return Unreadable(f"the value is {value}; correct or empty the cell")
    return None if isinstance(value, str) and not value.strip() else value
