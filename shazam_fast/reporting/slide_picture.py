"""The picture of a slide's scores: class, confidence and attention shares side by side, each with its legend."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import canvas
from .painting import leading, paint
from .palette import CLASS_COLOURS, EMPTY, INK, MUTED, RAMP, RULE, TEACHER_COLOURS, hex_colours, pick_colours
from .slide_scores import SlideScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONG_SIDE = 900  # pixels of the longer side of a map
# Inches.
EDGE, GAP, HEAD, CAPTION, FOOT, LINE = 0.32, 0.27, 0.62, 0.34, 0.16, 0.25
NARROWEST = 2.9  # a panel with its legend
MOST_LINES = 16  # of a legend; rarer names are counted in its last line

FloatArray = NDArray[np.floating[Any]]


def draw_slide(slide: SlideScores) -> "Figure":
    """A page with one map per panel; areas without patches are grey, each pixel shows the mean of its patches."""
    low, high, shape = _corners(slide)
    probabilities = paint(low, high, slide.probabilities, shape)  # [H, W, C]
    panels = ["Predicted class", "Confidence", *(["Largest attention share"] if slide.shares is not None else [])]
    legends = [
        _lines(slide.prediction),
        2,
        *([_lines(slide.shares.argmax(axis=1))] if slide.shares is not None else []),
    ]
    width = max(shape[1] / canvas.DPI, NARROWEST)
    bottom = HEAD + CAPTION + shape[0] / canvas.DPI + FOOT  # of the maps
    page = canvas.new_page(
        2 * EDGE + len(panels) * width + (len(panels) - 1) * GAP, 2 * EDGE + bottom + max(legends) * LINE, "heatmap"
    )
    _draw_head(page, slide)
    for index, caption in enumerate(panels):
        left = EDGE + index * (width + GAP)
        axes = canvas.place_map(page, left, EDGE + HEAD + CAPTION, shape, 1 / canvas.DPI)
        canvas.write_title(axes, caption)
        foot = canvas.place(page, left, EDGE + bottom, width, max(legends) * LINE)
        foot.set(xlim=(0, 1), ylim=(max(legends), 0))
        foot.set_axis_off()
        if index == 0:
            _draw_classes(axes, foot, slide, probabilities)
        elif index == 1:
            _draw_confidence(axes, foot, slide, probabilities)
        else:
            _draw_shares(axes, foot, slide, low, high)
    return page


def _corners(slide: SlideScores) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, int]]:
    """Corners of the patches in pixels of the map [n, 2] each, and the map's height and width."""
    origin = slide.coords.min(axis=0)
    extent = slide.coords.max(axis=0) - origin + slide.size
    whole = max(1, int(LONG_SIDE * slide.size / extent.max()))  # a patch is a whole number of pixels if it can be
    scale = min(whole / slide.size, LONG_SIDE / extent.max())
    width, height = np.maximum(1, np.ceil(extent * scale - 1e-6)).astype(int).tolist()
    low = np.floor((slide.coords - origin) * scale + 1e-6).astype(np.int64)
    high = np.maximum(low + 1, np.ceil((slide.coords - origin + slide.size) * scale - 1e-6).astype(np.int64))
    return low, np.minimum(high, (width, height)), (height, width)


def _draw_head(page: "Figure", slide: SlideScores) -> None:
    width = page.get_size_inches()[0] - 2 * EDGE
    axes = canvas.place(page, EDGE, EDGE, width, HEAD)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_axis_off()
    patches = "1 patch" if len(slide.coords) == 1 else f"{len(slide.coords):,} patches"
    about = f"{patches} of {slide.size:,.0f} x {slide.size:,.0f} level-0 pixels"
    if slide.without_position:
        about += f"; {slide.without_position:,} without position left out"
    note = canvas.write(axes, about, (1, 1), ha="right", va="top", color=MUTED)
    canvas.fit(note, 0.6 * 72 * width)
    title = canvas.write(axes, slide.name, (0, 1), va="top", fontsize=canvas.TITLE, weight="bold")
    canvas.fit(title, 72 * width - canvas.width_of(note) - 12)
    axes.axhline(0.38, color=RULE, lw=1)


def _draw_map(axes: "Axes", colours: FloatArray, covered: NDArray[np.bool_]) -> None:
    """Show RGB [H, W, 3] in 0..255 where patches are, grey elsewhere."""
    empty = np.array(list(bytes.fromhex(EMPTY[1:])), dtype=np.uint8)
    axes.imshow(np.where(covered[..., None], colours.round(), empty).astype(np.uint8), interpolation="nearest")


