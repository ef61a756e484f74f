"""The patches of a slide as GeoJSON polygons, which QuPath (0.4 and later) imports."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.files import UNFINISHED
from ..palette import rgb
from ..slide_scores import SlideScores
from .regions import merge_patches


def write_geojson(slide: SlideScores, path: Path, colours: Sequence[str], merged: bool = False) -> None:
    """Write a FeatureCollection as QuPath exports tiles itself, one patch, or one class, per line.

    Args:
        slide: positions and size are in level-0 pixels.
        path: the file; written under a temporary name and renamed.
        colours: of the classes, as "#rrggbb".
        merged: one annotation per class, of merged patches, in place of a tile per patch.

    Raises MismatchError when merging patches that lie on no grid.
    """
    features = _merged(slide, colours) if merged else _features(slide, colours)
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        for index, feature in enumerate(features):
            file.write((",\n" if index else "") + json.dumps(feature))
        file.write("\n]}\n")
    unfinished.rename(path)


def _merged(slide: SlideScores, colours: Sequence[str]) -> Iterator[dict[str, Any]]:
    for code, polygons in enumerate(merge_patches(slide.coords, slide.size, slide.probabilities)):
        if polygons:
            rings = [[_numbers(np.array(ring, dtype=np.float64)) for ring in polygon] for polygon in polygons]
            yield {
                "type": "Feature",
                "geometry": {"type": "MultiPolygon", "coordinates": rings},
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": slide.classes[code], "color": rgb(colours[code])},
                },
            }


def _features(slide: SlideScores, colours: Sequence[str]) -> Iterator[dict[str, Any]]:
    names = [f"probability: {c}" for c in slide.classes]
    values: NDArray[np.floating[Any]] = slide.probabilities
    if slide.shares is not None:
        names += [f"share: {t}" for t in slide.teachers]
        values = np.concatenate([values, slide.shares], axis=1)
    if slide.influence is not None:
        names += [f"influence: {t}" for t in slide.influence_teachers]
        values = np.concatenate([values, slide.influence], axis=1)
    of_class = [rgb(colour) for colour in colours]
    low, high = _numbers(slide.coords), _numbers(slide.coords + slide.size)
    numbers = values.astype(np.float64).round(6).tolist()
    for (x, y), (right, below), code, row in zip(low, high, slide.prediction.tolist(), numbers, strict=True):
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x, y], [right, y], [right, below], [x, below], [x, y]]]},
            "properties": {
                "objectType": "tile",
                "classification": {"name": slide.classes[code], "color": of_class[code]},
                "measurements": dict(zip(names, row, strict=True)),
            },
        }


def _numbers(coords: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Positions to a hundredth of a pixel, as integers where all are whole."""
    rounded = coords.round(2)
    return (rounded.astype(np.int64) if (rounded == rounded.round()).all() else rounded).tolist()  # type: ignore[no-any-return]
