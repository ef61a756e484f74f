"""One picture of the demo: tissue, what the teachers see, truth, prediction, confidence, trusted teachers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shazam_fast.demo.tissue import TEST, TRAIN, VAL, Patches, Tissue
from shazam_fast.errors import ShazamError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = NDArray[np.floating[Any]]

INK, MUTED = "#1b1f24", "#5c6670"
# Counterstain blue, amber, DAB brown: the order survives in greyscale and in every colour blindness.
CLASS_COLOURS = ("#9dbfe0", "#f2b741", "#9a4413")
# Paul Tol's "muted" scheme, made to be told apart by colour-blind readers.
TEACHER_COLOURS = ("#44aa99", "#cc6677", "#332288", "#999933", "#88ccee", "#882255", "#ddcc77")
SPLIT_NAMES = {TRAIN: "train", VAL: "validation", TEST: "test"}

# Inches. Everything is placed by hand so that maps, titles and bars share their edges.
WIDTH, PANEL, GAP, EDGE = 12.0, 3.72, 0.17, 0.25
TITLE, HEAD, BARS_TITLE, BAR, FOOT = 0.34, 0.86, 0.60, 0.30, 0.24
DPI, SMALL = 150, 9.5  # dots per inch; points of small print


def paint(coords: NDArray[np.int32], size: int, values: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Average the values [n, k] of all patches that cover a pixel: [H, W, k], NaN where no patch does.

    Each patch adds its value at two corners and takes it away at the two others; two running sums then
    fill the square, so the cost does not depend on the patch size.
    """
    x, y = coords.astype(np.int64).T
    marked = np.concatenate([values, np.ones((len(values), 1))], axis=1).astype(np.float64)  # [n, k + 1]
    canvas = np.zeros((shape[0] + 1, shape[1] + 1, marked.shape[1]))
    for dy, dx, sign in ((0, 0, 1), (0, size, -1), (size, 0, -1), (size, size, 1)):
        np.add.at(canvas, (y + dy, x + dx), sign * marked)
    sums = canvas.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]  # [H, W, k + 1]
    cover = np.where(sums[..., -1:] > 0.5, sums[..., -1:], np.nan)
    return np.asarray(sums[..., :-1] / cover)


