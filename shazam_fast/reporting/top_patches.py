"""The patches that a student holds most probable of each class, as one sheet of images."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import MismatchError
from ..scoring.scores import Scores, open_scores
from .sheet import TopPatch, best_patches, check_sheet, write_sheet
from .slide_scores import SlideScores, one_slide


# Over 40 lines: every option is documented here.
def top_patches(
    scores: Scores | str | Path,
    out: str | Path,
    *,
    images: str | Path | Mapping[str, str | Path],
    count: int = 8,
    per_slide: int = 2,
    patch_size: float | None = None,
    mpp: float | None = None,
) -> list[TopPatch]:
    """Write one sheet of the patches with the largest probability of each class, among those predicted as it.

    Args:
        scores: scores, or the directory that they were written to.
        out: the file, .png, .svg or .pdf.
        images: the whole-slide images: a folder, a file, or {slide: file}. Slides that have none are passed over.
        count: patches per class.
        per_slide: most patches of one slide.
        patch_size, mpp: as for `shazam_fast.heatmap`.

    Returns the patches that are shown, row by row.

    Raises:
        MismatchError: patches without slide or positions; a slide whose patch size or mpp is not known.
        ImageError: no image is of these slides, or one cannot be read.
        ArchiveError: the scores are missing or damaged.
        ShazamError: matplotlib is missing, or the file cannot be written.

    >>> top_patches("/nowhere", "sheet.png", images="slides")
    Traceback (most recent call last):
    ...
    shazam_fast.errors.ArchiveError: /nowhere: ...
    """
    out = check_sheet(out, {"count": count, "per_slide": per_slide}, {"patch_size": patch_size, "mpp": mpp})
    from ..images.overview import find_slides

    scores = scores if isinstance(scores, Scores) else open_scores(scores)
    if not scores.slides:
        raise MismatchError(f"{scores!r}: these scores have no slide names, so no patch can be found in its slide")
    files = find_slides(images, scores.slides)
    found: dict[str, list[TopPatch]] = {name: [] for name in scores.classes}
    for name in files:
        slide = one_slide(scores, name, patch_size, mpp)
        if slide is not None:
            for code, title in enumerate(scores.classes):
                found[title] += _choose(slide, code, per_slide)
    return write_sheet(found, count, files, "{:.1%}", out)


def _choose(slide: SlideScores, code: int, per_slide: int) -> list[TopPatch]:
    """The patches of a slide that are predicted as a class, the most probable first."""
    rows = np.flatnonzero(slide.prediction == code)
    probability = slide.probabilities[rows, code]
    return best_patches(slide.classes[code], slide.name, slide.coords[rows], slide.size, probability, per_slide)
