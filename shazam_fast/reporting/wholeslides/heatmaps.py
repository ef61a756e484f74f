"""A picture of every scored slide: where its student looked, and which teacher it rested on there."""

import logging
from collections.abc import Mapping
from pathlib import Path

from ...runtime.checks import require_number, require_path
from ...runtime.jobs.foreign import refuse_occupied
from ...runtime.jobs.locks import require_writable
from ...runtime.progress import Progress
from ...slides.scores import SlideScores
from ..canvas import missing_glyphs_logged, new_page, save_figure
from ..slide_files import file_stems
from .patches import describe, read_slide_scores, split_by_slide
from .picture import draw_attention

logger = logging.getLogger("shazam_fast")


# Over 40 lines: every option is documented here.
def heatmap(
    scores: SlideScores | str | Path,
    out: str | Path,
    *,
    images: str | Path | Mapping[str, str | Path] | None = None,
    patch_size: float | None = None,
    mpp: float | None = None,
) -> list[Path]:
    """Draw the attention of every slide, and the teacher with the largest share, over the slide where it is given.

    Slides whose patches have no positions are passed over; one message counts them.

    Args:
        scores: what `sf.slides.score` returned or wrote.
        out: directory for <slide>.png.
        images: the whole-slide images: a folder, a file, or {slide: file}. Slides that have none are drawn on grey.
        patch_size: side of a patch in level-0 pixels, for all slides. By default the size that the features' files
            record for each slide.
        mpp: micrometres per level-0 pixel of slides whose positions are in micrometres and whose files do not tell it.

    Returns the pictures, one per slide.

    Raises:
        MismatchError: patches without positions; a slide whose patch size or mpp is not known; another slide's image.
        ImageError: no image is of these slides, or one cannot be read.
        ArchiveError: the scores are missing or damaged.
        ShazamError: matplotlib is missing, or a file cannot be written.

    >>> import tempfile, numpy as np, shazam_fast as sf
    >>> from shazam_fast.slides.students import SlideConfig, SlideStudent, build_model
    >>> folder, coords = tempfile.mkdtemp(), [[0, 0], [256, 0], [0, 256]]
    >>> archive = sf.write_archive(f"{folder}/a", {"uni": np.ones((3, 8))}, slides=["s1"] * 3, coords=coords)
    >>> config = SlideConfig({"uni": 8}, "classification", ("luad", "lusc"), dim=4)
    >>> scores = sf.slides.score(SlideStudent(config, [build_model(config)]).eval(), archive, device="cpu")
    >>> [path.name for path in heatmap(scores, f"{folder}/maps", patch_size=256)]
    ['s1.png']
    """
    for name, value in (("patch_size", patch_size), ("mpp", mpp)):
        if value is not None:
            require_number(name, value, above=0)
    out = require_path("out", out)
    require_writable(out)
    refuse_occupied(out)
    new_page(1, 1, "heatmap")  # matplotlib is there
    scores = read_slide_scores(scores)
    slides = split_by_slide(scores, patch_size, mpp)
    files = {} if images is None else _find(images, [slide.name for slide in slides])
    stems, pictures = file_stems([slide.name for slide in slides]), []
    with Progress("drawing slides", len(slides), "slides") as progress:
        for slide in slides:
            path = out / f"{stems[slide.name]}.png"
            page = draw_attention(slide, scores.teachers, describe(scores, slide.bag), files.get(slide.name))
            out.mkdir(parents=True, exist_ok=True)
            with missing_glyphs_logged(path):
                save_figure(page, path)
            pictures.append(path)
            progress.advance(1)
    return pictures


def _find(images: str | Path | Mapping[str, str | Path], names: list[str]) -> dict[str, Path]:
    from ...images.overview import find_slides

    files = find_slides(images, names)
    if missing := [name for name in names if name not in files]:
        logger.warning("%d of %d slides have no image, %r first: drawn on grey", len(missing), len(names), missing[0])
    return files
