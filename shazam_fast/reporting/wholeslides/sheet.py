"""The patches that weighed most for each class, as one sheet of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...errors import MismatchError
from ...runtime.checks import require_count, require_number, require_path
from ...runtime.jobs.locks import require_writable
from ...slides.scores import SlideScores
from .. import canvas
from ..palette import MUTED, RULE
from .patches import SlidePatches, read_slide_scores, split_by_slide

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

SIDE = 256  # pixels that a patch is read with
SHOWN = 1.3  # inches of a patch on the sheet
EDGE, HEAD, NAME, GAP = 0.32, 0.45, 0.42, 0.12  # inches
EXTREME = 0.25  # fraction of the slides that counts as largest, or as smallest, of a number


@dataclass(frozen=True)
class TopPatch:
    """A patch of the sheet.

    Attributes:
        row_title: the class, or the end of a number, that it is shown for.
        slide: its slide.
        x, y: its corner in level-0 pixels.
        size: its side in level-0 pixels.
        attention: in units of an equal share.

    >>> TopPatch("lusc", "s1", 0, 512, 256, 3.5).attention
    3.5
    """

    row_title: str
    slide: str
    x: int
    y: int
    size: int
    attention: float


# Over 40 lines: every option is documented here.
def top_patches(
    scores: SlideScores | str | Path,
    out: str | Path,
    *,
    images: str | Path | Mapping[str, str | Path],
    count: int = 8,
    per_slide: int = 2,
    patch_size: float | None = None,
    mpp: float | None = None,
) -> list[TopPatch]:
    """Write one sheet of the patches with the largest attention of the slides that are predicted as each class.

    Of numbers and of survival: of the quarter of the slides with the largest, and with the smallest, prediction.

    Args:
        scores: what `sf.slides.score` returned or wrote.
        out: the file, .png, .svg or .pdf.
        images: the whole-slide images: a folder, a file, or {slide: file}. Slides that have none are passed over.
        count: patches per class.
        per_slide: most patches of one slide.
        patch_size, mpp: as for `sf.slides.heatmap`.

    Returns the patches that are shown, row by row.

    Raises:
        MismatchError: patches without positions; a slide whose patch size or mpp is not known.
        ImageError: no image is of these slides, or one cannot be read.
        ArchiveError: the scores are missing or damaged.
        ShazamError: matplotlib is missing, or the file cannot be written.

    >>> top_patches("/nowhere", "sheet.png", images="slides")
    Traceback (most recent call last):
    ...
    shazam_fast.errors.ArchiveError: /nowhere/slides.parquet: file not found; ...
    """
    count, per_slide = require_count("count", count), require_count("per_slide", per_slide)
    for name, value in (("patch_size", patch_size), ("mpp", mpp)):
        if value is not None:
            require_number(name, value, above=0)
    out = require_path("out", out)
    canvas.require_kind(out)
    require_writable(out.absolute().parent)
    canvas.new_page(1, 1, "heatmap")  # matplotlib is there
    from ...images.overview import find_slides

    scores = read_slide_scores(scores)
    slides = split_by_slide(scores, patch_size, mpp)
    files = find_slides(images, [slide.name for slide in slides])
    slides = [slide for slide in slides if slide.name in files]
    chosen = {title: _choose(title, slides, members, count, per_slide) for title, members in _rows(scores).items()}
    page = _draw(chosen, files)
    out.parent.mkdir(parents=True, exist_ok=True)
    with canvas.missing_glyphs_logged(out):
        canvas.save_figure(page, out)
    return [patch for patches in chosen.values() for patch in patches]


def _rows(scores: SlideScores) -> dict[str, NDArray[np.bool_]]:
    """What each row of the sheet shows: its title, and which of the n slides or patients."""
    values = scores.values
    found: dict[str, NDArray[np.bool_]] = {}
    columns = dict(scores.targets) or {"": scores.classes}
    start = 0
    for column, classes in columns.items():
        part = values[:, start : start + max(len(classes), 1)]
        start += part.shape[1]
        before = f"{column}: " if column else ""
        if classes:
            predicted = part.argmax(axis=1)
            found |= {f"{before}{name}": predicted == code for code, name in enumerate(classes)}
            continue
        low, high = np.quantile(part[:, 0], [EXTREME, 1 - EXTREME])
        what = before or "risk: "
        found |= {f"{what}largest": part[:, 0] >= high, f"{what}smallest": part[:, 0] <= low}
    return found


def _choose(
    title: str, slides: list[SlidePatches], members: NDArray[np.bool_], count: int, per_slide: int
) -> list[TopPatch]:
    """The patches with the largest attention of the slides that are members."""
    found = []
    for slide in slides:
        if members[slide.bag]:
            for i in np.argsort(-slide.attention, kind="stable")[:per_slide].tolist():
                x, y = slide.coords[i].round().astype(int).tolist()
                found.append(TopPatch(title, slide.name, x, y, round(slide.size), float(slide.attention[i])))
    return sorted(found, key=lambda patch: -patch.attention)[:count]


def _draw(chosen: Mapping[str, list[TopPatch]], files: Mapping[str, Path]) -> "Figure":
    """The sheet: a row per class, under each patch its slide and attention."""
    from ...images.slide_reader import SlideReader

    most = max(len(patches) for patches in chosen.values())
    if not most:
        raise MismatchError("none of the slides with an image has a patch with a position; nothing can be shown")
    row = HEAD + SHOWN + NAME
    page = canvas.new_page(2 * EDGE + most * (SHOWN + GAP), 2 * EDGE + len(chosen) * row, "heatmap")
    width, reader = page.get_size_inches()[0] - 2 * EDGE, SlideReader()
    for line, (title, patches) in enumerate(chosen.items()):
        top = EDGE + line * row
        head = canvas.place(page, EDGE, top, width, HEAD)
        head.set_axis_off()
        head.set(xlim=(0, 1), ylim=(0, 1))
        head.axhline(0.25, color=RULE, lw=1)
        canvas.write(head, title, (0, 0.45), fontsize=canvas.CAPTION, weight="bold")
        if not patches:
            canvas.write(head, "no slide", (1, 0.45), ha="right", color=MUTED)
        for index, patch in enumerate(patches):
            image = reader.read(files[patch.slide], patch.x, patch.y, patch.size, SIDE)
            _draw_patch(page, EDGE + index * (SHOWN + GAP), top + HEAD, image, patch)
    return page


def _draw_patch(page: "Figure", left: float, top: float, image: "Image", patch: TopPatch) -> None:
    axes = canvas.place_map(page, left, top, (SIDE, SIDE), SHOWN / SIDE)
    axes.imshow(np.asarray(image), interpolation="antialiased")
    name = canvas.write(axes, patch.slide, (0, 0), (0, -12), color=MUTED)
    canvas.fit(name, 72 * SHOWN)
    canvas.write(axes, f"{patch.attention:.1f} x", (0, 0), (0, -24), color=MUTED)
