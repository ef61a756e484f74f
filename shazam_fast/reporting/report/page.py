"""The page: sections made of paragraphs, tables and figures, rendered into one HTML file.

Sections hold plain text; jinja2 escapes all of it when it fills `page.html`, so that no name can become markup. The one
exception is the SVG of a figure, which `svg.py` serialises from parsed XML. The page carries a content security
policy that forbids scripts and every request.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ShazamError

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("page.html")
BLUE = (0, 114, 178)  # of the darkest cell
DARKEST = 0.7  # how much of it the darkest cell takes; black text stays readable on it
NEGATIVE = re.compile(r"(?<![\w.])-(?=\d)")
WIDEST = 60  # characters of all headings of a matrix
ABSENT = "\u2013"  # an en dash


@dataclass(frozen=True)
class Text:
    """A paragraph. `style`: "" for running text, "note" for small print, "warning" for what must not be missed."""

    kind: ClassVar[str] = "text"
    text: str
    style: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `shade` in [0, 1] is how dark it is; `small` is a second, smaller text beside the first."""

    text: str
    shade: float | None = None
    small: str = ""

    @property
    def style(self) -> str:
        """CSS of the shade."""
        if self.shade is None or math.isnan(self.shade):
            return ""
        part = DARKEST * min(max(self.shade, 0.0), 1.0)
        background = "".join(f"{round(255 + (channel - 255) * part):02x}" for channel in BLUE)
        return f"background:#{background}"


@dataclass(frozen=True)
class Table:
    """A table. The first `names` columns hold names and are left-aligned, the others numbers.

    `corner` is a heading above all columns of numbers, such as "predicted class". `style` has any of "grid" (shaded
    cells that touch), "stacked" (small texts below, not beside) and "narrow" (narrow columns), with blanks between.
    """

    kind: ClassVar[str] = "table"
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    names: int = 1
    corner: str = ""
    style: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure: trusted SVG (from `to_svg`), a caption, and whether it takes the whole width."""

    kind: ClassVar[str] = "figure"
    svg: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Beside:
    """Blocks side by side, two per line."""

    kind: ClassVar[str] = "beside"
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Thumbnail:
    """An image with lines of text below; `source` is a data URI."""

    source: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Thumbnails in rows."""

    kind: ClassVar[str] = "gallery"
    caption: str
    images: Sequence[Thumbnail]


Block = Text | Table | Figure | Beside | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the page. `finding`: what it adds to the summary, one or two sentences each."""

    name: str  # anchor, of a-z and "-"
    title: str
    blocks: Sequence[Block]
    findings: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """All that the template needs."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    findings: Sequence[str]
    warnings: Sequence[str]
    sections: Sequence[Section]
    left_out: Sequence[tuple[str, str]] = field(default=())


def render(page: Page) -> str:
    """The page as HTML."""
    return _template().render(page=page)


@cache
def _template() -> "Template":
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ShazamError("reports need jinja2: pip install 'shazam_fast[report]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def cells(texts: Iterable[str]) -> list[Cell]:
    """Texts as cells of a table."""
    return [Cell(text) for text in texts]


def number(value: float | None, digits: int = 3) -> str:
    """A number with that many decimals, a dash where there is none.

    >>> number(0.5), number(float("nan")) == ABSENT
    ('0.500', True)
    """
    return ABSENT if value is None or math.isnan(value) else minus(f"{value:.{digits}f}")


def span(low: float, high: float, digits: int = 3) -> str:
    """The limits of an interval, "" where there is none.

    >>> span(0.25, 0.5, 2)
    '0.25 to 0.50'
    """
    return "" if math.isnan(low) or math.isnan(high) else minus(f"{low:.{digits}f} to {high:.{digits}f}")


def minus(text: str) -> str:
    """A text with minus signs before its negative numbers, in place of hyphens.

    >>> minus("lr-2: -0.5") == "lr-2: \u22120.5"
    True
    """
    return NEGATIVE.sub("\u2212", text)


def number_columns(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of rows, and headings of as many columns: numbers, where the names would make the table too wide.

    >>> number_columns(["uni", "a-very-long-name-of-a-teacher"])
    (['1 uni', '2 a-very-long-name-of-a-teacher'], ['1', '2'])
    """
    if sum(map(len, names)) <= WIDEST and max(map(len, names)) <= WIDEST // 3:
        return list(names), list(names)
    return [f"{place} {name}" for place, name in enumerate(names, 1)], [
        f"{place}" for place in range(1, len(names) + 1)
    ]
