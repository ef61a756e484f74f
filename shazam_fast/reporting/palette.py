"""Colours of all plots and pictures."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

INK, MUTED, RULE, EMPTY = "#1b1f24", "#5c6670", "#dee2e6", "#f1f3f5"  # text, small print, lines, areas without patches
DIVERGING = "PuOr_r"  # matplotlib's name of the colours of influence: against, nothing, for
RAMP = "cividis"  # matplotlib's name of the colours of confidence; readable by colour-blind people

# Okabe and Ito's colours, and Paul Tol's "muted" ones: colour-blind readers can tell them apart.
CLASS_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c8c8c")
TEACHER_COLOURS = ("#44aa99", "#cc6677", "#332288", "#999933", "#88ccee", "#882255", "#ddcc77", "#117733")
# Three grades of a DAB stain: counterstain blue, amber, DAB brown. The order also shows in greyscale.
GRADE_COLOURS = ("#9dbfe0", "#f2b741", "#9a4413")


def pick_colours(palette: Sequence[str], count: int) -> NDArray[np.uint8]:
    """The first colours of a palette; beyond its end, hues a golden angle apart.

    Args:
        palette: colours as "#rrggbb".
        count: how many.

    Returns:
        RGB, uint8 [count, 3].

    >>> pick_colours(CLASS_COLOURS, 2).tolist()
    [[0, 114, 178], [230, 159, 0]]
    """
    given = [tuple(bytes.fromhex(colour[1:])) for colour in palette]
    hues = [(index * 0.618034) % 1.0 for index in range(len(given), count)]
    more = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.6, 0.75)) for hue in hues]
    return np.array([*given, *more][:count], dtype=np.uint8)


def rgb(colour: str) -> list[int]:
    """Red, green and blue, 0 to 255, of "#rrggbb".

    >>> rgb("#0072b2")
    [0, 114, 178]
    """
    return list(bytes.fromhex(colour.removeprefix("#")))


def hex_colours(palette: Sequence[str], count: int) -> list[str]:
    """`pick_colours` as "#rrggbb".

    >>> hex_colours(CLASS_COLOURS, 1)
    ['#0072b2']
    """
    return [f"#{bytes(colour).hex()}" for colour in pick_colours(palette, count).tolist()]
