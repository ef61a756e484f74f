"""Patches of one class merged into polygons with holes."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MismatchError

MOST_CELLS = 1 << 26  # of the grid that all edges of patches make

Ring = list[tuple[float, float]]
Polygon = list[Ring]  # the outer ring, then holes


# Over 40 lines with what it documents.
def merge_patches(corners: NDArray[Any], side: float, probabilities: NDArray[Any]) -> list[list[Polygon]]:
    """The polygons of every class: connected areas where the mean probability of the patches is largest for it.

    Args:
        corners: x and y of the upper left corner of each patch, [n, 2].
        side: of a patch.
        probabilities: of the patches, [n, C].

    Returns per class its polygons; two that touch at a corner alone stay apart.

    Raises MismatchError when the patches lie on no grid, so that their edges make too many cells.

    >>> corners = np.array([[0, 0], [2, 0], [4, 0]])
    >>> merge_patches(corners, 2, np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))[0]
    [[[(0, 0), (4, 0), (4, 2), (0, 2), (0, 0)]]]
    """
    from scipy.ndimage import label

    from ..painting import paint

    edges = [np.unique(np.concatenate([corners[:, axis], corners[:, axis] + side])) for axis in (0, 1)]
    shape = (len(edges[1]) - 1, len(edges[0]) - 1)
    if shape[0] * shape[1] > MOST_CELLS:
        raise MismatchError(
            f"the patches' edges make a grid of {shape[0]} x {shape[1]} cells, too many to merge: write tiles"
        )
    low = np.stack([np.searchsorted(e, corners[:, axis]) for axis, e in enumerate(edges)], axis=1)
    high = np.stack([np.searchsorted(e, corners[:, axis] + side) for axis, e in enumerate(edges)], axis=1)
    mean = paint(low, high, probabilities, shape)  # [H, W, C]
    code = np.where(np.isnan(mean[..., 0]), -1, np.nan_to_num(mean, nan=-1.0).argmax(axis=2))
    x, y = (e.tolist() for e in edges)
    found = []
    for c in range(probabilities.shape[1]):
        areas, count = label(code == c)
        polygons: list[Polygon] = [[] for _ in range(count)]
        for area, ring in _rings(areas):
            places = [(x[i], y[j]) for i, j in ring]
            if _signed_area(ring) > 0:
                polygons[area - 1].insert(0, places)
            else:
                polygons[area - 1].append(places)
        found.append(polygons)
    return found


def _rings(areas: NDArray[np.integer[Any]]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Closed outlines of the areas (> 0) of a map [H, W], each with its area, which lies to the right of its steps."""
    padded = np.pad(areas, 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}  # from corner to corners, with an area to the right
    owner: dict[tuple[tuple[int, int], tuple[int, int]], int] = {}
    for inner, outer, start, end in _sides(padded):
        rows, columns = np.nonzero((inner > 0) & (inner != outer))
        for r, c, area in zip(rows.tolist(), columns.tolist(), inner[rows, columns].tolist(), strict=True):
            a, b = (c + start[0], r + start[1]), (c + end[0], r + end[1])
            steps.setdefault(a, []).append(b)
            owner[a, b] = area
    rings = []
    while steps:
        first = next(iter(steps))
        ring, here, there = [first], first, steps[first][0]
        area = owner[here, there]
        while True:
            _take(steps, here, there)
            ring.append(there)
            if there == first:
                break
            here, there = there, _turn(here, there, steps[there], owner, area)
        rings.append((area, _straight(ring)))
    return rings


def _sides(padded: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any], tuple[int, int], tuple[int, int]]]:
    """Per side of a cell: cells, their neighbours there, and the side's corners, clockwise, relative to the cell."""
    inner = padded[1:-1, 1:-1]
    return [
        (inner, padded[:-2, 1:-1], (0, 0), (1, 0)),
        (inner, padded[1:-1, 2:], (1, 0), (1, 1)),
        (inner, padded[2:, 1:-1], (1, 1), (0, 1)),
        (inner, padded[1:-1, :-2], (0, 1), (0, 0)),
    ]


def _take(steps: dict[tuple[int, int], list[tuple[int, int]]], here: tuple[int, int], there: tuple[int, int]) -> None:
    steps[here].remove(there)
    if not steps[here]:
        del steps[here]


def _turn(
    before: tuple[int, int],
    here: tuple[int, int],
    choices: list[tuple[int, int]],
    owner: dict[tuple[tuple[int, int], tuple[int, int]], int],
    area: int,
) -> tuple[int, int]:
    """The next corner: of the same area, and to the left where two cells of it touch: rings meet there, none twice."""
    own = [there for there in choices if owner[here, there] == area]
    dx, dy = here[0] - before[0], here[1] - before[1]
    left = (here[0] + dy, here[1] - dx)
    return left if left in own else own[0]


def _straight(ring: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Without the corners at which the outline goes straight on."""
    points = ring[:-1]
    kept = [
        p
        for q, p, r in zip([points[-1], *points[:-1]], points, [*points[1:], points[0]], strict=True)
        if (p[0] - q[0]) * (r[1] - p[1]) != (p[1] - q[1]) * (r[0] - p[0])
    ]
    return [*kept, kept[0]]


def _signed_area(ring: list[tuple[int, int]]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2
