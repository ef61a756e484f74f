"""One split of one archive, in memory: what every fusion method is fitted on and judged by."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..errors import MismatchError
from ..scoring.intervals import bootstrap_groups

PARTS = ("train", "val", "test")


@dataclass
class _Frame:
    """Work being timed: the shared results that it used, and the seconds that went into making such results."""

    used: set[Hashable] = field(default_factory=set)
    inner: float = 0.0
    seconds: float = 0.0


class Shared:
    """Results that several methods use, made once, and the seconds that each method would have spent on them.

    >>> shared = Shared()
    >>> shared.get("sum", lambda: 1 + 1)
    2
    >>> value, seconds = shared.measure(lambda: shared.get("sum", lambda: 3))
    >>> value, seconds > 0
    (2, True)
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}
        self._costs: dict[Hashable, tuple[float, frozenset[Hashable]]] = {}  # own seconds, all that it is made of
        self._frames: list[_Frame] = []

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result called `key`, which `make` makes on first use."""
        if key not in self._values:
            frame, value = self._time(make)
            self._values[key], self._costs[key] = value, (frame.seconds, frozenset(frame.used))
        if self._frames:
            self._frames[-1].used |= {key, *self._costs[key][1]}
        return self._values[key]

    def measure(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What `work` returns, and the seconds that it would have taken alone: shared results that it used count."""
        frame, value = self._time(work)
        return value, frame.seconds + sum(self._costs[key][0] for key in frame.used)

    def _time(self, work: Callable[[], Any]) -> tuple[_Frame, Any]:
        frame, started = _Frame(), time.perf_counter()
        self._frames.append(frame)
        try:
            value = work()
        finally:
            self._frames.pop()
        elapsed = time.perf_counter() - started
        frame.seconds = elapsed - frame.inner
        if self._frames:
            self._frames[-1].inner += elapsed
        return frame, value


@dataclass(frozen=True)
class Fold:
    """An archive with train, val and test rows, and the seed of everything random in a method.

    `shared` holds what several methods need of it. Raises MismatchError when a part is empty or has rows without a
    label, or train lacks a class.
    """

    archive: FeatureArchive
    seed: int = 0
    shared: Shared = field(default_factory=Shared, compare=False, repr=False)

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
            raise MismatchError(
                f"{self.archive.path}: no training patch has class {self.archive.classes[absent[0]]!r}; give splits "
                "with patches of it in 'train', or leave the class out with classes="
            )

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
        """Features of a part, the given teachers (default: all) side by side, float32 [n, sum of dims].

        They are read once and kept. Raises NonFiniteError for a NaN or infinity (names teacher and row).
        """
        gathered = self._gathered[part]
        if teachers is None:
            return gathered
        blocks = [gathered[:, self.archive.columns_of(name)] for name in teachers]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)

    @cached_property
    def _gathered(self) -> dict[str, NDArray[np.float32]]:
        found = {}
        for part in PARTS:
            rows = self.archive.split(part)
            found[part] = self.archive.gather(rows)
            self.archive.require_finite(rows, found[part])
        return found
