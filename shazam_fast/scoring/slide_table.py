"""Scores summed up per slide: mean probabilities, fractions of the patches, areas."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError
from ..formats.geometry import Geometry
from .areas import covered_areas

if TYPE_CHECKING:
    import pyarrow as pa

SQUARE_MICROMETRES = 1e6  # per mm2
Array = NDArray[np.float64]


class PatchScores(Protocol):
    """What of scores a table per slide is made of."""

    classes: tuple[str, ...]
    geometry: Mapping[str, Geometry]

    @property
    def slides(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def slide_index(self) -> NDArray[np.int64]: ...  # noqa: D102

    @property
    def coords(self) -> NDArray[Any]: ...  # noqa: D102

    @property
    def prediction(self) -> NDArray[np.int64]: ...  # noqa: D102

    @property
    def probabilities(self) -> NDArray[np.float32]: ...  # noqa: D102


def slide_table(scores: PatchScores) -> "pa.Table":
    """The table that `Scores.by_slide` returns, which describes its columns."""
    import pyarrow as pa

    slides, index = scores.slides, scores.slide_index
    if not slides:
        raise MismatchError("these scores have no slide names, so there is no table per slide")
    known = index >= 0
    S, C = len(slides), len(scores.classes)
    counts = np.bincount(index[known], minlength=S)
    mean = mean_by_slide(scores.probabilities[known], index[known], S)
    codes = index[known] * C + scores.prediction[known]
    fraction = np.bincount(codes, minlength=S * C).reshape(S, C) / counts[:, None]
    areas = _areas(scores)  # [S, C], NaN where not known
    columns: dict[str, Any] = {"slide": pa.array(slides), "patches": counts}
    columns |= {f"probability_{name}": mean[:, c].astype(np.float32) for c, name in enumerate(scores.classes)}
    columns |= {f"fraction_{name}": fraction[:, c] for c, name in enumerate(scores.classes)}
    columns["area_mm2"] = _nullable(areas.sum(axis=1))
    columns |= {f"area_mm2_{name}": _nullable(areas[:, c]) for c, name in enumerate(scores.classes)}
    return pa.table(columns)


def mean_by_slide(values: NDArray[np.floating[Any]], index: NDArray[np.int64], S: int) -> Array:
    """Mean of the values [n, k] of the patches of each of S slides, float64 [S, k]; `index` [n] has their slides."""
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(S))
    sums: Array = np.add.reduceat(values[order].astype(np.float64), starts, axis=0)
    return sums / np.bincount(index, minlength=S)[:, None]


def _areas(scores: PatchScores) -> Array:
    """Area in mm2 of every class on every slide, float64 [S, C]; NaN where it is not known."""
    S, C = len(scores.slides), len(scores.classes)
    areas = np.full((S, C), np.nan)
    sizes = {name: found for name in scores.slides if (found := _micrometres(scores.geometry.get(name)))}
    if not sizes:
        return areas
    coords, prediction = scores.coords.astype(np.float64), scores.prediction
    order = np.argsort(scores.slide_index, kind="stable")
    bounds = np.searchsorted(scores.slide_index[order], np.arange(S + 1))
    for number, name in enumerate(scores.slides):
        here = order[bounds[number] : bounds[number + 1]]
        if name in sizes and not (coords[here] == -1).all(axis=1).any():
            side, scale = sizes[name]
            square = covered_areas(coords[here], side, prediction[here], C)  # in the unit of the positions
            areas[number] = square * scale**2 / SQUARE_MICROMETRES
    return areas


def _micrometres(geometry: Geometry | None) -> tuple[float, float] | None:
    """Side of a patch in the unit of the positions, and micrometres per unit; None where one is not known."""
    if geometry is None or geometry.patch_size is None:
        return None
    scale = 1.0 if geometry.unit == "micrometres" else geometry.mpp if geometry.unit == "pixels" else None
    return None if scale is None else (geometry.patch_size, scale)


def _nullable(values: Array) -> "pa.Array":
    import pyarrow as pa

    return pa.array(values, mask=np.isnan(values))
