"""Bags: the patches of each slide, or of each patient, of an archive."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..errors import MismatchError
from ..tables.cells import without_decimals
from ..tables.reader import Table
from ..tables.slide_names import match_slides, show
from .options import OF_CLUSTERS

logger = logging.getLogger("shazam_fast")


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
        regions: int64 [P], the cluster that each row was selected from, numbered within its bag; None: none was made.
        slide_teachers: name -> columns of each slide-level teacher.
        slide_features: their features side by side, float32 [n, sum of columns], NaN where a teacher lacks a bag; None:
            there are none.
    """

    archive: FeatureArchive
    names: tuple[str, ...]
    patients: tuple[str, ...]
    slides: tuple[tuple[int, ...], ...]
    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    draws: tuple[tuple[NDArray[np.int64], ...], ...] | None = None
    regions: NDArray[np.int64] | None = None
    slide_teachers: Mapping[str, int] = field(default_factory=dict)
    slide_features: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of patches of each bag, int64 [n]."""
        return np.diff(self.bounds)

    def slide_names(self, chosen: NDArray[np.int64]) -> list[str]:
        """Names of the slides of some bags, in the archive's order."""
        return [self.archive.slides[i] for i in sorted({i for bag in chosen.tolist() for i in self.slides[bag]})]

    def rows_of(self, bag: int) -> NDArray[np.int64]:
        """Rows of one bag, int64."""
        return self.rows[self.bounds[bag] : self.bounds[bag + 1]]

    def regions_of(self, bag: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The region of each of some rows of a bag that was selected, int64."""
        assert self.regions is not None
        own = slice(self.bounds[bag], self.bounds[bag + 1])
        return self.regions[own][np.searchsorted(self.rows[own], rows)]


@dataclass(frozen=True)
class Selection:
    """Selected rows of every slide.

    Attributes:
        rows: slide -> its bags, each the row numbers of selected patches, int64, ascending.
        clusters: slide -> for each of its bags, the cluster that each row was selected from, int64.
        features, slides: digests of the archive that they number the rows of.

    >>> selection = Selection({"s1": (np.array([0, 7]),)}, {"s1": (np.array([4, 1]),)}, "", "")
    >>> selection.rows["s1"][0].tolist(), selection.clusters["s1"][0].tolist()
    ([0, 7], [4, 1])
    """

    rows: Mapping[str, Sequence[NDArray[np.int64]]]
    clusters: Mapping[str, Sequence[NDArray[np.int64]]]
    features: str
    slides: str


# Over 40 lines: every option is documented here.
def make_bags(
    archive: FeatureArchive,
    by: str,
    patients: Mapping[str, str],
    selected: Selection | None = None,
) -> Bags:
    """The bags of an archive.

    Args:
        archive: patches that have slides.
        by: "slide", or "patient" to join the slides of a patient.
        patients: slide -> patient; slides that are not in it are their own patients.
        selected: of this archive, see `shazam_fast.slides.select`; all rows where None.

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
    rows, draws, regions = [], [], []
    for slides in members.values():
        if selected is None:
            rows.append(np.concatenate([order[starts[slide] : starts[slide + 1]] for slide in slides]))
            continue
        chosen, codes = _selections(archive, slides, selected)
        distinct, first = np.unique(np.concatenate(chosen), return_index=True)
        draws.append(chosen)
        rows.append(distinct)
        regions.append(np.concatenate(codes)[first])
    leading = [archive.slides[slides[0]] for slides in members.values()]
    return Bags(
        archive=archive,
        names=tuple(members),
        patients=tuple(patients.get(name, name) for name in leading),
        slides=tuple(map(tuple, members.values())),
        rows=np.concatenate(rows),
        bounds=np.cumsum([0, *map(len, rows)]),
        draws=tuple(draws) if selected is not None else None,
        regions=np.concatenate(regions) if selected is not None else None,
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
    archive: FeatureArchive, slides: Sequence[int], selected: Selection
) -> tuple[tuple[NDArray[np.int64], ...], list[NDArray[np.int64]]]:
    """Selections of a bag's slides and their regions, the k-th of every slide joined."""
    names = [archive.slides[slide] for slide in slides]
    if absent := [name for name in names if name not in selected.rows]:
        raise MismatchError(f"{archive.path}: slide {absent[0]!r} is not in the selection; select from all slides")
    counts = [max(int(codes.max()) for codes in selected.clusters[name]) + 1 for name in names]
    before = np.cumsum([0, *counts[:-1]])
    numbered = [
        [codes + start for codes in selected.clusters[name]] for name, start in zip(names, before, strict=False)
    ]
    rows = tuple(np.concatenate(one) for one in zip(*(selected.rows[name] for name in names), strict=True))
    return rows, [np.concatenate(one) for one in zip(*numbered, strict=True)]


def require_regions(model: str, bags: Bags) -> None:
    """Raise MismatchError when a model reads clusters and nothing was selected from them."""
    if model in OF_CLUSTERS and bags.regions is None:
        raise MismatchError(
            f"{bags.archive.path}: model {model!r} reads selected patches with their clusters: select them first, "
            "sf.slides.select(archive, out) or shazam-fast slides select, and give selection=out (--selection)"
        )


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
