"""The patches that weighed most for each class, as one sheet of images."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...slides.scores import SlideScores
from ..sheet import TopPatch, best_patches, check_sheet, write_sheet
from .patches import SlidePatches, read_slide_scores, split_by_slide

EXTREME = 0.25  # fraction of the slides that counts as largest, or as smallest, of a number


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
    out = check_sheet(out, {"count": count, "per_slide": per_slide}, {"patch_size": patch_size, "mpp": mpp})
    from ...images.overview import find_slides

    scores = read_slide_scores(scores)
    slides = split_by_slide(scores, patch_size, mpp)
    files = find_slides(images, [slide.name for slide in slides])
    slides = [slide for slide in slides if slide.name in files]
    found = {title: _choose(title, slides, members, per_slide) for title, members in _rows(scores).items()}
    return write_sheet(found, count, files, "{:.1f} x equal share", out)


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


def _choose(title: str, slides: list[SlidePatches], members: NDArray[np.bool_], per_slide: int) -> list[TopPatch]:
    """The patches with the largest attention of each slide that is a member."""
    found: list[TopPatch] = []
    for slide in slides:
        if members[slide.bag]:
            found += best_patches(title, slide.name, slide.coords, slide.size, slide.attention, per_slide)
    return found
