"""Folds of patients for cross-validation."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import MismatchError
from ..bags import Bags
from .targets import ClassTargets, Targets


class Fold(NamedTuple):
    """Which bags a fold trains on, chooses the epoch by, and tests, int64 each."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def deal_folds(bags: Bags, targets: Targets, count: int, seed: int) -> NDArray[np.int64]:
    """Deal patients into folds, classes (or observed events) in proportion.

    Args:
        bags, targets: all bags and their targets.
        count: number of folds.
        seed: of the order in which patients are dealt.

    Returns the fold of each bag, int64 [n], -1 without a target; all bags of a patient have the same.

    Raises MismatchError when a class, or observed events, have fewer patients than there are folds.
    """
    known = np.flatnonzero(targets.known)
    patients, codes = np.unique([bags.patients[bag] for bag in known.tolist()], return_inverse=True)
    strata = targets.strata()[known]
    counts = np.zeros((len(patients), int(strata.max()) + 1), dtype=np.int64)
    np.add.at(counts, (codes, strata), 1)  # [patients, strata]
    for stratum, number in enumerate((counts > 0).sum(axis=0).tolist()):
        if 0 < number < count and (stratum or isinstance(targets, ClassTargets)):  # censored times may be few
            raise MismatchError(
                f"{bags.archive.path}: {targets.describe(stratum)} is there for {number} patients, fewer than the "
                f"{count} folds; give fewer folds, or leave it out of the targets"
            )
    rng, dealt = np.random.default_rng(seed), 0
    of_patient = np.empty(len(patients), dtype=np.int64)
    for stratum in np.argsort(counts.sum(axis=0), kind="stable").tolist():  # a patient counts for his commonest class
        members = rng.permutation(np.flatnonzero(counts.argmax(axis=1) == stratum))
        of_patient[members] = (dealt + np.arange(len(members))) % count
        dealt += len(members)
    folds = np.full(len(bags), -1, dtype=np.int64)
    folds[known] = of_patient[codes]
    return folds
