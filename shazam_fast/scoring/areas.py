"""Areas that squares cover, of which some overlap."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

STRIP = 64  # edges of squares per strip: the grid of a strip stays small

Array = NDArray[np.float64]


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