def _draw_classes(axes: "Axes", foot: "Axes", slide: SlideScores, probabilities: FloatArray) -> None:
    covered = np.isfinite(probabilities[..., 0])
    code = np.nan_to_num(probabilities, nan=-1.0).argmax(axis=2)
    _draw_map(axes, pick_colours(CLASS_COLOURS, len(slide.classes))[code].astype(float), covered)
    _draw_legend(foot, slide.classes, CLASS_COLOURS, slide.prediction)


def _draw_confidence(axes: "Axes", foot: "Axes", slide: SlideScores, probabilities: FloatArray) -> None:
    from matplotlib import colormaps

    ramp, chance = colormaps[RAMP], 1 / len(slide.classes)
    confidence = probabilities.max(axis=2)  # [H, W]
    level = (np.nan_to_num(confidence) - chance) / max(1 - chance, 1e-9)
    _draw_map(axes, 255 * ramp(level)[..., :3], np.isfinite(confidence))
    foot.imshow(np.linspace(0, 1, 256)[None], cmap=RAMP, extent=(0, 1, 0.8, 0.2), aspect="auto")
    foot.set(xlim=(0, 1), ylim=(foot.get_ylim()[0], 0))
    median = float(np.median(slide.probabilities.max(axis=1)))
    _write_row(foot, 1, f"{chance:.0%} (chance)", 0.0, "left", MUTED)
    _write_row(foot, 1, "100%", 1.0, "right", MUTED)
    _write_row(foot, 1, f"median {median:.0%}", 0.6, "center", INK)


def _draw_shares(
    axes: "Axes", foot: "Axes", slide: SlideScores, low: NDArray[np.int64], high: NDArray[np.int64]
) -> None:
    """The teacher with the largest share; the more it exceeds an equal share, the more solid its colour."""
    assert slide.shares is not None
    shares = paint(low, high, slide.shares, (int(high[:, 1].max()), int(high[:, 0].max())))  # [H, W, N]
    teacher, excess, most = leading(shares)
    colours = pick_colours(TEACHER_COLOURS, len(slide.teachers))[teacher].astype(float)
    solid = excess[..., None]
    _draw_map(axes, 255 - solid * (255 - colours), np.isfinite(shares[..., 0]))
    canvas.write_note(axes, f"{1 / len(slide.teachers):.1%} white, {most:.1%} solid")
    _draw_legend(foot, slide.teachers, TEACHER_COLOURS, slide.shares.argmax(axis=1))


def _lines(codes: NDArray[np.int64]) -> int:
    return min(len(np.unique(codes)), MOST_LINES)


def _draw_legend(foot: "Axes", names: Sequence[str], palette: Sequence[str], codes: NDArray[np.int64]) -> None:
    """One line per name that occurs, the most frequent first, with its fraction of the patches."""
    from matplotlib.patches import Rectangle

    fraction = np.bincount(codes, minlength=len(names)) / len(codes)
    order = [code for code in np.argsort(-fraction, kind="stable").tolist() if fraction[code] > 0]
    colours = hex_colours(palette, len(names))
    shown = order if len(order) <= MOST_LINES else order[: MOST_LINES - 1]
    room = foot.bbox.width * 72 / canvas.DPI
    for line, code in enumerate(shown):
        square = 11.0 / room
        foot.add_patch(Rectangle((0, line + 0.2), square, 0.6, color=colours[code], lw=0))
        name = _write_row(foot, line, names[code], square + 6 / room, "left", INK)
        canvas.fit(name, room - 70)
        _write_row(foot, line, f"{fraction[code]:.1%}", 1.0, "right", MUTED)
    if len(shown) < len(order):
        rest = order[len(shown) :]
        _write_row(foot, len(shown), f"{len(rest)} others", 0.0, "left", MUTED)
        _write_row(foot, len(shown), f"{fraction[rest].sum():.1%}", 1.0, "right", MUTED)


def _write_row(foot: "Axes", line: int, text: str, x: float, align: str, colour: str) -> Any:
    rows = foot.get_ylim()[0]
    return canvas.write(foot, text, (x, 1 - (line + 0.5) / rows), ha=align, va="center_baseline", color=colour)
