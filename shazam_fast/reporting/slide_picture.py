"""The picture of a slide's scores: maps side by side, each with its legend, over the tissue where it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError
from ..runtime.summaries import counted
from . import canvas
from .painting import leading, paint
from .palette import DIVERGING, EMPTY, INK, MUTED, RAMP, TEACHER_COLOURS, hex_colours, pick_colours, rgb
from .slide_scores import Frame, SlideScores, frame_slide, summarise_slide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..images.overview import Tissue

MARGIN = 0.04  # around the patches, of the longer side, where tissue is drawn
OPACITY = 0.55  # of a map over the tissue
# Inches.
EDGE, GAP, HEAD, CAPTION, FOOT, LINE = 0.32, 0.27, 0.9, 0.34, 0.16, 0.25
NARROWEST = 2.9  # a panel with its legend
MOST_LINES = 16  # of a legend; rarer names are counted in its last line
BAR_PART = 0.25  # of a map's width that the scale bar takes at most
TITLES = {"tissue": "Tissue", "classes": "Predicted class", "shares": "Largest attention share"}

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Style:
    """What is drawn of every slide, and how.

    Args:
        panels: "tissue", "classes", "confidence", "shares", "probability:<class>", "influence:<teacher>".
        colours: of the classes, "#rrggbb".
        first: classes that lead the legend, in this order; the others follow by frequency.
        tissue: where the tissue comes from; None: maps lie on grey.
    """

    panels: tuple[str, ...]
    colours: tuple[str, ...]
    first: tuple[int, ...] = ()
    tissue: "Tissue | None" = None


@dataclass(frozen=True)
class _Map:
    """What the panels of a slide share: patches in pixels of the map, mean probabilities, the tissue below."""

    slide: SlideScores
    style: Style
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    shape: tuple[int, int]
    probabilities: FloatArray  # [H, W, C]
    under: NDArray[np.uint8] | None  # [H, W, 3]


def draw_slide(slide: SlideScores, style: Style, frame: Frame | None = None) -> "Figure":
    """A page with one map per panel; each pixel shows the mean of its patches.

    Args:
        slide, style: what is drawn, and how.
        frame: the part of the slide that the maps show; by default the part that has patches.

    Raises MismatchError when a panel shows what the scores do not hold, or the tissue has no file for the slide.
    """
    require_panels(slide, style)
    frame = frame or frame_slide(slide, MARGIN if style.tissue else 0.0)
    low, high = frame.corners(slide)
    extent = np.array(frame.shape[::-1]) / frame.scale
    under = style.tissue.read(slide.name, frame.origin, extent, frame.shape) if style.tissue else None
    shown = _Map(slide, style, low, high, frame.shape, paint(low, high, slide.probabilities, frame.shape), under)
    lines = max(_panel_lines(slide, name) for name in style.panels)
    width = max(frame.shape[1] / canvas.DPI, NARROWEST)
    bottom = HEAD + CAPTION + frame.shape[0] / canvas.DPI + FOOT  # of the maps
    count = len(style.panels)
    page = canvas.new_page(2 * EDGE + count * width + (count - 1) * GAP, 2 * EDGE + bottom + lines * LINE, "heatmap")
    _draw_head(page, slide)
    for index, name in enumerate(style.panels):
        left = EDGE + index * (width + GAP)
        axes = canvas.place_map(page, left, EDGE + HEAD + CAPTION, frame.shape, 1 / canvas.DPI)
        canvas.write_title(axes, _title(name))
        foot = canvas.place(page, left, EDGE + bottom, width, lines * LINE)
        foot.set(xlim=(0, 1), ylim=(lines, 0))
        foot.set_axis_off()
        _draw_panel(name, axes, foot, shown)
        if index == 0:
            _draw_scale_bar(axes, frame, slide.mpp)
    return page


def require_panels(slide: SlideScores, style: Style) -> None:
    """Raise MismatchError for a panel of which the scores hold nothing."""
    known = ["classes", "confidence", *(f"probability:{name}" for name in slide.classes)]
    known += ["tissue"] * (style.tissue is not None) + ["shares"] * (slide.shares is not None)
    known += [f"influence:{name}" for name in slide.influence_teachers]
    for name in style.panels:
        if name not in known:
            raise MismatchError(f"panels: {name!r} cannot be drawn of these scores; there are {', '.join(known)}")


def _title(panel: str) -> str:
    kind, _, name = panel.partition(":")
    return TITLES.get(panel, f"{kind.capitalize()} of {name}" if name else kind.capitalize())


def _panel_lines(slide: SlideScores, panel: str) -> int:
    """Lines of the panel's legend."""
    if panel == "classes":
        return _lines(slide.prediction)
    if panel == "shares" and slide.shares is not None:
        return _lines(slide.shares.argmax(axis=1))
    return 2


