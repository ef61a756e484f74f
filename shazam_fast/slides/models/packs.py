"""Packs: the patches of several bags for one training step.

A pack has P patches of several bags, and says of each patch which bag it is of (packing of variable bags: PackMIL,
arXiv 2509.20923). P, the number of places for bags and the sizes of the tables of regions are the same for all packs
of a training; what bags leave empty is filled with zeros that belong to a place of their own.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..bags import Bags
from .mixed import block_rows, standardise
from .regions import Regions, Room, measure_room, tabulate

LENGTHS = 16  # numbers of patches with which packs are computed on a CPU: for each new one oneDNN compiles its products
SPARE_PLACES = 2  # a pack has places for this many times the slides that it is meant for


class Pack(NamedTuple):
    """Features of several bags.

    Args:
        features: [P, width], float32 as stored, or standardised in bfloat16; zeros where `segments` is the last place.
        segments: int64 [P], which place each patch is in, 0..S.
        bags: int64 [S], which bag is in each place, -1 for an empty one.
        rows: int64 [p], rows of the archive, of the first p patches.
        regions: of all patches, for models that need them.
    """

    features: Tensor
    segments: Tensor
    bags: NDArray[np.int64]
    rows: NDArray[np.int64]
    regions: Regions | None

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Regions | None]:
        """Features, segments and regions on a device; on a CPU, where sizes need not be equal, with little padding."""
        if device.type == "cpu" and self.regions is None:
            stop = round_up(len(self.rows), math.ceil(len(self.segments) / LENGTHS))
            return self.features[:stop], self.segments[:stop], None
        regions = None if self.regions is None else self.regions.to(device)
        return self.features.to(device), self.segments.to(device), regions


class Packs:
    """Packs of chosen bags for training: other patches and another order in every epoch.

    Args:
        bags: the bags.
        chosen: int64 [n], indices of the bags to take.
        batch_size: bags per pack, on average.
        patches: most patches of a bag in an epoch; of larger bags this many are drawn.
        regions: whether packs say which region each patch is of; the bags must have been selected.
        read: whether features are read; else packs have no columns.
        standard: mean and scale of the columns, [width] each, on the CPU: features are standardised with these, and
            rounded to bfloat16, while they are read. None: they are float32 as stored.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> from ..bags import make_bags
    >>> features = {"uni": np.ones((9, 4), np.float32)}
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", features, slides=["s1"] * 4 + ["s2"] * 3 + ["s3"] * 2)
    >>> bags = make_bags(sf.open(path), "slide", {})
    >>> packs = Packs(bags, np.arange(3), batch_size=2, patches=3)
    >>> sorted(len(pack.rows) for pack in packs.epoch(np.random.default_rng(0), 0))
    [3, 5]
    """

    def __init__(
        self,
        bags: Bags,
        chosen: NDArray[np.int64],
        batch_size: int,
        patches: int,
        regions: bool = False,
        read: bool = True,
        standard: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._bags, self._chosen, self._patches, self._standard = bags, chosen, patches, standard
        sizes = np.minimum(bags.sizes[chosen], patches)
        if bags.draws is not None:
            sizes = np.array([min(patches, max(map(len, bags.draws[bag]))) for bag in chosen.tolist()])
        self._width = bags.archive.width if read else 0
        self.size = _capacity(sizes, batch_size)
        self.places = SPARE_PLACES * batch_size
        # Two, since one pack is gathered while another is used; fresh memory would cost as much as reading.
        dtype = torch.float32 if standard is None else torch.bfloat16
        self._buffers = [torch.zeros(self.size, self._width, dtype=dtype) for _ in range(2)]
        self._room = _room_for(bags, chosen, batch_size) if regions else None

    def epoch(self, rng: np.random.Generator, number: int) -> Iterator[Pack]:
        """The packs of an epoch; each bag is in one of them. The next pack is gathered while one is used.

        The features of a pack are overwritten when the one after the next is asked for.

        Args:
            rng: draws the order of bags, and patches of large ones.
            number: of the epoch, from 0; decides which selection of its rows a bag takes.
        """
        drawn = {bag: self._draw(bag, rng, number) for bag in rng.permutation(self._chosen).tolist()}
        plan = _fit(self._needs(drawn), (self.size, self._room.regions if self._room else 0), self.places)
        with ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(self._gather, plan[0], drawn, self._buffers[0])
            for turn, following in enumerate([*plan[1:], None], start=1):
                pack = upcoming.result()
                if following is not None:
                    upcoming = pool.submit(self._gather, following, drawn, self._buffers[turn % 2])
                yield pack

    def _needs(self, drawn: Mapping[int, NDArray[np.int64]]) -> dict[int, tuple[int, int]]:
        """Patches and regions of each bag's rows."""
        if self._room is None:
            return {bag: (len(rows), 0) for bag, rows in drawn.items()}
        return {bag: (len(rows), len(np.unique(self._bags.regions_of(bag, rows)))) for bag, rows in drawn.items()}

    def _draw(self, bag: int, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        draws = self._bags.draws
        rows = self._bags.rows_of(bag) if draws is None else draws[bag][number % len(draws[bag])]
        if len(rows) <= self._patches:
            return rows
        return rows[np.sort(rng.choice(len(rows), self._patches, replace=False, shuffle=False))]

    def _gather(self, members: Sequence[int], drawn: Mapping[int, NDArray[np.int64]], features: Tensor) -> Pack:
        rows = np.concatenate([drawn[bag] for bag in members])
        if self._width:
            self._read(rows, features[: len(rows)])
            features[len(rows) :].zero_()
        segments = torch.full((self.size,), self.places)
        lengths = torch.tensor([len(drawn[bag]) for bag in members])
        segments[: len(rows)] = torch.repeat_interleave(torch.arange(len(members)), lengths)
        bags = np.full(self.places, -1, dtype=np.int64)
        bags[: len(members)] = members
        regions = None
        if self._room is not None:
            codes = [self._bags.regions_of(bag, drawn[bag]) for bag in members]
            regions = tabulate(codes, self.size, self.places + 1, self._room)
        return Pack(features, segments, bags, rows, regions)

    def _read(self, rows: NDArray[np.int64], features: Tensor) -> None:
        """Fill features [p, width] with rows of the archive."""
        if self._standard is None:
            self._bags.archive.gather(rows, out=features.numpy())
            return
        step = block_rows(self._width)  # what is rounded at once is still in the cache
        read = torch.empty(min(step, len(rows)), self._width)
        for start, target in zip(range(0, len(rows), step), features.split(step), strict=True):
            part = read[: len(target)]
            self._bags.archive.gather(rows[start : start + step], out=part.numpy())
            standardise(part, self._standard, target)


def round_up(count: int, step: int) -> int:
    """The smallest multiple of `step` that is no smaller than `count`.

    >>> round_up(5, 4), round_up(8, 4)
    (8, 8)
    """
    return math.ceil(count / step) * step


def _capacity(sizes: NDArray[np.int64], batch_size: int) -> int:
    """Room for the largest bag, and for `batch_size` bags of mean size."""
    return max(int(sizes.max()), math.ceil(batch_size * float(sizes.mean())))


def _room_for(bags: Bags, chosen: NDArray[np.int64], batch_size: int) -> Room:
    """Sizes of the tables of regions that any pack needs."""
    assert bags.draws is not None
    rooms = [measure_room([bags.regions_of(bag, rows)]) for bag in chosen.tolist() for rows in bags.draws[bag]]
    counts = np.array([room.regions for room in rooms])
    return Room(_capacity(counts, batch_size), max(room.patches for room in rooms), int(counts.max()))


def _fit(needs: Mapping[int, tuple[int, int]], room: tuple[int, int], places: int) -> list[list[int]]:
    """Bags in packs: each, in the order given, goes into the first pack that has room and a place for it.

    Args:
        needs: patches and regions of each bag.
        room: patches and regions of a pack.
        places: bags of a pack.
    """
    packs: list[list[int]] = []
    left: list[tuple[int, int]] = []
    for bag, (patches, regions) in needs.items():
        fits = (i for i, (p, r) in enumerate(left) if p >= patches and r >= regions and len(packs[i]) < places)
        if (found := next(fits, None)) is None:
            found = len(packs)
            packs.append([])
            left.append(room)
        packs[found].append(bag)
        left[found] = (left[found][0] - patches, left[found][1] - regions)
    return packs
