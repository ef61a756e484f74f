"""The demo's picture: tissue, what the teachers see, truth, prediction, confidence and attention shares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shazam_fast.demo.tissue import TEST, TRAIN, VAL, Patches, Tissue
from shazam_fast.reporting import canvas
from shazam_fast.reporting.painting import FloatArray, leading, paint
from shazam_fast.reporting.palette import (
    GRADE_COLOURS,
    INK,
    MUTED,
    RAMP,
    TEACHER_COLOURS,
    hex_colours,
    pick_colours,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPLIT_NAMES = {TRAIN: "train", VAL: "validation", TEST: "test"}

# Inches. Everything is placed by hand so that maps, titles and bars share their edges.
WIDTH, PANEL, GAP, EDGE = 12.0, 3.72, 0.17, 0.25
TITLE, HEAD, BARS_TITLE, BAR, FOOT = 0.34, 0.86, 0.60, 0.30, 0.24


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

    Args:
        path: the file.
        tissue, patches: what is shown; every argument below belongs to the rows of `patches`, in all splits.
        prediction: class index. [n].
        probabilities: [n, C].
        teacher_shares: attention shares, rows sum to 1. [n, N].
        teachers: names.
        headline: one line above the panels.

    Raises:
        ShazamError: matplotlib is not installed.
    """
    n_classes, shape = len(patches.classes), tissue.dab.shape
    height = HEAD + 2 * (TITLE + PANEL) + GAP + BARS_TITLE + n_classes * BAR + FOOT
    figure = canvas.new_page(WIDTH, height, "demo")
    truth, scores, shares = (
        _smooth_paint(patches, values, shape)
        for values in (np.eye(n_classes)[patches.labels], probabilities, teacher_shares)
    )
    _draw_headline(figure, headline)
    _draw_panels(figure, tissue, patches, truth, scores, shares)
    _draw_shares(figure, patches, prediction, teacher_shares, teachers)
    canvas.save_figure(figure, Path(path))


