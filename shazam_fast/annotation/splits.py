"""Grouped, stratified splits, and the check that no group is in two splits."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError, ShazamError
from ..formats.pieces import SPLITS
from ..runtime.summaries import counted

logger = logging.getLogger("shazam_fast")

NEAREST = 0.5  # fraction of a wanted share by which it may be missed before that is an error
KINDS = (("patient", ""), ("slide", " of unknown patient"), ("patch", " of unknown patient and slide"))
SIZE_FIRST = 4  # weight of a split's size, relative to that of all classes' proportions in it
PASSES = 10  # over all groups, to improve a split group by group


@dataclass(frozen=True)
class GroupedSplit:
    """Ask for a random split that keeps every group whole and the classes in proportion.

    A group is a patient; where a patch's patient is unknown, its slide; where that is unknown too, the patch alone.

    Args:
        val, test: shares of the labelled patches, met as nearly as whole groups allow.
        seed: the same seed gives the same split of the same archive.

    Raises ShazamError for shares out of range.

    >>> GroupedSplit(val=0.2, test=0.2).assign(np.arange(10) % 2, np.arange(10) // 2).tolist().count(2)
    2
    """

    val: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(isinstance(share, int | float) for share in (self.val, self.test)):
            raise ShazamError(f"val and test: numbers expected, found {self.val!r} and {self.test!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ShazamError(f"seed: a whole number from 0 expected, found {self.seed!r}")
        if not (0 < self.val <= 0.5 and 0 <= self.test <= 0.5 and self.val + self.test < 1):
            raise ShazamError(
                f"shares 0 < val <= 0.5, 0 <= test <= 0.5 and val + test < 1 expected, found {self.val} and {self.test}"
            )

    def assign(
        self,
        labels: NDArray[np.integer],
        groups: NDArray[np.integer] | None = None,
        slides: NDArray[np.integer] | None = None,
        where: str = "the archive",
    ) -> NDArray[np.uint8]:
        """Split codes of patches.

        Args:
            labels: [n] class indices; patches with label -1 get "none".
            groups: [n] patients, -1 unknown; all unknown where None.
            slides: [n] slides, -1 unknown; all unknown where None.
            where: name of the archive, for messages.

        Returns:
            uint8 [n]: 0 train, 1 val, 2 test, 255 none.

        Raises MismatchError when there are too few groups for the shares wanted.
        """
        shares = np.array([1 - self.val - self.test, self.val, self.test])  # of train, val, test
        rest = np.flatnonzero(labels >= 0)
        unknown = np.full(len(rest), -1, dtype=np.int64)
        patient, slide = (unknown if c is None else c[rest].astype(np.int64) for c in (groups, slides))
        units = _units(patient, slide, where)
        _, classes = np.unique(labels[rest], return_inverse=True)
        n_units = int(units.max(initial=-1)) + 1
        counts = np.zeros((n_units, int(classes.max(initial=0)) + 1))
        np.add.at(counts, (units, classes), 1)
        if n_units < np.count_nonzero(shares):
            raise self._too_few(n_units, float(shares[shares > 0].min()), where)
        of_unit = _assign_units(counts, shares, np.random.default_rng(self.seed))
        splits = np.full(len(labels), SPLITS["none"], dtype=np.uint8)
        splits[rest] = of_unit[units]
        for code, share in enumerate(shares):
            if abs((splits[rest] == code).mean() - share) > NEAREST * share:
                raise self._too_few(n_units, float(share), where)
        return splits

    def _too_few(self, n_units: int, share: float, where: str) -> MismatchError:
        default = GroupedSplit.val  # of both
        left = [name for name in ("val", "test") if getattr(self, name) == default]
        said = f" ({' and '.join(left)}: {default} is the default where no share is given)" if left else ""
        shares = "" if n_units == 1 else "larger shares or test=0 (--val, --test), or "
        return MismatchError(
            f"{where}: too few slides or patients ({n_units}) for a {share:.0%} split with the shares val={self.val} "
            f"and test={self.test}{said}; give {shares}splits= (--splits) as a table or one per patch"
        )


def require_whole_groups(splits: NDArray[np.uint8], groups: NDArray[np.integer], names: tuple[str, ...]) -> None:
    """Raise MismatchError naming the first group (patient, slide) that has patches in two of train, val and test."""
    used = (splits != SPLITS["none"]) & (groups >= 0)
    pairs = np.unique(np.stack([groups[used], splits[used]], axis=1), axis=0)  # (group, split), sorted
    repeated = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
    if repeated.size:
        group = pairs[repeated[0], 0]
        codes = {code: name for name, code in SPLITS.items()}
        found = ", ".join(codes[int(code)] for code in pairs[pairs[:, 0] == group, 1])
        raise MismatchError(
            f"the split leaks: group {names[group]!r} has patches in {found} "
            f"({len(np.unique(pairs[repeated, 0]))} such groups); every group must stay in one"
        )


def _units(patient: NDArray[np.int64], slide: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """Codes [n] from 0 of what must stay in one split: the patient, else the slide, else the patch alone."""
    both = (patient >= 0) & (slide >= 0)
    known_slides, first = np.unique(slide[both], return_index=True)
    if known_slides.size:  # patches of a slide whose patient is known for other patches
        place = np.searchsorted(known_slides, slide).clip(max=len(known_slides) - 1)
        filled = (patient < 0) & (slide >= 0) & (known_slides[place] == slide)
        patient = np.where(filled, patient[both][first][place], patient)
    kind = np.where(patient >= 0, 0, np.where(slide >= 0, 1, 2))
    code = np.select([kind == 0, kind == 1], [patient, slide], np.arange(len(patient)))
    _, units = np.unique(np.stack([kind, code], axis=1), axis=0, return_inverse=True)
    found = [
        counted(len(np.unique(code[kind == k])), one) + rest for k, (one, rest) in enumerate(KINDS) if (kind == k).any()
    ]
    logger.info("%s: split by %s", where, " and ".join(found) or "nothing: no patch has a label")
    return units.reshape(-1)


def _assign_units(
    counts: NDArray[np.float64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Split codes [units] such that every split holds about its share of every class.

    Args:
        counts: [units, classes] patches.
        shares: [splits] that sum to 1.
        rng: of the order in which units are dealt out.
    """
    counts = np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)  # [units, classes and all patches]
    total = counts.sum(axis=0).clip(min=1)  # [classes and all patches]
    wanted = shares[:, None] * total  # [splits, classes and all patches]
    order = rng.permutation(len(counts))
    of_unit = np.zeros(len(counts), dtype=np.uint8)
    weight = 1 / (total**2 * np.maximum(shares, 1e-9)[:, None])  # of a squared miss, so that small shares count as much
    weight[:, -1] *= SIZE_FIRST * counts.shape[1]
    held = _deal_out(of_unit, order[counts[order, -1] > 1], counts, wanted, weight)
    single = order[counts[order, -1] == 1]
    for label, lacking in enumerate((wanted - held)[:, :-1].clip(min=0).T):
        units = single[counts[single, label] == 1]
        if units.size and lacking.sum() > 0:
            bounds = np.rint(np.cumsum(lacking) / lacking.sum() * len(units)).astype(np.int64)
            of_unit[units] = np.searchsorted(bounds, np.arange(len(units)), side="right")
    return of_unit


