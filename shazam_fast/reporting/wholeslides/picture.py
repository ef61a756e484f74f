"""The picture of a slide's attention: over the slide, with the largest teacher share beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.summaries import counted
from .. import canvas
from ..painting import leading, paint
from ..palette import EMPTY, INK, MUTED, RAMP, TEACHER_COLOURS, hex_colours, pick_colours
from .patches import SlidePatches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONG_SIDE = 900  # pixels of the longer side of a map
MARGIN = 0.03  # of the longer side, around the patches
EDGE, GAP, HEAD, CAPTION, FOOT, LINE = 0.32, 0.27, 0.62, 0.34, 0.16, 0.25  # inches
NARROWEST = 2.9  # inches, a panel with its legend
TOP = 0.99  # quantile of attention that has the last colour
OPACITY = 0.72  # of colours over the slide, at most
FAINT = 0.12  # at least

FloatArray = NDArray[np.floating[Any]]


def draw_attention(slide: SlidePatches, teachers: tuple[str, ...], prediction: str, image: Path | None) -> "Figure":
    """A page with the slide (where it is given), its attention, and the teacher with the largest share.

    Args:
        slide: its patches.
        teachers: names.
        prediction: words for the head of the page.
        image: the whole-slide image.
    """
    frame = _Frame(slide, image)
    below = frame.background()
    panels = [*(["Slide"] if image is not None else []), "Attention"]
    panels += ["Largest teacher share"] if slide.shares is not None and len(teachers) > 1 else []
    lines = max(2, len(teachers) if "Largest teacher share" in panels else 0)
    width = max(frame.shape[1] / canvas.DPI, NARROWEST)
    bottom = HEAD + CAPTION + frame.shape[0] / canvas.DPI + FOOT  # of the maps
    size = 2 * EDGE + len(panels) * width + (len(panels) - 1) * GAP, 2 * EDGE + bottom + lines * LINE
    page = canvas.new_page(*size, "heatmap")
    _draw_head(page, slide, prediction)
    for index, caption in enumerate(panels):
        left = EDGE + index * (width + GAP)
        axes = canvas.place_map(page, left, EDGE + HEAD + CAPTION, frame.shape, 1 / canvas.DPI)
        canvas.write_title(axes, caption)
        foot = canvas.place(page, left, EDGE + bottom, width, lines * LINE)
        foot.set(xlim=(0, 1), ylim=(lines, 0))
        foot.set_axis_off()
        if caption == "Slide":
            axes.imshow(below, interpolation="nearest")
        elif caption == "Attention":
            _draw_attention(axes, foot, slide, frame, below)
        else:
            _draw_shares(axes, foot, slide, teachers, frame, below)
    return page


class _Frame:
    """The part of the slide that is drawn, and where patches are in it.

    Attributes:
        corner, extent: of that part in level-0 pixels, x and y.
        shape: of the map, height and width.
        low, high: corners of the patches in the map, int64 [n, 2].
        over_slide: whether the slide itself is drawn.
    """

    def __init__(self, slide: SlidePatches, image: Path | None) -> None:
        self.over_slide, self._image = image is not None, image
        first, last = slide.coords.min(axis=0), slide.coords.max(axis=0) + slide.size
        margin = np.clip(first, 0, MARGIN * (last - first).max())  # on both sides alike, none outside the slide
        self.corner = np.maximum(0, np.floor(first - margin)).astype(int)
        self.extent = np.ceil(last + margin).astype(int) - self.corner
        scale = LONG_SIDE / self.extent.max()
        width, height = np.maximum(1, np.round(self.extent * scale)).astype(int).tolist()
        self.shape = (height, width)
        low = np.floor((slide.coords - self.corner) * scale + 1e-6).astype(np.int64)
        high = np.ceil((slide.coords - self.corner + slide.size) * scale - 1e-6).astype(np.int64)
        self.low = np.minimum(low, (width - 1, height - 1))
        self.high = np.minimum(np.maximum(self.low + 1, high), (width, height))

    def background(self) -> NDArray[np.uint8]:
        """RGB [H, W, 3]: the slide, or grey."""
        if self._image is None:
            grey = np.array(list(bytes.fromhex(EMPTY[1:])), dtype=np.uint8)
            return np.broadcast_to(grey, (*self.shape, 3)).copy()
        from ...images.overview import read_overview

        corner, extent = self.corner.tolist(), self.extent.tolist()
        return read_overview(self._image, (corner[0], corner[1]), (extent[0], extent[1]), self.shape)


def _draw_head(page: "Figure", slide: SlidePatches, prediction: str) -> None:
    about = f"predicted: {prediction}   {counted(len(slide.coords), 'patch')} of {slide.size:,.0f} level-0 pixels"
    if slide.without_position:
        about += f"; {slide.without_position:,} without position left out"
    canvas.write_head(page, EDGE, HEAD, slide.name, about, rule=0.38)


def _lay_over(axes: "Axes", below: NDArray[np.uint8], colours: FloatArray, opacity: FloatArray) -> None:
    """Show colours [H, W, 3] in 0..255 over the background, with opacity [H, W]."""
    mixed = below + opacity[..., None] * (colours - below)
    axes.imshow(mixed.round().astype(np.uint8), interpolation="nearest")


def _draw_attention(axes: "Axes", foot: "Axes", slide: SlidePatches, frame: _Frame, below: NDArray[np.uint8]) -> None:
    from matplotlib import colormaps

    attention = paint(frame.low, frame.high, slide.attention[:, None], frame.shape)[..., 0]  # [H, W]
    top = max(float(np.quantile(slide.attention, TOP)), 1e-9)
    level = np.nan_to_num(attention / top).clip(0, 1)
    most, least = (OPACITY, FAINT) if frame.over_slide else (1.0, 1.0)
    opacity = np.where(np.isfinite(attention), least + (most - least) * level, 0.0)
    _lay_over(axes, below, 255 * colormaps[RAMP](level)[..., :3], opacity)
    rows = foot.get_ylim()[0]
    foot.imshow(np.linspace(0, 1, 256)[None], cmap=RAMP, extent=(0, 1, 0.8, 0.2), aspect="auto")
    foot.set(xlim=(0, 1), ylim=(rows, 0))
    at = 1 - 1.5 / rows
    canvas.write(foot, "0", (0, at), va="center_baseline", color=MUTED)
    canvas.write(foot, f"{top:.1f} x an equal share or more", (1, at), ha="right", va="center_baseline", color=INK)


def _draw_shares(
    axes: "Axes", foot: "Axes", slide: SlidePatches, teachers: tuple[str, ...], frame: _Frame, below: NDArray[np.uint8]
) -> None:
    """The teacher with the largest share; the more it exceeds an equal share, the more solid its colour."""
    from matplotlib.patches import Rectangle

    assert slide.shares is not None
    shares = paint(frame.low, frame.high, slide.shares, frame.shape)  # [H, W, N]
    teacher, excess, most = leading(shares)
    colours = pick_colours(TEACHER_COLOURS, len(teachers))[teacher].astype(float)
    most_opaque = OPACITY if frame.over_slide else 1.0
    opacity = np.where(np.isfinite(shares[..., 0]), FAINT + (most_opaque - FAINT) * excess, 0.0)
    _lay_over(axes, below, colours, opacity)
    canvas.write_note(axes, f"{1 / len(teachers):.1%} faint, {most:.1%} solid")
    weights = slide.attention / max(slide.attention.sum(), 1e-300)
    of_slide = weights @ slide.shares
    rows, room = foot.get_ylim()[0], foot.bbox.width * 72 / canvas.DPI
    for line, (name, colour) in enumerate(zip(teachers, hex_colours(TEACHER_COLOURS, len(teachers)), strict=True)):
        at = 1 - (line + 0.5) / rows
        foot.add_patch(Rectangle((0, line + 0.2), 11.0 / room, 0.6, color=colour, lw=0))
        canvas.fit(canvas.write(foot, name, (17 / room, at), va="center_baseline", color=INK), room - 130)
        share = f"{of_slide[line]:.1%} of the slide"
        canvas.write(foot, share, (1, at), ha="right", va="center_baseline", color=MUTED)