def _smooth_paint(patches: Patches, values: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Paint, and blur away the steps of the patch grid, which are no property of the tissue: [H, W, k]."""
    from scipy.ndimage import gaussian_filter

    blur = patches.stride / 2
    painted = paint(patches.coords, patches.coords + patches.size, values, shape)
    return np.asarray(gaussian_filter(painted, (blur, blur, 0)))


def _draw_panels(
    figure: Figure, tissue: Tissue, patches: Patches, truth: FloatArray, scores: FloatArray, shares: FloatArray
) -> None:
    panels = [_panel(figure, row, column, tissue.dab.shape) for row in range(2) for column in range(3)]
    _draw_slide(panels[0], tissue, patches)
    _draw_map(panels[1], "Truth: DAB", truth, tissue, patches.classes)
    _draw_confidence(panels[2], scores)
    _draw_input(panels[3], tissue)
    _draw_map(panels[4], "Prediction", scores, tissue)
    _draw_borders(panels[4], truth)
    _draw_leading(panels[5], shares, tissue)
    for panel in panels[1:]:
        _outline(panel, patches, TEST)


def _panel(figure: Figure, row: int, column: int, shape: tuple[int, int]) -> Axes:
    top = HEAD + TITLE + row * (TITLE + PANEL + GAP)
    return canvas.place_map(figure, EDGE + column * (PANEL + GAP), top, shape, PANEL / max(shape))


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
        axes.text(low[0] + 7, low[1] + 7, label, va="top", fontsize=canvas.SMALL, color="white", bbox=tag)


def _stain(tissue: Tissue) -> FloatArray:
    """Hematoxylin in 0..1, [H, W], where 1 is the darkest nuclei."""
    return np.asarray((tissue.hematoxylin / np.quantile(tissue.hematoxylin, 0.998)).clip(0, 1))


def _paper(tissue: Tissue, shade: float) -> FloatArray:
    """What maps are printed on, [H, W, 1]: nuclei as grey shadows on white, so that glands stay readable."""
    return 1 - shade * _stain(tissue)[..., None]


def _draw_headline(figure: Figure, headline: str) -> None:
    note = (
        "Boxed: the test area, never used in training. Pixels show the mean of the patches over them. "
        "Attention shares do not measure how useful a teacher is."
    )
    axes = canvas.place(figure, EDGE, 0, WIDTH - 2 * EDGE, HEAD)
    axes.set_axis_off()
    title = canvas.write(axes, headline, (0, 0.60), fontsize=16, weight="bold", va="center")
    canvas.fit(title, 72 * (WIDTH - 2 * EDGE))
    canvas.write(axes, note, (0, 0.22), fontsize=10, color=MUTED, va="center")


def _draw_slide(axes: Axes, tissue: Tissue, patches: Patches) -> None:
    axes.imshow(tissue.rgb, interpolation="lanczos")
    canvas.write_title(axes, "Slide: hematoxylin and DAB")
    for split, name in SPLIT_NAMES.items():
        _outline(axes, patches, split, name)


def _draw_input(axes: Axes, tissue: Tissue) -> None:
    axes.imshow(_stain(tissue), cmap="Purples", vmin=0, vmax=1, interpolation="lanczos")
    canvas.write_title(axes, "Teachers see: hematoxylin")


def _draw_map(axes: Axes, text: str, scores: FloatArray, tissue: Tissue, keys: Sequence[str] = ()) -> None:
    """The class with the highest mean probability."""
    colours = pick_colours(GRADE_COLOURS, scores.shape[2])[scores.argmax(axis=2)] / 255  # [H, W, 3]
    axes.imshow(colours * _paper(tissue, 0.45), interpolation="nearest")
    canvas.write_title(axes, text, list(zip(keys, hex_colours(GRADE_COLOURS, len(keys)), strict=True)))


def _draw_borders(axes: Axes, truth: FloatArray) -> None:
    """Outline the true classes on a map, so that both can be compared in one panel."""
    grade = truth.argmax(axis=2)
    for level in range(1, truth.shape[2]):
        axes.contour(grade >= level, levels=[0.5], colors="white", linewidths=1.1)
    canvas.write_note(axes, "lines: borders of the truth")


def _draw_confidence(axes: Axes, scores: FloatArray) -> None:
    chance = 1 / scores.shape[2]
    image = axes.imshow(scores.max(axis=2), cmap=RAMP, vmin=chance, vmax=1)
    canvas.write_title(axes, "Confidence")
    bar = axes.inset_axes((0.58, 1.027, 0.29, 0.022))
    axes.figure.colorbar(image, cax=bar, orientation="horizontal", ticks=[]).outline.set_visible(False)
    canvas.write_note(axes, "100%")
    canvas.write_note(axes, f"{chance:.0%}", 0.565)


def _draw_leading(axes: Axes, shares: FloatArray, tissue: Tissue) -> None:
    """The teacher with the largest share; the more it exceeds an equal share, the more solid its colour."""
    teacher, excess, most = leading(shares)
    colours = pick_colours(TEACHER_COLOURS, shares.shape[2])[teacher] / 255  # [H, W, 3]
    axes.imshow((1 - excess[..., None] * (1 - colours)) * _paper(tissue, 0.25), interpolation="nearest")
    canvas.write_title(axes, "Largest attention share")
    canvas.write_note(axes, f"{1 / shares.shape[2]:.0%} pale, {most:.0%} solid")


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
    axes = canvas.place(figure, EDGE + label_width, top, WIDTH - 2 * EDGE - label_width, n_classes * BAR)
    axes.set(xlim=(0, 1), ylim=(n_classes - 0.5, -0.5))
    axes.set_axis_off()
    colours = hex_colours(TEACHER_COLOURS, len(teachers))
    title = "Mean attention share of each teacher, by predicted class (test area)"
    canvas.write_title(axes, title, list(zip(teachers, colours, strict=True)))
    centre: dict[str, Any] = {"va": "center_baseline", "fontsize": 10}
    for row, name in enumerate(patches.classes):
        mine = (patches.splits == TEST) & (prediction == row)
        axes.text(-0.008, row, f"{name}  ({mine.sum():,})", ha="right", color=INK, **centre)
        mean = shares[mine].mean(axis=0) if mine.any() else np.zeros(len(teachers))  # [N]
        for colour, share, end in zip(colours, mean, mean.cumsum(), strict=True):
            axes.barh(row, share, left=end - share, height=0.78, color=colour, ec="white", lw=1.2)
            if share >= 0.05:  # else the number would not fit
                axes.text(end - share / 2, row, f"{share:.1%}", ha="center", color="white", **centre)
