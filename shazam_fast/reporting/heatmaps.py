"""A picture and a GeoJSON file for QuPath of every scored slide."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import MismatchError, ShazamError
from ..formats.geometry import Geometry
from ..runtime.checks import require_choice, require_number, require_path
from ..runtime.jobs.foreign import refuse_occupied
from ..runtime.jobs.locks import require_writable
from ..runtime.progress import Progress
from ..runtime.summaries import counted
from ..scoring.scores import Scores, open_scores
from .canvas import KINDS, missing_glyphs_logged, new_page, save_figure
from .palette import CLASS_COLOURS, hex_colours
from .qupath.geojson import write_geojson
from .qupath.overlay import require_tifffile, write_overlay
from .slide_files import file_stems
from .slide_picture import Style, draw_slide
from .slide_scores import SlideScores, one_slide

if TYPE_CHECKING:
    from ..images.overview import Tissue

logger = logging.getLogger("shazam_fast")

COLOUR = re.compile("#[0-9a-fA-F]{6}")


# Over 40 lines: every option is documented here.
def heatmap(
    scores: Scores | str | Path,
    out: str | Path,
    *,
    panels: Sequence[str] | None = None,
    tissue: str | Path | None = None,
    downsample: float | None = None,
    colours: Mapping[str, str] | None = None,
    merged: bool = False,
    overlay: bool = False,
    format: str = "png",
    patch_size: float | None = None,
    mpp: float | None = None,
) -> list[Path]:
    """Draw every slide, and write its patches as polygons for QuPath.

    Slides whose patches have no positions are passed over; one message counts them.

    Args:
        scores: scores, or the directory that they were written to.
        out: directory for <slide>.png and <slide>.geojson (per patch a polygon with class, colour, probabilities,
            shares and influence). Characters of slide names that file names cannot hold become "_", and a
            hash is added.
        panels: what is drawn side by side: "tissue", "classes" (the predicted class), "confidence", "shares" (the
            teacher with the largest attention share), "probability:<class>", "influence:<teacher>". By default tissue
            where it is given, classes, confidence, and shares where the student has them. Above the panels stand the
            area of each class in percent and, where mpp is known, in mm2. The scale bar in the first one is in
            micrometres then, else in level-0 pixels.
        tissue: what the maps lie over: a folder with a slide or an image per slide, of the slide's name, or one file.
            Where slides are given, polygons and overlays begin at the scanned area, as QuPath shows slides whose format
            has an empty border (MRXS).
        downsample: level-0 pixels per pixel of these images, if they are images of whole slides, such as thumbnails.
        colours: {class: "#rrggbb"}; the legend begins with these classes, in this order.
        merged: write to <slide>.geojson one annotation per class, of merged patches, in place of a tile per patch.
        overlay: write <slide>.ome.tif too: an image with the probability of each class as a channel, from the upper
            left corner of the slide on, NaN where no patch is.
        format: of the pictures: "png", "svg" or "pdf".
        patch_size: side of a patch in level-0 pixels, for all slides. By default the size that the features' files
            record for each slide.
        mpp: micrometres per level-0 pixel of slides whose positions are in micrometres and whose files do not tell it.

    Returns:
        The pictures, one per slide.

    Raises:
        MismatchError: patches without slide or positions; a slide whose patch size or mpp is not known; a panel of
            which the scores hold nothing; a slide without tissue; merging patches that lie on no grid.
        ImageError: tissue that cannot be read.
        ArchiveError: the scores are missing or damaged.
        ShazamError: matplotlib is missing, or a file cannot be written; `out` holds an archive, scores or a student;
            patch_size, mpp or downsample is not above 0; an unknown format, class or colour.

    >>> import tempfile, numpy as np, shazam_fast as sf
    >>> folder = tempfile.mkdtemp()
    >>> config = sf.StudentConfig({"uni": 8}, ("normal", "tumour"), dim=8, depth=1)
    >>> coords = [[0, 0], [256, 0], [0, 256]]
    >>> archive = sf.write_archive(f"{folder}/a", {"uni": np.ones((3, 8))}, slides=["case 1"] * 3, coords=coords)
    >>> scores = sf.score(sf.Student(config).eval(), archive)
    >>> [path.name for path in sf.heatmap(scores, f"{folder}/maps", patch_size=256)]
    ['case 1.png']
    """
    require_choice("format", format, tuple(KINDS))
    for name, value in (("patch_size", patch_size), ("mpp", mpp), ("downsample", downsample)):
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
    if overlay:
        require_tifffile()
    below = None if tissue is None else _find_tissue(require_path("tissue", tissue), downsample, scores.slides)
    style = _style(scores, panels, colours or {}, below)
    return _draw_all(scores, Target(out, format, style, merged, overlay), patch_size, mpp)


def _find_tissue(path: Path, downsample: float | None, slides: tuple[str, ...]) -> "Tissue":
    try:
        from ..images.overview import Tissue
    except ImportError as error:
        raise ShazamError("tissue below maps needs Pillow: pip install 'shazam_fast[slides]'") from error
    return Tissue(path, downsample, slides)


class Target(NamedTuple):
    """Where pictures and polygons go, and how they look."""

    out: Path
    format: str
    style: Style
    merged: bool
    overlay: bool


def _style(scores: Scores, panels: Sequence[str] | None, colours: Mapping[str, str], tissue: "Tissue | None") -> Style:
    for name, colour in colours.items():
        if name not in scores.classes:
            raise ShazamError(f"colours: no class is called {name!r}; there are {', '.join(scores.classes)}")
        if not isinstance(colour, str) or not COLOUR.fullmatch(colour):
            raise ShazamError(f"colours: {name!r}: a colour like '#0072b2' expected, found {colour!r}")
    if isinstance(panels, str) or panels == []:
        raise ShazamError(f"panels: a list such as ['classes', 'confidence'] expected, found {panels!r}")
    usual = ["tissue"] * (tissue is not None) + ["classes", "confidence"] + ["shares"] * (scores.shares is not None)
    given = zip(scores.classes, hex_colours(CLASS_COLOURS, len(scores.classes)), strict=True)
    return Style(
        tuple(usual if panels is None else panels),
        tuple(colours.get(name, usual_colour) for name, usual_colour in given),
        tuple(scores.classes.index(name) for name in colours),
        tissue,
    )


def _draw_all(scores: Scores, target: Target, patch_size: float | None, mpp: float | None) -> list[Path]:
    pictures: list[Path] = []
    passed_over: list[str] = []
    with Progress("drawing slides", len(scores.slides), "slides") as progress:
        for name, stem in file_stems(scores.slides).items():
            slide = one_slide(scores, name, patch_size, mpp)
            if slide is None:
                passed_over.append(name)
            else:
                pictures.append(_write(slide, target, stem))
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


def _write(slide: SlideScores, target: Target, stem: str) -> Path:
    out, picture = target.out, target.out / f"{stem}.{target.format}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with missing_glyphs_logged(picture):
            save_figure(draw_slide(slide, target.style), picture)
        for_qupath = _as_qupath_shows(slide, target.style.tissue)
        write_geojson(for_qupath, out / f"{stem}.geojson", target.style.colours, target.merged)
        if target.overlay:
            write_overlay(for_qupath, out / f"{stem}.ome.tif")
    except OSError as error:
        raise ShazamError(f"{out}: slide {slide.name!r} could not be written: {error}") from error
    if slide.without_position:
        patches = counted(slide.without_position, "patch")
        logger.warning("slide %r: left out %s without position", slide.name, patches)
    if slide.n_repeated:
        logger.warning(
            "slide %r: %d of %d patches lie at the position of another one, the first at (%g, %g), and are drawn over "
            "it; check the coords of its features",
            slide.name, slide.n_repeated, len(slide.coords), *slide.coords[0],
        )  # fmt: skip
    return picture


def _as_qupath_shows(slide: SlideScores, tissue: "Tissue | None") -> SlideScores:
    """The slide with positions that count from the scanned area."""
    x, y = (0, 0) if tissue is None else tissue.scanned_from(slide.name)
    if (x, y) == (0, 0):
        return slide
    logger.info("slide %r: polygons and overlay begin at its scanned area, %d, %d, as in QuPath", slide.name, x, y)
    return replace(slide, coords=slide.coords - np.array([x, y]))


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
