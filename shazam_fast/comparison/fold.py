"""One split of one archive, in memory: what every fusion method is fitted on and judged by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..errors import MismatchError

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Fold:
    """An archive with train, val and test rows, and the seed of everything random in a method.

    Raises MismatchError when a part is empty or has rows without a label, or train lacks a class.
    """

    archive: FeatureArchive
    seed: int = 0

    def __post_init__(self) -> None:
        for part in PARTS:
            labels = self.labels(part)
            if len(labels) == 0 or (labels < 0).any():
                raise MismatchError(
                    f"{self.archive.path}: a comparison needs labelled patches in train, val and test; "
                    f"{part!r} has {len(labels)} patches, {int((labels < 0).sum())} of them without a label"
                )
        absent = sorted(set(range(self.n_classes)) - set(self.labels("train").tolist()))
        if absent:
            raise MismatchError(f"{self.archive.path}: no training patch has class {self.archive.classes[absent[0]]!r}")

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the archive's teachers."""
        return tuple(self.archive.teachers)

    @property
    def n_classes(self) -> int:
        """Number of classes C."""
        return len(self.archive.classes)

    def labels(self, part: str) -> NDArray[np.int64]:
        """Class indices of a part, int64 [n]."""
        return self.archive.labels[self.archive.split(part)]

    def groups(self, part: str) -> NDArray[np.int64]:
        """Group of every row of a part, int64 [n], see `bootstrap_groups`."""
        return bootstrap_groups(self.archive, self.archive.split(part))

    def features(self, part: str, teachers: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Features of a part, the given teachers (default: all) side by side, float32 [n, sum of dims]."""
        gathered: NDArray[np.float32] = self.archive.gather(self.archive.split(part))
        if teachers is None:
            return gathered
        return np.concatenate([gathered[:, self.archive.columns_of(name)] for name in teachers], axis=1)


def bootstrap_groups(archive: FeatureArchive, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """What the bootstrap draws, of every row: its patient, else its slide, else the row alone. int64 [n]."""
    patients = archive.group_index[rows].astype(np.int64)
    slides = archive.slide_index[rows].astype(np.int64)
    alone = -1 - rows - len(archive.slides)
    return np.where(patients >= 0, patients, np.where(slides >= 0, -1 - slides, alone))
