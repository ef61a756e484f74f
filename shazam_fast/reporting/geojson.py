"""The patches of a slide as GeoJSON polygons, which QuPath (0.4 and later) imports."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.files import UNFINISHED
from .palette import CLASS_COLOURS, pick_colours
from .slide_scores import SlideScores


def write_geojson(slide: SlideScores, path: Path) -> None:
    """Write a FeatureCollection as QuPath exports tiles itself, one patch per line.

    Args:
        slide: positions and size are in level-0 pixels.
        path: the file; written under a temporary name and renamed.
    """
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
    if slide.shares is not None:
        names += [f"share: {t}" for t in slide.teachers]
        values = np.concatenate([values, slide.shares], axis=1)
    colours = pick_colours(CLASS_COLOURS, len(slide.classes)).tolist()
    low, high = _numbers(slide.coords), _numbers(slide.coords + slide.size)
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


def _numbers(coords: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Positions to a hundredth of a pixel, as integers where all are whole."""
    rounded = coords.round(2)
    return (rounded.astype(np.int64) if (rounded == rounded.round()).all() else rounded).tolist()  # type: ignore[no-any-return]
