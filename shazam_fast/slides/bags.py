"""Bags: the patches of each slide, or of each patient, of an archive; and packs of bags for a training step.

A pack has P patches of several bags, and says of each patch which bag it is of (packing of variable bags: PackMIL,
arXiv 2509.20923). P and the number of places for bags are the same for all packs of a training; what bags leave empty
is filled with zeros that belong to a place of their own.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..archive.archive import FeatureArchive
from ..errors import MismatchError
from ..tables.cells import without_decimals
from ..tables.reader import Table
from ..tables.slide_names import match_slides, show

logger = logging.getLogger("shazam_fast")

SPARE_PLACES = 2  # a pack has places for this many times the slides that it is meant for


@dataclass(frozen=True)
class Bags:
    """The patches of each slide or patient.

    Args:
        archive: where the features are.
        names: [n] of the slides, or of the patients.
        patients: [n] the patient of each bag; of a slide whose patient is unknown, the slide's own name.
        slides: [n] the slides of each bag, indices into `archive.slides`.
        rows: int64 [P], the bags' rows, one bag after another.
        bounds: int64 [n + 1]; bag i has rows[bounds[i]:bounds[i + 1]].
        draws: [n] selections of each bag's rows, of which a training epoch takes one; None: none was made.
    """

    archive: FeatureArchive
    names: tuple[str, ...]
    patients: tuple[str, ...]
    slides: tuple[tuple[int, ...], ...]
    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    draws: tuple[tuple[NDArray[np.int64], ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of patches of each bag, int64 [n]."""
        return np.diff(self.bounds)

    def rows_of(self, bag: int) -> NDArray[np.int64]:
        """Rows of one bag, int64."""
        return self.rows[self.bounds[bag] : self.bounds[bag + 1]]


class Pack(NamedTuple):
    """Features of several bags.

    Args:
        features: float32 [P, width]; zeros where `segments` is the last place.
        segments: int64 [P], which place each patch is in, 0..S.
        bags: int64 [S], which bag is in each place, -1 for an empty one.
        rows: int64 [p], rows of the archive, of the first p patches.
    """

    features: Tensor
    segments: Tensor
    bags: NDArray[np.int64]
    rows: NDArray[np.int64]


def make_bags(
    archive: FeatureArchive,
    by: str,
    patients: Mapping[str, str],
    selected: Mapping[str, Sequence[NDArray[np.int64]]] | None = None,
) -> Bags:
    """The bags of an archive.

    Args:
        archive: patches that have slides.
        by: "slide", or "patient" to join the slides of a patient.
        patients: slide -> patient; slides that are not in it are their own patients.
        selected: slide -> selections of its rows, see `shazam_fast.slides.select`; all rows where None.

    Returns the bags, slides in the archive's order, patients in the order of their first slide.

    Raises MismatchError when no patch has a slide, or a slide has no selection.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> features = {"uni": np.ones((5, 4), np.float32)}
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", features, slides=["s1", "s1", "s2", "s3", "s3"])
    >>> bags = make_bags(sf.open(path), "patient", {"s1": "p", "s3": "p"})
    >>> bags.names, bags.rows_of(0).tolist()
    (('p', 's2'), [0, 1, 3, 4])
    """
    order, starts = _rows_by_slide(archive)
    members: dict[str, list[int]] = {}
    for slide, name in enumerate(archive.slides):
        if starts[slide] < starts[slide + 1]:
            members.setdefault(patients.get(name, name) if by == "patient" else name, []).append(slide)
    if empty := [name for i, name in enumerate(archive.slides) if starts[i] == starts[i + 1]]:
        logger.warning("%s: %d slides have no patches and are left out: %s", archive.path, len(empty), show(empty))
    rows, draws = [], []
    for slides in members.values():
        if selected is None:
            rows.append(np.concatenate([order[starts[slide] : starts[slide + 1]] for slide in slides]))
            continue
        chosen = _selections(archive, slides, selected)
        draws.append(chosen)
        rows.append(np.unique(np.concatenate(chosen)))
    first = [archive.slides[slides[0]] for slides in members.values()]
    return Bags(
        archive=archive,
        names=tuple(members),
        patients=tuple(patients.get(name, name) for name in first),
        slides=tuple(map(tuple, members.values())),
        rows=np.concatenate(rows),
        bounds=np.cumsum([0, *map(len, rows)]),
        draws=tuple(draws) if selected is not None else None,
    )


def _rows_by_slide(archive: FeatureArchive) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows sorted by slide, and where each slide begins among them [slides + 1]."""
    codes = archive.slide_index
    if not archive.slides or (codes < 0).all():
        raise MismatchError(
            f"{archive.path}: no patch says which slide it is of; write the archive with slides=, or open a folder "
            "with one file per slide"
        )
    if nowhere := int((codes < 0).sum()):
        logger.warning("%s: %d of %d patches are of no slide and are left out", archive.path, nowhere, len(codes))
    order = np.argsort(codes, kind="stable").astype(np.int64)
    return order, np.searchsorted(codes[order], np.arange(len(archive.slides) + 1))


def _selections(
    archive: FeatureArchive, slides: Sequence[int], selected: Mapping[str, Sequence[NDArray[np.int64]]]
) -> tuple[NDArray[np.int64], ...]:
    """Selections of a bag's slides, the k-th of every slide joined."""
    names = [archive.slides[slide] for slide in slides]
    if absent := [name for name in names if name not in selected]:
        raise MismatchError(f"{archive.path}: slide {absent[0]!r} is not in the selection; select from all slides")
    return tuple(np.concatenate(one) for one in zip(*(selected[name] for name in names), strict=True))


