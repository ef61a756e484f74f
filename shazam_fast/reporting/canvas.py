"""Figures without pyplot: pages on which everything is placed in inches, written as PNG, SVG or PDF files."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShazamError
from ..runtime.files import UNFINISHED
from .palette import INK, MUTED, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger("shazam_fast")

DPI = 150  # dots per inch
TITLE, CAPTION, SMALL = 13.0, 11.0, 9.5  # points
KINDS: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # no dates
# Fonts for scripts that matplotlib's own font lacks, tried in this order where they are installed.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "Noto Sans", "Noto Sans Arabic", "Noto Sans Devanagari", "Unifont",
)  # fmt: skip


def new_page(width: float, height: float, extra: str) -> "Figure":
    """An empty white page.

    Args:
        width, height: in inches.
        extra: the extra of this package that brings matplotlib, for the message where it is missing.

    Raises:
        ShazamError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ShazamError(f"pictures need matplotlib: pip install 'shazam_fast[{extra}]'") from error
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def place(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Axes at a position in inches from the upper left corner of the page."""
    page_width, page_height = figure.get_size_inches()
    box = (left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height)
    return figure.add_axes(box)


def place_map(figure: "Figure", left: float, top: float, shape: tuple[int, int], inches_per_pixel: float) -> "Axes":
    """Axes for a map of `shape` (height, width) pixels, without ticks and frame."""
    axes = place(figure, left, top, shape[1] * inches_per_pixel, shape[0] * inches_per_pixel)
    axes.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def paste(page: "Figure", picture: "Figure", left: float, top: float) -> None:
    """Show a finished figure, pixel by pixel, at a position in inches from the upper left corner of a page."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = FigureCanvasAgg(picture)
    drawn.draw()
    pixels = np.asarray(drawn.buffer_rgba())[..., :3]  # [H, W, 3]
    left, top = round(left * DPI) / DPI, round(top * DPI) / DPI  # else every pixel would be a mean of its neighbours
    place_map(page, left, top, pixels.shape[:2], 1 / DPI).imshow(pixels, interpolation="none")


def write(axes: "Axes", text: str, at: tuple[float, float], offset: tuple[float, float] = (0, 0), **style: Any) -> Any:
    """Write a text as it is ("$" is not mathematics), at a fraction of the axes and an offset in points."""
    style = {"fontsize": SMALL, "color": INK, "family": _fonts(), **style}
    return axes.annotate(text, at, offset, "axes fraction", "offset points", parse_math=False, **style)


def write_title(axes: "Axes", text: str, keys: Sequence[tuple[str, str]] = ()) -> None:
    """A title above the left edge; keys (name, colour) as small squares above the right edge."""
    write(axes, text, (0, 1), (0, 7), fontsize=CAPTION, weight="bold")
    right = 0.0  # points from the right edge
    for name, colour in reversed(keys):
        note = write(axes, name, (1, 1), (right, 7), ha="right")
        right -= width_of(note) + 4
        write(axes, "\u25a0", (1, 1), (right, 6), ha="right", fontsize=12, color=colour)
        right -= 17


def write_note(axes: "Axes", text: str, right: float = 1.0) -> None:
    """Small print on the title's line, ending at a fraction of the axes' width."""
    write(axes, text, (right, 1), (0, 7), ha="right", color=MUTED)


def write_head(figure: "Figure", edge: float, height: float, name: str, about: str, rule: float) -> "Axes":
    """The head of a page: a name, small print that ends at the right edge, and a rule below them.

    Args:
        figure: the page.
        edge, height: distance from the page's edges, and height of the head, in inches.
        name, about: the texts; each is made smaller, or shortened, where it has too little room.
        rule: height of the rule, as a fraction of the head's.

    Returns the head's axes, both from 0 to 1.
    """
    width = figure.get_size_inches()[0] - 2 * edge
    axes = place(figure, edge, edge, width, height)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_axis_off()
    note = write(axes, about, (1, 1), ha="right", va="top", color=MUTED)
    fit(note, 0.6 * 72 * width)
    title = write(axes, name, (0, 1), va="top", fontsize=TITLE, weight="bold")
    fit(title, 72 * width - width_of(note) - 12)
    axes.axhline(rule, color=RULE, lw=1)
    return axes


def width_of(text: Any) -> float:
    """Width of a written text in points."""
    return float(text.get_window_extent().width) * 72 / DPI


def fit(text: Any, points: float, smallest: float = 8.0) -> None:
    """Make a text smaller, then shorten it with an ellipsis, until it is at most `points` wide."""
    for size in range(int(text.get_fontsize()), int(smallest) - 1, -1):
        if width_of(text) <= points:
            return
        text.set_fontsize(size)
    while width_of(text) > points and len(text.get_text()) > 2:
        shorter = text.get_text()
        cut = max(1, min(len(shorter) - 2, int(len(shorter) * points / width_of(text))))
        text.set_text(shorter[:cut].rstrip("\u2026 ") + "\u2026")


def shorten(name: str, most: int = 26) -> str:
    """A name for a figure; its middle goes where it is longer than `most` characters.

    >>> shorten("a" * 40, 9)
    'aaaa…aaaa'
    """
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def require_kind(path: Path) -> str:
    """The kind of a figure's file, "png", "svg" or "pdf". Raises ShazamError when its name ends otherwise."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise ShazamError(f"{path}: a name that ends in {', '.join(f'.{k}' for k in KINDS)} expected")
    return kind


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, SVG or PDF, as its name ends, under a temporary name, then rename it.

    Raises ShazamError when the name ends otherwise, or the file cannot be written.
    """
    kind = require_kind(path)
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        figure.savefig(unfinished, dpi=DPI, format=kind, metadata=KINDS[kind])
        unfinished.rename(path)
    except OSError as error:
        raise ShazamError(f"{path}: cannot be written: {error}; choose another place") from error
    finally:
        unfinished.unlink(missing_ok=True)


@cache
def _fonts() -> list[str]:
    from matplotlib import font_manager

    installed = set(font_manager.fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]


@contextmanager
def missing_glyphs_logged(path: Path) -> Iterator[None]:
    """Turn matplotlib's warnings of characters that no font has, one each, into one message."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    if any("missing from" in str(warning.message) for warning in caught):
        logger.warning("%s: no installed font has all characters of its text; boxes stand for them", path)
