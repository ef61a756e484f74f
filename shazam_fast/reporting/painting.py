"""Maps of patches: values of patches become values of pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]


def paint(
    low: NDArray[np.integer[Any]], high: NDArray[np.integer[Any]], values: FloatArray, shape: tuple[int, int]
) -> FloatArray:
    """Average the values of all patches that cover a pixel.

    Each patch adds its values at two corners and subtracts them at the two others; two running sums then fill the
    rectangle. So the time does not depend on the size of the patches.

    Args:
        low, high: x and y of the upper left corner, and of the lower right one (not included), in pixels. [n, 2].
        values: [n, k].
        shape: height and width of the map.

    Returns:
        float64 [H, W, k], NaN where no patch is.

    >>> corner = np.array([[0, 0]])
    >>> paint(corner, corner + 1, np.array([[0.5]]), (1, 2)).tolist()
    [[[0.5], [nan]]]
    """
    corners = {+1: ((low, low), (high, high)), -1: ((high, low), (low, high))}
    height, width = shape[0] + 1, shape[1] + 1
    sums = np.zeros((values.shape[1] + 1, height, width))
    for channel in range(len(sums)):
        value = values[:, channel].astype(np.float64) if channel < values.shape[1] else np.ones(len(values))
        for sign, places in corners.items():
            for x, y in places:
                index = y[:, 1].astype(np.int64) * width + x[:, 0]
                sums[channel] += sign * np.bincount(index, value, minlength=height * width).reshape(height, width)
    sums = sums.cumsum(axis=1).cumsum(axis=2)[:, :-1, :-1]  # [k + 1, H, W]
    cover = np.where(sums[-1] > 0.5, sums[-1], np.nan)
    return np.moveaxis(sums[:-1] / cover, 0, 2)


def leading(shares: FloatArray) -> tuple[NDArray[np.int64], FloatArray, float]:
    """The teacher with the largest share, and how far its share exceeds an equal one.

    Args:
        shares: [H, W, N], NaN where no patch is.

    Returns:
        The teacher's index [H, W]; the excess [H, W], 0 for an equal share to 1 for `most` and beyond; and `most`,
        the share that 90% of the pixels do not exceed (single patches beyond it would leave all others pale).
    """
    largest = shares.max(axis=2)
    equal = 1.0 / shares.shape[2]
    most = float(np.nanquantile(largest, 0.9))
    excess = np.nan_to_num((largest - equal) / max(most - equal, 1e-9)).clip(0, 1)
    return np.nan_to_num(shares, nan=-1.0).argmax(axis=2), excess, most