def find_patients(archive: FeatureArchive, table: Table | None) -> dict[str, str]:
    """The patient of each slide, as the archive says, else as the table's columns of slides and patients say.

    Raises MismatchError when patches of one slide, or rows of one slide, name several patients.
    """
    if archive.groups and (archive.group_index >= 0).any():
        both = (archive.slide_index >= 0) & (archive.group_index >= 0)
        pairs = np.unique(np.stack([archive.slide_index[both], archive.group_index[both]]), axis=1).T.tolist()
        found = [(archive.slides[slide], archive.groups[group]) for slide, group in pairs]
        return _distinct(found, str(archive.path))
    slide, group = (None, None) if table is None else (table.find("slide"), table.find("group"))
    if table is None or slide is None or group is None:
        return {}
    names, patients = table.texts(slide), without_decimals(table.texts(group)).tolist()
    indices = match_slides(names.tolist(), archive.slides, table.where, str(archive.path)).tolist()
    found = [(archive.slides[i], patient) for i, patient in zip(indices, patients, strict=True) if i >= 0 and patient]
    return _distinct(found, table.where)


def _distinct(pairs: Sequence[tuple[str, str]], where: str) -> dict[str, str]:
    patients: dict[str, str] = {}
    for slide, patient in pairs:
        if (other := patients.setdefault(slide, patient)) != patient:
            raise MismatchError(f"{where}: slide {slide!r} is of two patients, {other!r} and {patient!r}; correct it")
    return patients


class Packs:
    """Packs of chosen bags for training: other patches and another order in every epoch.

    Args:
        bags: the bags.
        chosen: int64 [n], indices of the bags to take.
        batch_size: bags per pack, on average.
        patches: most patches of a bag in an epoch; of larger bags this many are drawn.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> features = {"uni": np.ones((9, 4), np.float32)}
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", features, slides=["s1"] * 4 + ["s2"] * 3 + ["s3"] * 2)
    >>> bags = make_bags(sf.open(path), "slide", {})
    >>> packs = Packs(bags, np.arange(3), batch_size=2, patches=3)
    >>> sorted(len(pack.rows) for pack in packs.epoch(np.random.default_rng(0), 0))
    [3, 5]
    """

    def __init__(self, bags: Bags, chosen: NDArray[np.int64], batch_size: int, patches: int) -> None:
        self._bags, self._chosen, self._patches = bags, chosen, patches
        sizes = np.minimum(bags.sizes[chosen], patches)
        if bags.draws is not None:
            sizes = np.array([min(patches, max(map(len, bags.draws[bag]))) for bag in chosen.tolist()])
        self.size = max(int(sizes.max()), int(np.ceil(batch_size * sizes.mean())))
        self.places = SPARE_PLACES * batch_size

    def epoch(self, rng: np.random.Generator, number: int) -> Iterator[Pack]:
        """The packs of an epoch; each bag is in one of them. The next pack is gathered while one is used.

        Args:
            rng: draws the order of bags, and patches of large ones.
            number: of the epoch, from 0; decides which selection of its rows a bag takes.
        """
        drawn = {bag: self._draw(bag, rng, number) for bag in rng.permutation(self._chosen).tolist()}
        plan = _fit({bag: len(rows) for bag, rows in drawn.items()}, self.size, self.places)
        with ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(self._gather, plan[0], drawn)
            for following in [*plan[1:], None]:
                pack = upcoming.result()
                if following is not None:
                    upcoming = pool.submit(self._gather, following, drawn)
                yield pack

    def _draw(self, bag: int, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        draws = self._bags.draws
        rows = self._bags.rows_of(bag) if draws is None else draws[bag][number % len(draws[bag])]
        if len(rows) <= self._patches:
            return rows
        return rows[np.sort(rng.choice(len(rows), self._patches, replace=False, shuffle=False))]

    def _gather(self, members: Sequence[int], drawn: Mapping[int, NDArray[np.int64]]) -> Pack:
        archive = self._bags.archive
        rows = np.concatenate([drawn[bag] for bag in members])
        features = torch.zeros(self.size, archive.width)
        archive.gather(rows, out=features[: len(rows)].numpy())
        segments = torch.full((self.size,), self.places)
        lengths = torch.tensor([len(drawn[bag]) for bag in members])
        segments[: len(rows)] = torch.repeat_interleave(torch.arange(len(members)), lengths)
        bags = np.full(self.places, -1, dtype=np.int64)
        bags[: len(members)] = members
        return Pack(features, segments, bags, rows)


def _fit(sizes: Mapping[int, int], room: int, places: int) -> list[list[int]]:
    """Bags in packs: each, in the order given, goes into the first pack that has room and a place for it."""
    packs: list[list[int]] = []
    left: list[int] = []
    for bag, size in sizes.items():
        fits = (i for i, free in enumerate(left) if free >= size and len(packs[i]) < places)
        if (found := next(fits, None)) is None:
            found = len(packs)
            packs.append([])
            left.append(room)
        packs[found].append(bag)
        left[found] -= size
    return packs
