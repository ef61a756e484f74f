"""A sheet of patches: a row of images per class, with the slide and a number below each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError
from ..runtime.checks import require_count, require_number, require_path
from ..runtime.jobs.locks import require_writable
from . import canvas
from .palette import MUTED, RULE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

SIDE = 256  # pixels that a patch is read with
SHOWN = 1.3  # inches of a patch on the sheet
EDGE, HEAD, NAME, GAP = 0.32, 0.45, 0.42, 0.12  # inches


@dataclass(frozen=True)
class TopPatch:
    """A patch of the sheet.

    Attributes:
        row_title: the class, or the end of a number, that it is shown for.
        slide: its slide.
        x, y: its corner in level-0 pixels.
        size: its side in level-0 pixels.
        value: what it was chosen by: the probability of the class; of whole slides the attention, in units of an equal
            share.

    >>> TopPatch("lusc", "s1", 0, 512, 256, 3.5).value
    3.5
    """

    row_title: str
    slide: str
    x: int
    y: int
    size: int
    value: float


def check_sheet(out: str | Path, counts: Mapping[str, int], sizes: Mapping[str, float | None]) -> Path:
    """The file of a sheet, before anything is read.

    Args:
        out: the file.
        counts: options that are numbers of patches, by name.
        sizes: options above 0 or None, by name.

    Raises ShazamError when an option is out of range, matplotlib is missing, or the file cannot be written.
    """
    for name, count in counts.items():
        require_count(name, count)
    for name, value in sizes.items():
        if value is not None:
            require_number(name, value, above=0)
    path = require_path("out", out)
    canvas.require_kind(path)
    require_writable(path.absolute().parent)
    canvas.new_page(1, 1, "heatmap")  # matplotlib is there
    return path


def best_patches(
    title: str, slide: str, coords: NDArray[np.floating[Any]], size: float, values: NDArray[np.floating[Any]], most: int
) -> list[TopPatch]:
    """The patches of a slide with the largest values, the largest first.

    Args:
        title: of the row.
        slide: the slide's name.
        coords: x and y of each patch's corner in level-0 pixels, [n, 2].
        size: a patch's side in level-0 pixels.
        values: what they are chosen by, [n].
        most: of the slide.
    """
    best = np.argsort(-values, kind="stable")[:most]
    places = coords[best].round().astype(int).tolist()
    return [
        TopPatch(title, slide, x, y, round(size), float(value))
        for (x, y), value in zip(places, values[best], strict=True)
    ]


def write_sheet(
    found: Mapping[str, Sequence[TopPatch]], count: int, files: Mapping[str, Path], form: str, out: Path
) -> list[TopPatch]:
    """Write a sheet with a row per title, of the patches with the largest values.

    Args:
        found: {title: patches to choose from}.
        count: most patches of a row.
        files: {slide: its whole-slide image}.
        form: how the values are written, such as "{:.0%}".
        out: the file.

    Returns the patches that are shown, row by row, the largest value first.

    Raises MismatchError when there is no patch; ImageError for one that cannot be read.
    """
    from ..images.slide_reader import SlideReader

    chosen = {title: sorted(some, key=lambda patch: -patch.value)[:count] for title, some in found.items()}
    most = max(len(patches) for patches in chosen.values())
    if not most:
        raise MismatchError("none of the slides with an image has a patch with a position; nothing can be shown")
    row = HEAD + SHOWN + NAME
    page = canvas.new_page(2 * EDGE + most * (SHOWN + GAP) - GAP, 2 * EDGE + len(chosen) * row, "heatmap")
    width, reader = page.get_size_inches()[0] - 2 * EDGE, SlideReader()
    for line, (title, patches) in enumerate(chosen.items()):
        top = EDGE + line * row
        head = canvas.place(page, EDGE, top, width, HEAD)
        head.set_axis_off()
        head.set(xlim=(0, 1), ylim=(0, 1))
        head.axhline(0.25, color=RULE, lw=1)
        canvas.write(head, title, (0, 0.45), fontsize=canvas.CAPTION, weight="bold")
        if not patches:
            canvas.write(head, "none", (1, 0.45), ha="right", color=MUTED)
        for index, patch in enumerate(patches):
            image = reader.read(files[patch.slide], patch.x, patch.y, patch.size, SIDE)
            _draw_patch(page, EDGE + index * (SHOWN + GAP), top + HEAD, image, patch.slide, form.format(patch.value))
    out.parent.mkdir(parents=True, exist_ok=True)
    with canvas.missing_glyphs_logged(out):
        canvas.save_figure(page, out)
    return [patch for patches in chosen.values() for patch in patches]


def _draw_patch(page: "Figure", left: float, top: float, image: "Image", *lines: str) -> None:
    axes = canvas.place_map(page, left, top, (SIDE, SIDE), SHOWN / SIDE)
    axes.imshow(np.asarray(image), interpolation="antialiased")
    for number, line in enumerate(lines, start=1):
        canvas.fit(canvas.write(axes, line, (0, 0), (0, -12 * number), color=MUTED), 72 * SHOWN)
