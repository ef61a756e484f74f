"""Scores of whole slides, to look at: a picture of every slide, and polygons for QuPath."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's and Tol's "muted" colours, made to be told apart by colour-blind readers.
CLASS_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c8c8c")
TEACHER_COLOURS = ("#44aa99", "#cc6677", "#332288", "#999933", "#88ccee", "#882255", "#ddcc77", "#117733")


def pick_colours(palette: Sequence[str], count: int) -> NDArray[np.uint8]:
    """RGB [count, 3] of a palette; beyond its end, hues a golden angle apart."""
    given = [tuple(bytes.fromhex(colour[1:])) for colour in palette]
    hues = [(index * 0.618034) % 1.0 for index in range(len(given), count)]
    more = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.6, 0.75)) for hue in hues]
    return np.array([*given, *more][:count], dtype=np.uint8)
