"""Printing of lines and tables, and JSON files; names are printed as they are, never read as markup."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ..errors import ShazamError
from ..runtime.files import write_durably
from ..runtime.jobs.locks import make_directory, require_writable
from ..runtime.summaries import counted

if TYPE_CHECKING:
    from ..reporting.sheet import TopPatch

console = Console()


def say(line: str, style: str = "") -> None:
    """Print a line; the terminal wraps it, so that paths can be copied."""
    console.print(Text(line, style=style), soft_wrap=True)


def say_sheet(shown: "Sequence[TopPatch]", out: Path) -> None:
    """Say what a sheet of patches shows, and where it is."""
    slides = {patch.slide for patch in shown}
    say(f"{counted(len(shown), 'patch')} of {counted(len(slides), 'slide')} in {out}")


def print_table(columns: Sequence[str | Column], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table under a title.

    Args:
        columns: headings, or columns of rich.
        rows: one text per column each.
        title: what the table holds.
    """
    headings = (c if isinstance(c, Column) else Column(Text(c)) for c in columns)
    table = Table(*headings, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if title:
        say(title)  # not the table's own title, which is broken at the table's width
    console.print(table)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON; the directory is made where it is missing."""
    make_directory(path.absolute().parent)
    write_durably(path, json.dumps(values, indent=1, allow_nan=False).encode())


def require_file_place(path: Path, option: str) -> None:
    """Check, before anything is computed, that a file can be written there.

    Args:
        path: the file; its directory need not exist yet.
        option: the option that names it, for messages.

    Raises ShazamError when `path` is a directory, or its directory cannot be made or written to.
    """
    if path.is_dir():
        raise ShazamError(f"{option} {path}: a file expected, there is a directory; give the name of a file in it")
    require_writable(path.absolute().parent)
