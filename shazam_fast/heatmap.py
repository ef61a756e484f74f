"""Scores of whole slides, to look at: a picture of every slide, and polygons for QuPath."""

import colorsys
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from .errors import MismatchError, ShazamError
from .files import UNFINISHED
from .progress import Progress
from .scores import Scores, open_scores

if TYPE_CHECKING:
    import pyarrow as pa

# Okabe and Ito's and Tol's "muted" colours, made to be told apart by colour-blind readers.
CLASS_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c8c8c")
TEACHER_COLOURS = ("#44aa99", "#cc6677", "#332288", "#999933", "#88ccee", "#882255", "#ddcc77", "#117733")


@dataclass(frozen=True)
class SlideScores:
    """Scores of one slide's n patches, squares of `size` level-0 pixels whose upper left corners are `coords` [n, 2].

    `prediction` [n] into `classes`; `probabilities` [n, C]; `weights` [n, N] of `teachers`, or None.
    """

    name: str
    coords: NDArray[np.floating]
    size: int
    prediction: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    weights: NDArray[np.float32] | None
    classes: tuple[str, ...]
    teachers: tuple[str, ...]


def heatmap(scores: Scores | str | Path, out: str | Path, *, patch_size: int | None = None) -> list[Path]:
    """Draw every slide, and write its patches for QuPath.

    Args:
        scores: scores or the directory that they were written to.
        out: directory for <slide>.png (class, confidence and, for bare students, the teacher that weighs most) and
            <slide>.geojson (a polygon for every patch with its class, colour, probabilities and weights).
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
        from .heatmap_picture import draw_slide
    except ImportError:
        raise ShazamError("pictures need Pillow: pip install 'shazam_fast[heatmap]'") from None
    pictures = []
    with Progress("drawing slides", len(scores.slides), "slides") as progress:
        for name in scores.slides:
            slide = _one_slide(scores, name, patch_size)
            path = out / quote(name, safe=" ()+,@")  # a name may hold what a file name cannot
            try:
                out.mkdir(parents=True, exist_ok=True)
                _write_geojson(slide, path.with_name(f"{path.name}.geojson"))
                pictures.append(path.with_name(f"{path.name}.png"))
                draw_slide(slide).save(pictures[-1])
            except OSError as error:
                raise ShazamError(f"{out}: slide {name!r} could not be written: {error}") from error
            progress.advance(1)
    return pictures


def pick_colours(palette: Sequence[str], count: int) -> NDArray[np.uint8]:
    """RGB [count, 3] of a palette; beyond its end, hues a golden angle apart."""
    given = [tuple(bytes.fromhex(colour[1:])) for colour in palette]
    hues = [(index * 0.618034) % 1.0 for index in range(len(given), count)]
    more = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.6, 0.75)) for hue in hues]
    return np.array([*given, *more][:count], dtype=np.uint8)


def _one_slide(scores: Scores, name: str, patch_size: int | None) -> SlideScores:
    table = scores.of_slide(name)
    coords = _stack(table, ["x", "y"])
    if (coords < 0).any():
        unknown = int((coords < 0).any(axis=1).sum())
        raise MismatchError(
            f"slide {name!r}: {unknown} of {len(coords)} patches have no coordinates; "
            "score an archive that was written with coords"
        )
    probabilities = _stack(table, [f"probability_{c}" for c in scores.classes])
    weighted = f"weight_{scores.teachers[0]}" in table.column_names
    return SlideScores(
        name=name,
        coords=coords,
        size=patch_size or _smallest_step(name, coords),
        prediction=probabilities.argmax(axis=1),
        probabilities=probabilities,
        weights=_stack(table, [f"weight_{t}" for t in scores.teachers]) if weighted else None,
        classes=scores.classes,
        teachers=scores.teachers,
    )


def _stack(table: "pa.Table", columns: list[str]) -> NDArray[Any]:
    return np.stack([table[column].to_numpy() for column in columns], axis=1)


def _smallest_step(name: str, coords: NDArray[Any]) -> int:
    steps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    if len(steps) == 0:
        raise MismatchError(f"slide {name!r}: one patch does not tell its size; give patch_size (--patch-size)")
    return max(1, round(float(steps.min())))


def _write_geojson(slide: SlideScores, path: Path) -> None:
    """A FeatureCollection as QuPath (0.4 and later) exports tiles itself, one a line."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        for index, feature in enumerate(_features(slide)):
            file.write((",\n" if index else "") + json.dumps(feature))
        file.write("\n]}\n")
    unfinished.rename(path)


def _features(slide: SlideScores) -> Iterator[dict[str, Any]]:
    names = [f"probability: {c}" for c in slide.classes]
    values = slide.probabilities
    if slide.weights is not None:
        names += [f"weight: {t}" for t in slide.teachers]
        values = np.concatenate([values, slide.weights], axis=1)
    colours = pick_colours(CLASS_COLOURS, len(slide.classes)).tolist()
    low, high = slide.coords.tolist(), (slide.coords + slide.size).tolist()
    numbers = values.astype(np.float64).round(6).tolist()
    for (x, y), (right, below), code, row in zip(low, high, slide.prediction.tolist(), numbers, strict=True):
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x, y], [right, y], [right, below], [x, below], [x, y]]]},
            "properties": {
                "objectType": "tile",
                "classification": {"name": slide.classes[code], "color": colours[code]},
                "measurements": dict(zip(names, row, strict=True)),
            },
        }
