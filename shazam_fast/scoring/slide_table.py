"""Scores summed up per slide: mean probabilities, fractions of the patches, and the areas that these cover."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError
from ..formats.geometry import Geometry

if TYPE_CHECKING:
    import pyarrow as pa

SQUARE_MICROMETRES = 1e6  # per mm2
STRIP = 64  # edges of squares per strip: the grid of a strip stays small
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


def covered_areas(corners: NDArray[np.floating[Any]], side: float, codes: NDArray[np.int64], count: int) -> Array:
    """Area per code of equal squares; what several cover counts once, in equal parts for each of them.

    The plane is cut at all edges of the squares, strip by strip along x, so that a cell is covered whole or not at all.

    Args:
        corners: x and y of the lower corner of each square, [n, 2].
        side: of a square, in the same unit.
        codes: code of each square in 0..count-1, int64 [n].
        count: number of codes.

    Returns:
        float64 [count], in the unit squared; the sum is the area of the union.

    >>> covered_areas(np.array([[0.0, 0.0], [1.0, 0.0]]), 2.0, np.array([0, 1]), 2).tolist()
    [3.0, 3.0]
    """
    low, high = corners.astype(np.float64), corners.astype(np.float64) + side
    edges = np.unique(np.concatenate([low[:, 0], high[:, 0]]))
    total = np.zeros(count)
    for start in range(0, len(edges) - 1, STRIP):
        x = edges[start : start + STRIP + 1]
        here = (low[:, 0] < x[-1]) & (high[:, 0] > x[0])
        if here.any():
            total += _strip(low[here], high[here], codes[here], x, count)
    return total


def _strip(low: Array, high: Array, codes: NDArray[np.int64], x: Array, count: int) -> Array:
    """Areas per code between the first and the last of the edges `x`, of the squares that reach in between."""
    y = np.unique(np.concatenate([low[:, 1], high[:, 1]]))
    left = np.searchsorted(x, low[:, 0].clip(x[0], x[-1]))
    right = np.searchsorted(x, high[:, 0].clip(x[0], x[-1]))
    below, above = np.searchsorted(y, low[:, 1]), np.searchsorted(y, high[:, 1])
    cover = np.zeros((count, len(x), len(y)))
    for sign, i, j in ((1, left, below), (-1, right, below), (-1, left, above), (1, right, above)):
        np.add.at(cover, (codes, i, j), sign)
    cover = cover.cumsum(axis=1).cumsum(axis=2)[:, :-1, :-1]  # squares of each code over each cell
    cells = np.diff(x)[:, None] * np.diff(y)
    areas: Array = (cover / np.maximum(cover.sum(axis=0), 1) * cells).sum(axis=(1, 2))
    return areas