def _draw_panel(panel: str, axes: "Axes", foot: "Axes", shown: _Map) -> None:
    kind, _, name = panel.partition(":")
    slide = shown.slide
    if kind == "tissue":
        assert shown.under is not None
        axes.imshow(shown.under, interpolation="nearest")
    elif kind == "classes":
        _draw_classes(axes, foot, shown)
    elif kind == "confidence":
        _draw_confidence(axes, foot, shown)
    elif kind == "shares":
        _draw_shares(axes, foot, shown)
    elif kind == "probability":
        _draw_probability(axes, foot, shown, slide.classes.index(name))
    else:
        _draw_influence(axes, foot, shown, slide.influence_teachers.index(name))


def _draw_head(page: "Figure", slide: SlideScores) -> None:
    patches = counted(len(slide.coords), "patch")
    about = f"{patches} of {slide.size:,.0f} x {slide.size:,.0f} level-0 pixels"
    about += "" if slide.mpp else "; micrometres per pixel not known"
    if slide.without_position:
        about += f"; {slide.without_position:,} without position left out"
    axes = canvas.write_head(page, EDGE, HEAD, slide.name, about, rule=0.57)
    width = page.get_size_inches()[0] - 2 * EDGE
    canvas.fit(canvas.write(axes, summarise_slide(slide), (0, 0.48), va="top"), 72 * width)


def _draw_scale_bar(axes: "Axes", frame: Frame, mpp: float | None) -> None:
    """A bar of a round number of micrometres, or of level-0 pixels where these are not known, in the lower left."""
    from matplotlib.patches import Rectangle

    unit = mpp or 1.0
    most = BAR_PART * frame.shape[1] / frame.scale * unit
    power = 10.0 ** np.floor(np.log10(most))
    length = float(power * max(step for step in (1, 2, 5) if step * power <= most))
    pixels, left, top = length / unit * frame.scale, 0.02 * max(frame.shape), frame.shape[0] - 0.03 * max(frame.shape)
    axes.add_patch(Rectangle((left, top), pixels, 0.009 * max(frame.shape), facecolor=INK, edgecolor="white", lw=0.8))
    name = f"{length:,g} pixels"
    if mpp:
        name = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} \u00b5m"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1.0}
    style: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": canvas.SMALL, "color": INK, "bbox": box}
    axes.text(left, top - 0.012 * max(frame.shape), name, **style)


def _draw_map(axes: "Axes", colours: FloatArray, covered: NDArray[np.bool_], shown: _Map) -> None:
    """Show RGB [H, W, 3] in 0..255 where patches are; over the tissue, or with grey elsewhere."""
    if shown.under is None:
        pixels = np.where(covered[..., None], colours, np.array(rgb(EMPTY), dtype=float))
    else:
        mixed = OPACITY * colours + (1 - OPACITY) * shown.under
        pixels = np.where(covered[..., None], mixed, shown.under)
    axes.imshow(pixels.round().astype(np.uint8), interpolation="nearest")


def _draw_probability(axes: "Axes", foot: "Axes", shown: _Map, code: int) -> None:
    from matplotlib import colormaps

    values = shown.probabilities[..., code]  # [H, W]
    _draw_map(axes, 255 * colormaps[RAMP](np.nan_to_num(values))[..., :3], np.isfinite(values), shown)
    mean = float(shown.slide.probabilities[:, code].mean())
    _draw_ramp(foot, RAMP, ("0%", f"mean of the patches {mean:.0%}", "100%"))


