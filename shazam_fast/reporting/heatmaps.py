"""A picture and a GeoJSON file for QuPath of every scored slide."""

import logging
import math
from pathlib import Path

from ..errors import MismatchError, ShazamError
from ..formats.geometry import Geometry
from ..runtime.checks import require_number, require_path
from ..runtime.foreign import refuse_occupied
from ..runtime.locks import require_writable
from ..runtime.progress import Progress
from ..scoring.scores import Scores, open_scores
from .canvas import missing_glyphs_logged, new_page, save_figure
from .geojson import write_geojson
from .slide_files import file_stems
from .slide_picture import draw_slide
from .slide_scores import SlideScores, one_slide

logger = logging.getLogger("shazam_fast")


# Over 40 lines: every option is documented here.
def heatmap(
    scores: Scores | str | Path, out: str | Path, *, patch_size: float | None = None, mpp: float | None = None
) -> list[Path]:
    """Draw every slide, and write its patches as polygons for QuPath.

    Slides whose patches have no positions are passed over; one message counts them.

    Args:
        scores: scores, or the directory that they were written to.
        out: directory for <slide>.png (predicted class, confidence and, for bare students, the teacher with the
            largest attention share) and <slide>.geojson (per patch a polygon with class, colour, probabilities and
            shares). Characters of slide names that file names cannot hold become "_", and a hash is added.
        patch_size: side of a patch in level-0 pixels, for all slides. By default the size that the features' files
            record for each slide.
        mpp: micrometres per level-0 pixel of slides whose positions are in micrometres and whose files do not tell it.

    Returns:
        The pictures, one per slide.

    Raises:
        MismatchError: patches without slide or positions; a slide whose patch size or mpp is not known.
        ArchiveError: the scores are missing or damaged.
        ShazamError: matplotlib is missing, or a file cannot be written; `out` holds an archive, scores or a student;
            patch_size or mpp is not above 0.

    >>> import tempfile, numpy as np, shazam_fast as sf
    >>> folder = tempfile.mkdtemp()
    >>> config = sf.StudentConfig({"uni": 8}, ("normal", "tumour"), dim=8, depth=1)
    >>> coords = [[0, 0], [256, 0], [0, 256]]
    >>> archive = sf.write_archive(f"{folder}/a", {"uni": np.ones((3, 8))}, slides=["case 1"] * 3, coords=coords)
    >>> scores = sf.score(sf.Student(config).eval(), archive)
    >>> [path.name for path in sf.heatmap(scores, f"{folder}/maps", patch_size=256)]
    ['case 1.png']
    """
    for name, value in (("patch_size", patch_size), ("mpp", mpp)):
        if value is not None:
            require_number(name, value, above=0)
    out = require_path("out", out)
    require_writable(out)
    refuse_occupied(out)
    scores = scores if isinstance(scores, Scores) else open_scores(scores)
    if not scores.slides:
        raise MismatchError(f"{scores!r}: these scores have no slide names, so no map can be drawn")
    new_page(1, 1, "heatmap")  # matplotlib is there
    _say_replaced(scores, patch_size, mpp)
    return _draw_all(scores, out, patch_size, mpp)


def _draw_all(scores: Scores, out: Path, patch_size: float | None, mpp: float | None) -> list[Path]:
    pictures: list[Path] = []
    passed_over: list[str] = []
    with Progress("drawing slides", len(scores.slides), "slides") as progress:
        for name, stem in file_stems(scores.slides).items():
            slide = one_slide(scores, name, patch_size, mpp)
            if slide is None:
                passed_over.append(name)
            else:
                pictures.append(_write(slide, out, stem))
            progress.advance(1)
    if not pictures:
        raise MismatchError(
            f"{scores!r}: no patch has a position, so no map can be drawn; score features that have coords"
        )
    if passed_over:
        logger.warning(
            "%d of %d slides have no positions and are not drawn, %r first",
            len(passed_over), len(scores.slides), passed_over[0],
        )  # fmt: skip
    return pictures


def _write(slide: SlideScores, out: Path, stem: str) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_geojson(slide, out / f"{stem}.geojson")
        with missing_glyphs_logged(out / f"{stem}.png"):
            save_figure(draw_slide(slide), out / f"{stem}.png")
    except OSError as error:
        raise ShazamError(f"{out}: slide {slide.name!r} could not be written: {error}") from error
    if slide.without_position:
        logger.warning("slide %r: %d patches without position are left out", slide.name, slide.without_position)
    if slide.n_repeated:
        logger.warning(
            "slide %r: %d of %d patches lie at the position of another one, the first at (%g, %g), and are drawn over "
            "it; check the coords of its features",
            slide.name, slide.n_repeated, len(slide.coords), *slide.coords[0],
        )  # fmt: skip
    return out / f"{stem}.png"


def _say_replaced(scores: Scores, patch_size: float | None, mpp: float | None) -> None:
    """Warn when the given size is used in place of sizes that are recorded, or the given mpp is not used."""
    sizes = {
        name: one.patch_size / (1.0 if one.unit == "pixels" else one.mpp or mpp or 1.0)
        for name, one in scores.geometry.items()
        if one.patch_size is not None and (one.unit == "pixels" or one.mpp or mpp)
    }
    others = {name: size for name, size in sizes.items() if patch_size and not math.isclose(size, patch_size)}
    if others:
        name, size = next(iter(others.items()))
        logger.warning(
            "patch_size %g replaces the recorded size of %d slides (%r: %g)", patch_size, len(others), name, size
        )
    unused = [name for name in scores.slides if mpp and not _takes(scores.geometry.get(name), mpp)]
    if unused:
        logger.warning(
            "mpp %g is not used for %d slides (%r first): their positions are in pixels, or their files record it",
            mpp, len(unused), unused[0],
        )  # fmt: skip


def _takes(geometry: Geometry | None, mpp: float) -> bool:
    """Whether the given mpp is used for a slide, or equals what its file records."""
    return geometry is not None and geometry.unit == "micrometres" and geometry.mpp in (None, mpp)
