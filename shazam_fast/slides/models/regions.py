"""Regions of a slide: the clusters that its selected patches are of, as tables of a fixed size.

A table has one line per region of a pack, and every patch stands in one line. Lines and places that nothing fills hold
a number one beyond the last, which stands for "none".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Room(NamedTuple):
    """Sizes of the tables: R regions in all of the slides, K patches in a region, C regions in a slide, at most."""

    regions: int
    patches: int
    of_slide: int


class Regions(NamedTuple):
    """Which patches each region has, and which regions each slide has.

    Args:
        patches: int64 [R, K], numbers of patches in a pack of P, P for none; in the pack's order.
        slides: int64 [S, C], numbers of regions, R for none.
    """

    patches: Tensor
    slides: Tensor

    def to(self, device: torch.device) -> "Regions":
        """The same on a device."""
        return Regions(self.patches.to(device), self.slides.to(device))


def tabulate(codes: Sequence[NDArray[np.int64]], patches: int, slides: int, room: Room) -> Regions:
    """The tables of some slides that lie one after another in a pack.

    Args:
        codes: the region of each patch of each slide, int64, any numbers; equal ones are one region.
        patches: number P of places for patches in the pack, no fewer than there are codes.
        slides: number S of places for slides, no fewer than there are slides.
        room: sizes of the tables, no smaller than these slides need.

    >>> found = tabulate([np.array([7, 7, 2]), np.array([0])], 5, 3, Room(4, 2, 2))
    >>> found.patches.tolist(), found.slides.tolist()
    ([[2, 5], [0, 1], [3, 5], [5, 5]], [[0, 1], [2, 4], [4, 4]])
    """
    table = np.full((room.regions, room.patches), patches, dtype=np.int64)
    of_slides = np.full((slides, room.of_slide), room.regions, dtype=np.int64)
    first = line = 0
    for slide, own in enumerate(codes):
        order = np.argsort(own, kind="stable")
        _, starts, regions = np.unique(own[order], return_index=True, return_inverse=True)
        table[line + regions, np.arange(len(own)) - starts[regions]] = first + order
        of_slides[slide, : len(starts)] = np.arange(line, line + len(starts))
        first, line = first + len(own), line + len(starts)
    return Regions(torch.from_numpy(table), torch.from_numpy(of_slides))


def measure_room(codes: Sequence[NDArray[np.int64]]) -> Room:
    """The smallest tables in which these slides have room together.

    >>> measure_room([np.array([7, 7, 2]), np.array([0])])
    Room(regions=3, patches=2, of_slide=2)
    """
    counts = [np.unique(own, return_counts=True)[1] for own in codes]
    return Room(sum(map(len, counts)), max(int(c.max()) for c in counts), max(map(len, counts)))