def _draw_influence(axes: "Axes", foot: "Axes", shown: _Map, place: int) -> None:
    """What the predicted class's probability loses without a teacher, in points; centred on nothing."""
    from matplotlib import colormaps

    assert shown.slide.influence is not None
    influence = shown.slide.influence[:, [place]]
    values = paint(shown.low, shown.high, influence, shown.shape)[..., 0]
    most = max(float(np.quantile(np.abs(influence), 0.98)), 1e-6)
    level = (np.nan_to_num(values) / most).clip(-1, 1) / 2 + 0.5
    _draw_map(axes, 255 * colormaps[DIVERGING](level)[..., :3], np.isfinite(values), shown)
    points = f"{100 * most:.2g} points"
    _draw_ramp(foot, DIVERGING, (f"against, {points}", "0", f"for the prediction, {points}"))


def _draw_ramp(foot: "Axes", ramp: str, texts: tuple[str, str, str]) -> None:
    """A bar of colours with texts below its left end, its middle and its right end."""
    foot.imshow(np.linspace(0, 1, 256)[None], cmap=ramp, extent=(0, 1, 0.8, 0.2), aspect="auto")
    foot.set(xlim=(0, 1), ylim=(foot.get_ylim()[0], 0))
    for text, x, align in zip(texts, (0.0, 0.5, 1.0), ("left", "center", "right"), strict=True):
        _write_row(foot, 1, text, x, align, INK if x == 0.5 else MUTED)


def _draw_classes(axes: "Axes", foot: "Axes", shown: _Map) -> None:
    slide, style = shown.slide, shown.style
    covered = np.isfinite(shown.probabilities[..., 0])
    code = np.nan_to_num(shown.probabilities, nan=-1.0).argmax(axis=2)
    _draw_map(axes, np.array([rgb(colour) for colour in style.colours], dtype=float)[code], covered, shown)
    _draw_legend(foot, slide.classes, style.colours, slide.prediction, style.first)


def _draw_confidence(axes: "Axes", foot: "Axes", shown: _Map) -> None:
    from matplotlib import colormaps

    chance = 1 / len(shown.slide.classes)
    confidence = shown.probabilities.max(axis=2)  # [H, W]
    level = (np.nan_to_num(confidence) - chance) / max(1 - chance, 1e-9)
    _draw_map(axes, 255 * colormaps[RAMP](level)[..., :3], np.isfinite(confidence), shown)
    median = float(np.median(shown.slide.probabilities.max(axis=1)))
    _draw_ramp(foot, RAMP, (f"{chance:.0%} (chance)", f"median {median:.0%}", "100%"))


def _draw_shares(axes: "Axes", foot: "Axes", shown: _Map) -> None:
    """The teacher with the largest share; the more it exceeds an equal share, the more solid its colour."""
    slide = shown.slide
    assert slide.shares is not None
    shares = paint(shown.low, shown.high, slide.shares, shown.shape)  # [H, W, N]
    teacher, excess, most = leading(shares)
    colours = pick_colours(TEACHER_COLOURS, len(slide.teachers))[teacher].astype(float)
    solid = excess[..., None]
    _draw_map(axes, 255 - solid * (255 - colours), np.isfinite(shares[..., 0]), shown)
    canvas.write_note(axes, f"{1 / len(slide.teachers):.1%} white, {most:.1%} solid")
    colours_of = hex_colours(TEACHER_COLOURS, len(slide.teachers))
    _draw_legend(foot, slide.teachers, colours_of, slide.shares.argmax(axis=1))


def _lines(codes: NDArray[np.int64]) -> int:
    return min(len(np.unique(codes)), MOST_LINES)


def _draw_legend(
    foot: "Axes", names: Sequence[str], colours: Sequence[str], codes: NDArray[np.int64], first: Sequence[int] = ()
) -> None:
    """One line per name that occurs: those of `first`, then the most frequent; with their fraction of the patches."""
    from matplotlib.patches import Rectangle

    fraction = np.bincount(codes, minlength=len(names)) / len(codes)
    ranked = dict.fromkeys([*first, *np.argsort(-fraction, kind="stable").tolist()])
    order = [code for code in ranked if fraction[code] > 0]
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
