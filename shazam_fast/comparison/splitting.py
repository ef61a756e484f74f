"""The splits that a comparison is made on: random ones that keep groups or sites whole, or the archive's own."""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..annotation.splits import GroupedSplit, require_whole_groups
from ..archive.archive import FeatureArchive
from ..errors import MismatchError
from ..runtime.summaries import counted
from .fold import PARTS

logger = logging.getLogger("shazam_fast")

CODES = {"train": 0, "val": 1, "test": 2}

Codes = NDArray[np.uint8]  # split of every patch, as in `FeatureArchive.splits`


def own_split(archive: FeatureArchive) -> Codes:
    """The archive's own splits. Raises MismatchError when a group (patient) or a slide is in two of them."""
    require_whole_groups(archive.splits, archive.group_index, archive.groups)
    require_whole_groups(archive.splits, archive.slide_index, archive.slides)
    return archive.splits


def random_splits(
    archive: FeatureArchive, repeats: int, val: float, test: float, seed: int, sites: NDArray[np.integer] | None
) -> list[Codes]:
    """Splits of the labelled patches with seeds `seed`, `seed + 1`, ...: groups whole, classes in proportion.

    Args:
        archive: with labels.
        repeats: number of splits.
        val, test: shares of the labelled patches.
        seed: of the first split.
        sites: [n_rows], the site of every patch, -1 unknown: whole sites stay in one part; None: any.

    Raises MismatchError when there are too few groups or sites for the shares.
    """
    groups: NDArray[np.integer] = archive.group_index
    slides = archive.slide_index
    if sites is not None:
        groups = join_units(sites, groups, slides)
        known = len(np.unique(groups[archive.labels >= 0]))
        if known < len(PARTS):
            raise MismatchError(
                f"{archive.path}: splits that keep sites whole need at least 3 of them (or patients of unknown site), "
                f"found {known}; leave out sites="
            )
    return [
        GroupedSplit(val, test, seed + repeat).assign(archive.labels, groups, slides, str(archive.path))
        for repeat in range(repeats)
    ]


def join_units(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """What must stay together, int64 [n]: patches that share a code in any column, over any number of steps.

    A patient with slides of two sites joins these sites. -1 is unknown and joins nothing.

    >>> join_units(np.array([0, 0, 1, -1]), np.array([0, 1, 1, 2])).tolist()
    [0, 0, 0, 3]
    """
    units = np.arange(len(columns[0]))
    while True:
        before = units.copy()
        for column in columns:
            known = column >= 0
            lowest = np.full(int(column.max(initial=-1)) + 1, len(units))
            np.minimum.at(lowest, column[known], units[known])
            units[known] = lowest[column[known]]
        if (units == before).all():
            return units


def check_splits(archive: FeatureArchive, splits: list[Codes], own: bool) -> list[str]:
    """Remarks on the splits, for the result. Raises MismatchError for a split that nothing can be fitted on.

    Checked: labels of two classes or more, all of them in every training part. A class that a val or test part lacks
    is a remark, since balanced accuracy is over the classes present.
    """
    present = np.unique(archive.labels[archive.labels >= 0])
    if len(present) == 0:
        raise MismatchError(f"{archive.path}: a comparison needs labels, there are none; give labels= (--labels)")
    if len(present) == 1:
        raise MismatchError(
            f"{archive.path}: all labelled patches are of class {archive.classes[present[0]]!r}; a comparison needs "
            "two classes or more"
        )
    lacking: dict[tuple[str, str], int] = {}
    for repeat, codes in enumerate(splits):
        for part in PARTS:
            labels = archive.labels[codes == CODES[part]]
            for absent in sorted(set(range(len(archive.classes))) - set(labels.tolist())):
                name = archive.classes[absent]
                if part == "train":
                    raise MismatchError(_no_class(archive, absent, repeat, own))
                lacking[part, name] = lacking.get((part, name), 0) + 1
    notes = [
        f"class {name!r} has no patch in {part} of {count} of {len(splits)} splits; there it does not count"
        for (part, name), count in lacking.items()
    ]
    for note in notes:
        logger.warning("%s: %s", archive.path, note)
    return notes


def _no_class(archive: FeatureArchive, absent: int, repeat: int, own: bool) -> str:
    rows = archive.labels == absent
    units = len(np.unique(join_units(archive.group_index, archive.slide_index)[rows]))
    which = "the archive's own split" if own else f"random split {repeat}"
    return (
        f"{archive.path}: no training patch has class {archive.classes[absent]!r} in {which}; it has "
        f"{counted(int(rows.sum()), 'patch')} in {counted(units, 'group')} (patients, slides or single patches): leave "
        "the class out with classes=, or give splits with it in 'train' (own_splits, --own-splits)"
    )
