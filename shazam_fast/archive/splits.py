"""Grouped, stratified splits, and the guard against ones that leak."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError, ShazamError
from ..formats.pieces import SPLITS


@dataclass(frozen=True)
class GroupedSplit:
    """Ask for a random split that keeps every group (patient, else slide) whole and the classes in proportion.

    Args:
        val, test: shares of the patches wanted; a group is never cut, so they are met as nearly as groups allow.
        seed: the same seed gives the same split of the same archive.
    """

    val: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.val <= 0.5 and 0 <= self.test <= 0.5):
            raise ShazamError(f"shares 0 < val <= 0.5 and 0 <= test <= 0.5 expected, found {self.val} and {self.test}")

    def assign(self, labels: NDArray[np.int64], groups: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Split codes [n] of patches with the given labels and groups; unlabelled patches get "none"."""
        splits = np.full(len(labels), SPLITS["none"], dtype=np.uint8)
        rest = np.flatnonzero(labels >= 0)
        remaining = 1.0
        for name, share in (("test", self.test), ("val", self.val)):
            if share > 0:
                chosen = _one_fold(labels[rest], groups[rest], share / remaining, self.seed)
                splits[rest[chosen]] = SPLITS[name]
                rest = np.delete(rest, chosen)
                remaining -= share
        splits[rest] = SPLITS["train"]
        return splits


def require_whole_groups(splits: NDArray[np.uint8], groups: NDArray[np.int32], names: tuple[str, ...]) -> None:
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


def _one_fold(labels: NDArray[np.int64], groups: NDArray[np.int32], share: float, seed: int) -> NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold

    folds = max(2, round(1.0 / share))
    if len(np.unique(groups)) < folds:
        raise MismatchError(
            f"{len(np.unique(groups))} groups cannot give a share of {share:.2f} without being cut; "
            "give splits by hand or larger shares"
        )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    _, chosen = next(iter(splitter.split(labels, labels, groups)))
    return np.asarray(chosen, dtype=np.int64)
