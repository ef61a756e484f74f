"""Targets of bags: classes, values of several columns, or times with events."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Stratum:
    """Bags that must be in proportion in every fold.

    Args:
        words: what they have, for messages.
        members: which bags, bool [n].
        required: whether every fold must train on some of them.
    """

    words: str
    members: NDArray[np.bool_]
    required: bool


class Targets(ABC):
    """Targets of n bags; every array among the fields of a child has n rows."""

    @property
    @abstractmethod
    def known(self) -> NDArray[np.bool_]:
        """Which bags have a target, [n]."""

    @abstractmethod
    def strata(self) -> list[Stratum]:
        """What must be in proportion in every fold."""

    @abstractmethod
    def constant(self, chosen: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """What a predictor says that knows nothing but the targets of the chosen bags, [V]; None for survival.

        Frequencies of the classes, or means of the values.
        """

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The fields that have a row per bag."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # children are dataclasses
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


@dataclass(frozen=True)
class ClassTargets(Targets):
    """Classes of n bags: `classes` names them, `codes` int64 [n] are indices into it, -1 unknown."""

    classes: tuple[str, ...]
    codes: NDArray[np.int64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """As `Targets.known`."""
        return self.codes >= 0

    def strata(self) -> list[Stratum]:
        """The classes that occur."""
        return [
            Stratum(f"class {name!r}", self.codes == code, True)
            for code, name in enumerate(self.classes)
            if (self.codes == code).any()
        ]

    def constant(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Frequencies of the classes among the chosen bags of known class, [C]; equal ones where none is known."""
        codes = self.codes[chosen]
        counts = np.bincount(codes[codes >= 0], minlength=len(self.classes)).astype(np.float64)
        return counts / counts.sum() if counts.any() else np.full(len(counts), 1 / len(counts))


@dataclass(frozen=True)
class SeveralClasses(Targets):
    """Classes of n bags by T columns.

    Args:
        names: [T] of the columns.
        classes: [T] class names of each column.
        codes: int64 [n, T], indices into a column's classes, -1 unknown.
    """

    names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]
    codes: NDArray[np.int64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which bags have a class in some column, [n]."""
        return np.asarray((self.codes >= 0).any(axis=1), dtype=np.bool_)

    def columns(self) -> Iterator[tuple[str, ClassTargets]]:
        """The name and the classes of each column."""
        for i, name in enumerate(self.names):
            yield name, ClassTargets(self.classes[i], self.codes[:, i])

    def strata(self) -> list[Stratum]:
        """The classes of all columns."""
        return [
            replace(one, words=f"column {name!r}, {one.words}")
            for name, column in self.columns()
            for one in column.strata()
        ]

    def constant(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Frequencies of the classes of every column, one column after another, [V]."""
        return np.concatenate([column.constant(chosen) for _, column in self.columns()])


@dataclass(frozen=True)
class ValueTargets(Targets):
    """Numbers of n bags by T columns: `names` [T], `values` float64 [n, T], NaN unknown."""

    names: tuple[str, ...]
    values: NDArray[np.float64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which bags have a value in some column, [n]."""
        return np.asarray((~np.isnan(self.values)).any(axis=1), dtype=np.bool_)

    def strata(self) -> list[Stratum]:
        """Small and large values of every column."""
        middle = np.nanmedian(self.values, axis=0)
        found = []
        for i, name in enumerate(self.names):
            values = self.values[:, i]
            low = values <= middle[i] if (values > middle[i]).any() else values < middle[i]
            found.append(Stratum(f"column {name!r}, a small value", low, True))
            found.append(Stratum(f"column {name!r}, a large value", ~np.isnan(values) & ~low, True))
        return found

    def constant(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Means of the columns, [T]."""
        return mean_and_scale(self.values[chosen])[0]


@dataclass(frozen=True)
class SurvivalTargets(Targets):
    """Times of n bags: `times` float64 [n], NaN unknown; `events` bool [n], whether the event was observed then."""

    times: NDArray[np.float64]
    events: NDArray[np.bool_]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which bags have a time, [n]."""
        return ~np.isnan(self.times)

    def strata(self) -> list[Stratum]:
        """Observed events, and censored times, which may be few."""
        return [
            Stratum("an observed event", self.events & self.known, True),
            Stratum("a censored time", ~self.events & self.known, False),
        ]

    def constant(self, chosen: NDArray[np.int64]) -> None:
        """None: all risks are equal."""


T = TypeVar("T", bound=Targets)


def take(targets: T, chosen: NDArray[np.int64]) -> T:
    """The targets of some bags."""
    return replace(targets, **{name: array[chosen] for name, array in targets.arrays().items()})  # type: ignore[type-var]


def mean_and_scale(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the known values of each column, [T] each; 1 where a column does not vary.

    Args:
        values: [n, T], NaN unknown.

    >>> [found.tolist() for found in mean_and_scale(np.array([[1.0, 5.0], [3.0, np.nan]]))]
    [[2.0, 5.0], [1.0, 1.0]]
    """
    known = ~np.isnan(values)
    counts = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0.0).sum(axis=0) / counts
    scale = np.sqrt((np.where(known, values - mean, 0.0) ** 2).sum(axis=0) / counts)
    return mean, np.where(scale > 0, scale, 1.0)


def named_classes(targets: Targets) -> tuple[tuple[str, ...], dict[str, Sequence[str]]]:
    """The classes of the only column, and the classes of each of several columns (none of columns of numbers)."""
    if isinstance(targets, ClassTargets):
        return targets.classes, {}
    if isinstance(targets, SeveralClasses):
        return (), dict(zip(targets.names, targets.classes, strict=True))
    return (), dict.fromkeys(targets.names, ()) if isinstance(targets, ValueTargets) else {}
