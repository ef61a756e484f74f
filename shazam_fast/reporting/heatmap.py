"""Scores of whole slides, to look at: a picture of every slide, and polygons for QuPath."""

from pathlib import Path
from urllib.parse import quote

from ..errors import MismatchError, ShazamError
from ..runtime.progress import Progress
from ..scoring.scores import Scores, open_scores
from .geojson import write_geojson
from .slide_scores import one_slide


def heatmap(scores: Scores | str | Path, out: str | Path, *, patch_size: int | None = None) -> list[Path]:
    """Draw every slide, and write its patches for QuPath.

    Args:
        scores: scores or the directory that they were written to.
        out: directory for <slide>.png (class, confidence and, for bare students, the teacher that weighs most) and
            <slide>.geojson (a polygon for every patch with its class, colour, probabilities and shares).
        patch_size: side of a patch in level-0 pixels; by default the smallest step between two of the slide's patches.

    Returns the pictures, slide after slide.

    Raises:
        MismatchError: patches without slide or coordinates, or a slide with a single patch and no `patch_size`.
        ShazamError: Pillow is missing, or a file cannot be written.
    """
    scores = scores if isinstance(scores, Scores) else open_scores(scores)
    out = Path(out)
    if patch_size is not None and patch_size < 1:
        raise ShazamError(f"patch_size: at least 1 pixel expected, found {patch_size}")
    if not scores.slides:
        raise MismatchError(f"{scores!r}: its patches are of no slide, so there is none to draw")
    try:
        from .slide_picture import draw_slide
    except ImportError:
        raise ShazamError("pictures need Pillow: pip install 'shazam_fast[heatmap]'") from None
    pictures = []
    with Progress("drawing slides", len(scores.slides), "slides") as progress:
        for name in scores.slides:
            slide = one_slide(scores, name, patch_size)
            path = out / quote(name, safe=" ()+,@")  # a name may hold what a file name cannot
            try:
                out.mkdir(parents=True, exist_ok=True)
                write_geojson(slide, path.with_name(f"{path.name}.geojson"))
                pictures.append(path.with_name(f"{path.name}.png"))
                draw_slide(slide).save(pictures[-1])
            except OSError as error:
                raise ShazamError(f"{out}: slide {name!r} could not be written: {error}") from error
            progress.advance(1)
    return pictures