def _smooth_paint(patches: Patches, values: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Paint, and blur away the steps of the patch grid, which are no property of the tissue: [H, W, k]."""
    from scipy.ndimage import gaussian_filter

    blur = patches.stride / 2
    return np.asarray(gaussian_filter(paint(patches.coords, patches.size, values, shape), (blur, blur, 0)))


def draw_figure(
    path: str | Path,
    tissue: Tissue,
    patches: Patches,
    prediction: NDArray[np.integer[Any]],
    probabilities: FloatArray,
    teacher_shares: FloatArray,
    teachers: Sequence[str],
    headline: str,
) -> None:
    """Write one PNG, 1800 pixels wide.

    `prediction` [n], `probabilities` [n, C] and `teacher_shares` [n, N] (rows sum to 1) belong to the rows
    of `patches`, those outside every split included.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ShazamError("the demo's figure needs matplotlib: pip install 'shazam_fast[demo]'") from error
    n_classes, shape = len(patches.classes), tissue.dab.shape
    height = HEAD + 2 * (TITLE + PANEL) + GAP + BARS_TITLE + n_classes * BAR + FOOT
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    panels = [_panel(figure, row, column, shape) for row in range(2) for column in range(3)]

    truth, scores, shares = (
        _smooth_paint(patches, values, shape)
        for values in (np.eye(n_classes)[patches.labels], probabilities, teacher_shares)
    )
    _draw_headline(figure, headline)
    _draw_slide(panels[0], tissue, patches)
    _draw_map(panels[1], "Truth: DAB", truth, tissue, patches.classes)
    _draw_confidence(panels[2], scores)
    _draw_input(panels[3], tissue)
    _draw_map(panels[4], "Prediction", scores, tissue)
    _draw_borders(panels[4], truth)
    _draw_trust(panels[5], shares, tissue)
    for panel in panels[1:]:
        _outline(panel, patches, TEST)
    _draw_shares(figure, patches, prediction, teacher_shares, teachers)
    figure.savefig(path, dpi=DPI, format="png")


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a position in inches from the top left corner."""
    page = np.tile(figure.get_size_inches(), 2)
    return figure.add_axes(np.array([left, page[1] - top - height, width, height]) / page)


def _panel(figure: Figure, row: int, column: int, shape: tuple[int, int]) -> Axes:
    top = HEAD + TITLE + row * (TITLE + PANEL + GAP)
    axes = _place(figure, EDGE + column * (PANEL + GAP), top, PANEL, PANEL)
    axes.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _title(axes: Axes, text: str, keys: Sequence[tuple[str, str]] = ()) -> None:
    """Title at the left edge; keys (name, colour) as small squares at the right edge of the same line."""
    place = "axes fraction", "offset points"
    axes.annotate(text, (0, 1), (0, 7), *place, fontsize=11.5, weight="bold", color=INK)
    right = 0.0  # points from the right edge
    for name, colour in reversed(keys):
        note = axes.annotate(name, (1, 1), (right, 7), *place, ha="right", fontsize=SMALL, color=INK)
        right -= note.get_window_extent().width * 72 / DPI + 4
        axes.annotate("\u25a0", (1, 1), (right, 6), *place, ha="right", fontsize=12, color=colour)
        right -= 17


def _note(axes: Axes, text: str, right: float = 1.0) -> None:
    """Small print on the title line, ending at a fraction of its width."""
    place = (right, 1), (0, 7), "axes fraction", "offset points"
    axes.annotate(text, *place, ha="right", fontsize=SMALL, color=MUTED)


def _outline(axes: Axes, patches: Patches, split: int, label: str = "") -> None:
    """Draw the rectangle that the patches of a split cover together; test stands out."""
    from matplotlib.patches import Rectangle

    corners = patches.coords[patches.splits == split]  # [m, 2]
    width = 2.2 if split == TEST else 1.1
    low = corners.min(axis=0) - 0.5 + width  # inset by the line's width: the panel would cut half of it off
    high = corners.max(axis=0) + patches.size - 0.5 - width
    axes.add_patch(Rectangle(low, *(high - low), fill=False, lw=width, ec=INK))
    if label:
        tag = {"fc": INK, "ec": "none", "pad": 2.5}
        axes.text(low[0] + 7, low[1] + 7, label, va="top", fontsize=SMALL, color="white", bbox=tag)


def _stain(tissue: Tissue) -> FloatArray:
    """Hematoxylin in 0..1, [H, W], where 1 is the darkest nuclei."""
    return np.asarray((tissue.hematoxylin / np.quantile(tissue.hematoxylin, 0.998)).clip(0, 1))


def _paper(tissue: Tissue, shade: float) -> FloatArray:
    """What maps are printed on, [H, W, 1]: nuclei as grey shadows on white, so that glands stay readable."""
    return 1 - shade * _stain(tissue)[..., None]


def _pick(colours: Sequence[str], index: NDArray[np.integer[Any]]) -> FloatArray:
    from matplotlib.colors import to_rgba_array

    return np.asarray(to_rgba_array(colours)[index % len(colours), :3])  # [H, W, 3]


def _draw_headline(figure: Figure, headline: str) -> None:
    note = "Boxed: the test area, never used in training. Each pixel shows the mean of the patches over it."
    axes = _place(figure, EDGE, 0, WIDTH - 2 * EDGE, HEAD)
    axes.set_axis_off()
    title = axes.text(0, 0.60, headline, fontsize=16, weight="bold", color=INK, va="center")
    for size in range(15, 7, -1):  # hinting makes widths jump, so measure rather than scale
        if title.get_window_extent().width <= axes.bbox.width:
            break
        title.set_fontsize(size)
    axes.text(0, 0.22, note, fontsize=10.5, color=MUTED, va="center")


def _draw_slide(axes: Axes, tissue: Tissue, patches: Patches) -> None:
    axes.imshow(tissue.rgb, interpolation="lanczos")
    _title(axes, "Slide: hematoxylin and DAB")
    for split, name in SPLIT_NAMES.items():
        _outline(axes, patches, split, name)


def _draw_input(axes: Axes, tissue: Tissue) -> None:
    axes.imshow(_stain(tissue), cmap="Purples", vmin=0, vmax=1, interpolation="lanczos")
    _title(axes, "Teachers see: hematoxylin")


def _draw_map(axes: Axes, text: str, scores: FloatArray, tissue: Tissue, keys: Sequence[str] = ()) -> None:
    """The class with the highest mean probability."""
    colours = _pick(CLASS_COLOURS, scores.argmax(axis=2))  # [H, W, 3]
    axes.imshow(colours * _paper(tissue, 0.45), interpolation="nearest")
    _title(axes, text, list(zip(keys, cycle(CLASS_COLOURS), strict=False)))


def _draw_borders(axes: Axes, truth: FloatArray) -> None:
    """Outline the true classes on a map, so that the eye need not jump between panels."""
    grade = truth.argmax(axis=2)
    for level in range(1, truth.shape[2]):
        axes.contour(grade >= level, levels=[0.5], colors="white", linewidths=1.1)
    _note(axes, "lines: borders of the truth")


def _draw_confidence(axes: Axes, scores: FloatArray) -> None:
    chance = 1 / scores.shape[2]
    image = axes.imshow(scores.max(axis=2), cmap="cividis", vmin=chance, vmax=1)
    _title(axes, "Confidence")
    bar = axes.inset_axes((0.58, 1.027, 0.29, 0.022))
    axes.figure.colorbar(image, cax=bar, orientation="horizontal", ticks=[]).outline.set_visible(False)
    _note(axes, "100%")
    _note(axes, f"{chance:.0%}", 0.565)


def _draw_trust(axes: Axes, shares: FloatArray, tissue: Tissue) -> None:
    """The teacher with the largest share; the more its share exceeds an equal one, the more solid."""
    largest = shares.max(axis=2, keepdims=True)  # [H, W, 1]
    # Not the maximum: shares swing most on empty glass, and would leave the tissue blank.
    equal, most = 1 / shares.shape[2], float(np.quantile(largest, 0.9))
    solid = ((largest - equal) / max(most - equal, 1e-9)).clip(0, 1)
    colours = 1 - solid * (1 - _pick(TEACHER_COLOURS, shares.argmax(axis=2)))  # [H, W, 3]
    axes.imshow(colours * _paper(tissue, 0.25), interpolation="nearest")
    _title(axes, "Trusted teacher")
    _note(axes, f"share: {equal:.1%} pale, {most:.1%}+ solid")


def _draw_shares(
    figure: Figure,
    patches: Patches,
    prediction: NDArray[np.integer[Any]],
    shares: FloatArray,
    teachers: Sequence[str],
) -> None:
    """One bar per predicted class: the mean share of every teacher over the test patches."""
    n_classes, label_width = len(patches.classes), 1.85
    top = HEAD + 2 * (TITLE + PANEL) + GAP + BARS_TITLE
    axes = _place(figure, EDGE + label_width, top, WIDTH - 2 * EDGE - label_width, n_classes * BAR)
    axes.set(xlim=(0, 1), ylim=(n_classes - 0.5, -0.5))
    axes.set_axis_off()
    keys = list(zip(teachers, cycle(TEACHER_COLOURS), strict=False))
    _title(axes, "Mean share of each teacher, by predicted class (test area)", keys)
    centre: dict[str, Any] = {"va": "center_baseline", "fontsize": 10}
    for row, name in enumerate(patches.classes):
        mine = (patches.splits == TEST) & (prediction == row)
        axes.text(-0.008, row, f"{name}  ({mine.sum():,})", ha="right", color=INK, **centre)
        mean = shares[mine].mean(axis=0) if mine.any() else np.zeros(len(teachers))  # [N]
        for (_, colour), share, end in zip(keys, mean, mean.cumsum(), strict=True):
            axes.barh(row, share, left=end - share, height=0.78, color=colour, ec="white", lw=1.2)
            if share >= 0.05:  # else the number would not fit
                axes.text(end - share / 2, row, f"{share:.1%}", ha="center", color="white", **centre)