def _deal_out(
    of_unit: NDArray[np.uint8],
    units: NDArray[np.int64],
    counts: NDArray[np.float64],
    wanted: NDArray[np.float64],
    weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Give each of the `units` to the split that it brings closest to its share, then move units while that helps.

    Args:
        of_unit: [units] split codes, filled in for the given units.
        units: [n] units of several patches, in the order in which they are dealt out.
        counts: [units, classes and all patches].
        wanted: [splits, classes and all patches].
        weight: [splits, classes and all patches] of a squared miss.

    Returns what the splits hold then: [splits, classes and all patches].
    """
    usable = np.flatnonzero(wanted[:, -1] > 0)
    held = np.zeros_like(wanted)
    for step in range(1 + PASSES):
        moved = step == 0
        for unit in units.tolist():
            if step:
                held[of_unit[unit]] -= counts[unit]
            lacking = wanted - held
            change = (lacking - counts[unit]) ** 2 - lacking**2
            chosen = usable[int((change * weight).sum(axis=1)[usable].argmin())]
            moved = moved or bool(chosen != of_unit[unit])
            of_unit[unit] = chosen
            held[chosen] += counts[unit]
        if not moved:
            break
    return held


def count_members(indices: Mapping[str, NDArray[np.integer]]) -> dict[str, int | None]:
    """To how many slides, groups or other named things rows belong.

    Args:
        indices: what is counted -> its number of each row, [n], -1 unknown.

    Returns what is counted -> how many; None where it is not known of every row.

    >>> count_members({"slides": np.array([0, 0, 3]), "groups": np.array([0, -1, 0])})
    {'slides': 2, 'groups': None}
    """
    return {what: None if (index < 0).any() else len(np.unique(index)) for what, index in indices.items()}
