"""Folds of patients for cross-validation.

Patients are dealt into folds one by one, each into the fold that has the fewest bags of its strata (classes, observed
events, small or large values), so strata are in proportion; patients with many bags and of rare strata come first.
With sites, all patients of a site are dealt together (site-preserved folds: Howard et al., Nature Communications 12,
2021), so that no site is both trained on and tested.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import MismatchError
from ...runtime.summaries import counted
from ...tables.cells import natural_key
from ..bags import Bags
from .targets import Targets

PROTOCOLS = ("held_out", "reported_folds")


class Fold(NamedTuple):
    """Which bags a fold trains on, chooses the epoch by, and tests, int64 each."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def take_fold(folds: NDArray[np.int64], number: int, protocol: str) -> Fold:
    """The bags of a fold.

    Args:
        folds: int64 [n], the fold of each bag, -1 for bags that are left out.
        number: of the fold that is tested.
        protocol: "held_out": the next fold chooses the epoch, the others are trained on. "reported_folds": the tested
            fold itself chooses the epoch, all others are trained on.

    >>> take_fold(np.array([0, 1, 2, -1]), 2, "held_out").val.tolist()
    [0]
    """
    val = (number + 1) % (int(folds.max()) + 1) if protocol == "held_out" else number
    train = (folds >= 0) & (folds != number) & (folds != val)
    return Fold(*(np.flatnonzero(mask) for mask in (train, folds == val, folds == number)))


def deal_folds(
    bags: Bags, targets: Targets, count: int, seed: int, sites: NDArray[np.str_] | None = None
) -> NDArray[np.int64]:
    """Deal patients, or sites, into folds, strata in proportion.

    Args:
        bags, targets: all bags and their targets.
        count: number of folds.
        seed: of the order in which patients are dealt.
        sites: [n], the site of each bag; all its bags come into one fold.

    Returns the fold of each bag, int64 [n], -1 without a target; all bags of a patient have the same.

    Raises MismatchError when a required stratum has fewer patients than there are folds, or there are fewer sites.
    """
    known = np.flatnonzero(targets.known)
    patients = np.array(bags.patients)[known]
    for stratum in targets.strata():
        number = len(np.unique(patients[stratum.members[known]]))
        if stratum.required and number < count:
            raise MismatchError(
                f"{bags.archive.path}: {stratum.words} is there for {counted(number, 'patient')}, fewer than the "
                f"{count} folds; give fewer folds, or leave it out of the targets"
            )
    units = patients if sites is None else sites[known]
    names, codes = np.unique(units, return_inverse=True)
    if len(names) < count:
        raise MismatchError(
            f"{bags.archive.path}: {len(names)} sites cannot be dealt into {count} folds; give fewer folds, or leave "
            "the column of sites out"
        )
    members = np.stack([stratum.members[known] for stratum in targets.strata()], axis=1).astype(np.int64)
    counts = np.zeros((len(names), members.shape[1]), dtype=np.int64)
    np.add.at(counts, codes, members)  # [units, strata]
    folds = np.full(len(bags), -1, dtype=np.int64)
    folds[known] = _deal(counts, count, np.random.default_rng(seed))[codes]
    return folds


def _deal(counts: NDArray[np.int64], folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each unit, int64 [units], for its numbers of bags by stratum [units, strata]."""
    total = np.maximum(counts.sum(axis=0), 1)
    rarest = np.where(counts > 0, total, total.max()).min(axis=1)
    order = np.lexsort((rng.permutation(len(counts)), rarest, -counts.sum(axis=1)))
    held = np.zeros((folds, counts.shape[1]))
    found = np.empty(len(counts), dtype=np.int64)
    for unit in order.tolist():
        cost = held @ (counts[unit] / total)
        fold = int(np.lexsort((held.sum(axis=1), cost.round(12)))[0])
        held[fold] += counts[unit]
        found[unit] = fold
    return found


def read_folds(bags: Bags, targets: Targets, texts: NDArray[np.str_], where: str) -> NDArray[np.int64]:
    """Folds that a table gives, int64 [n], -1 without a target; numbered in the natural order of their names.

    Args:
        bags, targets: all bags and their targets.
        texts: [n], the name of each bag's fold.
        where: the table and its column.

    Raises MismatchError when there are fewer than 3.
    """
    names = sorted({text for text, known in zip(texts.tolist(), targets.known, strict=True) if known}, key=natural_key)
    if len(names) < 3:
        raise MismatchError(f"{where}: 3 or more folds expected, found {names}")
    return np.array(
        [names.index(text) if known else -1 for text, known in zip(texts.tolist(), targets.known, strict=True)],
        dtype=np.int64,
    )


def require_learnable(bags: Bags, targets: Targets, folds: NDArray[np.int64], protocol: str) -> None:
    """Raise MismatchError when a fold would train without a required stratum, as with sites that differ much."""
    for number in range(int(folds.max()) + 1):
        train = take_fold(folds, number, protocol).train
        for stratum in targets.strata():
            if stratum.required and not stratum.members[train].any():
                inside = np.unique(folds[stratum.members & (folds >= 0)]) + 1
                raise MismatchError(
                    f"{bags.archive.path}: fold {number + 1} would be trained without {stratum.words}, which is in "
                    f"folds {inside.tolist()} alone; give other folds, or leave the column of sites out"
                )
