"""The demo's picture: the conclusion, the tissue and what is predicted of it, the methods, and the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from shazam_fast.comparison.result import Cell, Comparison
from shazam_fast.demo.tissue import AREAS, CLASSES, Patches, Tissue
from shazam_fast.images.overview import Tissue as Below
from shazam_fast.reporting import canvas
from shazam_fast.reporting.charts import HALF, WIDE
from shazam_fast.reporting.palette import GRADE_COLOURS, MUTED
from shazam_fast.reporting.plots import plot
from shazam_fast.reporting.report.evidence import Resampling
from shazam_fast.reporting.report.performance import draw_calibration
from shazam_fast.reporting.slide_picture import CAPTION, EDGE, GAP, HEAD, Style, draw_slide
from shazam_fast.reporting.slide_scores import Frame, SlideScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDENT = "shazam"  # the method whose predictions are drawn
SIDE = 500  # pixels of a map
# Inches.
WIDTH, TOP, TITLE = WIDE + 2 * EDGE, 1.18, 0.42
LINE = 88  # characters of the conclusion
ABOUT = (
    "Four simple image descriptors see the nuclei alone and are the teachers. Task: what would a second stain show? "
    "One image is no evidence."
)
NOTE = "Every area (white borders) is predicted by\nstudents that were not trained on it."
COLOURS = 256  # of the file, which is less than half as large as with all of them


def draw_figure(path: Path, tissue: Tissue, patches: Patches, slide: Path, found: Comparison) -> None:
    """Write one PNG; every prediction that it shows is of a patch in an area that was not trained on.

    Args:
        path: the file.
        tissue, patches: what is shown.
        slide: the image of what the teachers see; its name without suffix is the slide's.
        found: the comparison, with the method `shazam`.

    Raises:
        ShazamError: matplotlib is not installed.
    """
    cells = [cell for cell in found.cells if cell.method == STUDENT]
    probabilities, labels, groups = (
        np.concatenate([getattr(cell, name) for cell in cells]) for name in ("probabilities", "labels", "groups")
    )
    reliability, _ = draw_calibration(probabilities, labels, Resampling(groups, seed=0))
    methods, maps = plot(found), _draw_maps(_mean_scores(cells, patches, found.teachers, slide.stem), slide, tissue)
    upper, middle, lower = (figure.get_size_inches()[1] for figure in (maps, methods, reliability[0]))
    page = canvas.new_page(WIDTH, TOP + upper + TITLE + middle + TITLE + lower + EDGE, "demo")
    _write_conclusion(page, found.conclusion())
    canvas.paste(page, maps, 0, TOP)
    _show_truth(page, tissue)
    top = TOP + upper + TITLE
    _write_title(page, top, f"Methods on {found.repeats} random splits of the {AREAS**2} areas, 95% intervals")
    canvas.paste(page, methods, EDGE, top)
    top += middle + TITLE
    _write_title(page, top, f"Are the probabilities of {STUDENT!r} right? Test patches of all splits, 95% intervals")
    for figure, left in zip(reliability, (EDGE, EDGE + WIDE - HALF), strict=True):
        canvas.paste(page, figure, left, top)
    canvas.save_figure(page, path)
    Image.open(path).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def _mean_scores(cells: Sequence[Cell], patches: Patches, teachers: tuple[str, ...], slide: str) -> SlideScores:
    """Of every patch the mean prediction of those splits in which it was a test patch; others are left out."""
    total = np.zeros((len(patches.labels), len(CLASSES)))
    for cell in cells:
        if cell.probabilities is not None:
            total[cell.rows] += cell.probabilities
    tested = total.any(axis=1)
    mean = (total[tested] / total[tested].sum(axis=1, keepdims=True)).astype(np.float32)
    coords = patches.coords[tested].astype(float)
    return SlideScores(slide, coords, patches.size, mean.argmax(axis=1), mean, None, CLASSES, teachers)


def _draw_maps(scores: SlideScores, slide: Path, tissue: Tissue) -> Figure:
    """What the teachers see, and the predicted class over it."""
    style = Style(("tissue", "classes"), GRADE_COLOURS, (0, 1, 2), Below(slide, 1.0, (slide.stem,)))
    return draw_slide(scores, style, Frame(np.zeros(2), SIDE / len(tissue.dab), (SIDE, SIDE)))


def _show_truth(page: Figure, tissue: Tissue) -> None:
    """The stained image, in line with the maps."""
    side = SIDE / canvas.DPI
    place = EDGE + 2 * (side + GAP), TOP + EDGE + HEAD + CAPTION
    axes = canvas.place_map(page, *place, tissue.dab.shape, side / len(tissue.dab))
    axes.imshow(tissue.rgb, interpolation="antialiased")
    canvas.write_title(axes, "Truth: the second stain (brown)")
    canvas.write(axes, NOTE, (0, 0), (0, -12), va="top", color=MUTED)


def _write_conclusion(page: Figure, conclusion: str) -> None:
    axes = canvas.place(page, EDGE, EDGE, WIDE, TOP - EDGE)
    axes.set_axis_off()
    canvas.write(axes, "\n".join(wrap(conclusion, LINE)), (0, 1), fontsize=canvas.TITLE + 1, weight="bold", va="top")
    canvas.write(axes, ABOUT, (0, 0.02), color=MUTED)


def _write_title(page: Figure, top: float, text: str) -> None:
    axes = canvas.place(page, EDGE, top, WIDE, 0.1)
    axes.set_axis_off()
    canvas.write_title(axes, text)
