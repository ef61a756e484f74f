"""Targets of slides or patients: classes, or times with events. Read from tables, assigned to bags."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...annotation.columns import encode_labels
from ...errors import MismatchError, ShazamError
from ...tables.cells import cell_of, read_numbers, without_decimals
from ...tables.reader import Table, is_frame, read_table, table_of_frame, table_of_mapping
from ...tables.slide_names import match_slides, show
from ..bags import Bags

logger = logging.getLogger("shazam_fast")

YES = ("1", "true", "yes")
NO = ("0", "false", "no")
CENSORED = re.compile("censor", re.IGNORECASE)  # in the name of a column that says who was censored
EVENT = re.compile("event|death|dead|deceased|died|relapse|recur|progress", re.IGNORECASE)

Source = str | Path | Mapping[str, Any] | Any  # a table's path, {slide or patient: value}, a DataFrame or a Series


@dataclass(frozen=True)
class Classes:
    """One class per slide or patient.

    Args:
        source: a table (CSV or .xlsx, or a DataFrame) with a column of slides or of patients and one of labels; or
            {slide: label}, or a Series with slides as its index. Empty cells are unknown.
        column: the column of labels, where it has no usual name (label, target, class, diagnosis).
        classes: class names in label order; names in natural order by default.

    >>> Classes({"s1": "luad", "s2": "lusc"}).column is None
    True
    """

    source: Source
    column: str | None = None
    classes: Sequence[str] | None = None


@dataclass(frozen=True)
class Survival:
    """A time per slide or patient, and whether it ends with the event (death, relapse) or with censoring.

    Args:
        source: a table (CSV or .xlsx, or a DataFrame) with a column of slides or of patients. Empty cells are unknown.
        time: the column of times, numbers above 0 in any one unit.
        event: the column that says whether the event was observed. It has two values.
        observed: the value of that column that means that the event was observed; the other means censored. It must be
            given, since some tables (MCAT's and those that follow it) mark the censored with 1.

    >>> Survival("clinical.csv", time="os_months", event="censorship", observed="0").observed
    '0'
    """

    source: Source
    time: str
    event: str
    observed: str | int | bool


@dataclass(frozen=True)
class ClassTargets:
    """Classes of n bags: `classes` names them, `codes` int64 [n] are indices into it, -1 unknown."""

    classes: tuple[str, ...]
    codes: NDArray[np.int64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which bags have a class, [n]."""
        return self.codes >= 0

    def strata(self) -> NDArray[np.int64]:
        """What must be in proportion in every fold: the classes, int64 [n]."""
        return self.codes

    def describe(self, stratum: int) -> str:
        """Words for the bags of a stratum."""
        return f"class {self.classes[stratum]!r}"


@dataclass(frozen=True)
class SurvivalTargets:
    """Times of n bags: `times` float64 [n], NaN unknown; `events` bool [n], whether the event was observed then."""

    times: NDArray[np.float64]
    events: NDArray[np.bool_]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which bags have a time, [n]."""
        return ~np.isnan(self.times)

    def strata(self) -> NDArray[np.int64]:
        """What must be in proportion in every fold: 1 for an observed event, 0 for censoring, int64 [n]."""
        return self.events.astype(np.int64)

    def describe(self, stratum: int) -> str:
        """Words for the bags of a stratum."""
        return "an observed event" if stratum else "a censored time"


Targets = ClassTargets | SurvivalTargets


def read_targets(targets: Classes | Survival | Source) -> tuple[Classes | Survival, Table]:
    """What was asked for and its table; anything but Classes and Survival is a source of classes.

    Raises ArchiveError for a table that cannot be read, ShazamError for what is no table.
    """
    wanted = targets if isinstance(targets, Classes | Survival) else Classes(targets)
    source = wanted.source
    if isinstance(source, str | Path):
        return wanted, read_table(source)
    if is_frame(source):
        return wanted, table_of_frame(source)
    if hasattr(source, "to_dict") and not isinstance(source, Mapping):  # a Series
        source = source.to_dict()
    if isinstance(source, Mapping) and isinstance(wanted, Classes):
        return wanted, table_of_mapping(source, "label", "the targets")
    raise ShazamError(
        f"targets: a table (a path or a DataFrame){', or {slide: label}' if isinstance(wanted, Classes) else ''} "
        f"expected, found {type(source).__name__}"
    )


def assign_targets(wanted: Classes | Survival, table: Table, bags: Bags) -> Targets:
    """The targets of bags.

    Args:
        wanted, table: from `read_targets`.
        bags: the bags.

    Bags without a target are unknown, and counted in a warning.

    Raises MismatchError when no bag has a target, rows contradict each other (both are named), or a value cannot be
    used; see `Survival` for the column of events.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> from ..bags import make_bags
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", {"uni": np.ones((2, 4))}, slides=["s1", "s2"])
    >>> bags = make_bags(sf.open(path), "slide", {})
    >>> assign_targets(*read_targets({"s1.svs": "luad", "s2": "lusc"}), bags).codes.tolist()
    [0, 1]
    """
    if isinstance(wanted, Survival):
        return _assign_survival(wanted, table, bags)
    header = table.find_label(wanted.column)
    if header is None:
        raise MismatchError(
            f"{table.where}: a column of labels (label, target, class, diagnosis) expected, found {table.headers}; "
            "name it: sf.slides.Classes(table, column=...), --label-column"
        )
    labels = table.texts(header)
    rows = _rows_of_bags(table, bags, labels != "", lambda row: labels[row].item())
    used = rows[rows >= 0]
    classes, codes = encode_labels(labels[used], wanted.classes, lambda i: table.place(int(used[i])))
    found = np.full(len(bags), -1, dtype=np.int64)
    found[rows >= 0] = codes
    if len(classes) < 2:
        raise MismatchError(f"{table.where}: two or more classes expected, found {list(classes)} in column {header!r}")
    return ClassTargets(classes, found)


def _assign_survival(wanted: Survival, table: Table, bags: Bags) -> SurvivalTargets:
    time, event = table.require(wanted.time, "time"), table.require(wanted.event, "event")
    texts, marks = table.texts(time), without_decimals(table.texts(event))
    observed = str(cell_of(wanted.observed, "observed"))
    _check_marks(table, event, marks, observed)
    rows = _rows_of_bags(table, bags, (texts != "") & (marks != ""), lambda row: (texts[row].item(), marks[row].item()))
    used = rows[rows >= 0]
    times = read_numbers(texts[used].tolist(), [f"{table.place(row)}, column {time!r}" for row in used.tolist()])
    if (wrong := np.flatnonzero(times <= 0)).size:
        raise MismatchError(
            f"{table.place(int(used[wrong[0]]))}, column {time!r}: a time above 0 expected, found {times[wrong[0]]:g}; "
            "leave the cell empty where it is unknown"
        )
    events = np.char.lower(marks[used]) == observed.lower()
    if not events.any():
        raise MismatchError(
            f"{table.where}: no slide of the archive has an observed event ({event!r} = {observed!r}), so nothing can "
            "be learnt; check observed="
        )
    if not events.all() and np.median(times[events]) > np.median(times[~events]):
        logger.warning(
            "%s: observed events come later (median %g) than censored times (median %g); is %r = %r really an observed "
            "event?", table.where, np.median(times[events]), np.median(times[~events]), event, observed,
        )  # fmt: skip
    unknown = SurvivalTargets(np.full(len(bags), np.nan), np.zeros(len(bags), dtype=np.bool_))
    unknown.times[rows >= 0], unknown.events[rows >= 0] = times, events
    return unknown


def _check_marks(table: Table, header: str, marks: NDArray[np.str_], observed: str) -> None:
    """Raise MismatchError unless the column of events has two values, of which `observed` is plausibly the event."""
    values = sorted({text.lower() for text in marks.tolist() if text})
    if len(values) > 2 or observed.lower() not in values:
        raise MismatchError(
            f"{table.where}, column {header!r}: two values expected, one of them observed={observed!r}; "
            f"found {show(values)}"
        )
    inverted = (CENSORED.search(header) and observed.lower() in YES) or (
        not CENSORED.search(header) and EVENT.search(header) and observed.lower() in NO
    )
    if inverted:
        raise MismatchError(
            f"{table.where}: column {header!r} looks inverted: by its name, {observed!r} does not mean that the event "
            f"was observed. Give the other value as observed=, or rename the column if {observed!r} is right"
        )


def _rows_of_bags(table: Table, bags: Bags, known: NDArray[np.bool_], value: Any) -> NDArray[np.int64]:
    """The first row of the table that gives each bag its value, int64 [n], -1 where none does.

    Args:
        table: with a column of slides, or of patients.
        bags: of slides or of patients.
        known: which rows have a value.
        value: row -> its value, in which the rows of a bag must agree.
    """
    slide, group = table.find("slide"), table.find("group")
    if slide is None and group is None:
        raise MismatchError(
            f"{table.where}: a column of slides (slide_id, slide, filename, ...) or of patients expected, found "
            f"{table.headers}"
        )
    rows = np.flatnonzero(known)
    if slide is not None:
        names = table.texts(slide)[rows].tolist()
        keys, owners = _by_slide(names, table, bags)
    else:
        assert group is not None
        names = without_decimals(table.texts(group))[rows].tolist()
        keys, owners = _by_patient(names, bags)
    found = np.full(len(bags), -1, dtype=np.int64)
    for row, key in zip(rows.tolist(), keys, strict=True):
        for bag in owners.get(key, ()):
            first = int(found[bag]) if found[bag] >= 0 else row
            if value(first) != value(row):
                raise MismatchError(
                    f"{table.where}: rows {table.rows[first]} and {table.rows[row]} contradict each other: "
                    f"{bags.names[bag]!r} has {value(first)} and {value(row)}; correct one of them"
                )
            found[bag] = first
    if (found < 0).all():
        raise MismatchError(
            f"{table.where}: none of the {len(bags)} slides or patients of {bags.archive.path} ({show(bags.names)}) "
            f"has a target there ({show(list(dict.fromkeys(names)))})"
        )
    if without := [bags.names[bag] for bag in np.flatnonzero(found < 0).tolist()]:
        logger.warning("%d of %d bags have no target in %s: %s", len(without), len(bags), table.where, show(without))
    return found


def _by_slide(names: list[str], table: Table, bags: Bags) -> tuple[list[Any], dict[Any, list[int]]]:
    """The key of each name, and the bags of each key. Names of patients where none of them is a slide."""
    archive = bags.archive
    slides = match_slides(names, archive.slides, table.where, str(archive.path)).tolist()
    if max(slides, default=-1) < 0 and not set(names).isdisjoint(bags.patients):
        return _by_patient(names, bags)
    return slides, {slide: [bag] for bag, members in enumerate(bags.slides) for slide in members}


def _by_patient(names: list[str], bags: Bags) -> tuple[list[Any], dict[Any, list[int]]]:
    owners: dict[Any, list[int]] = {}
    for bag, patient in enumerate(bags.patients):
        owners.setdefault(patient, []).append(bag)
    return list(names), owners


def take(targets: Targets, chosen: NDArray[np.int64]) -> Targets:
    """The targets of some bags."""
    if isinstance(targets, ClassTargets):
        return replace(targets, codes=targets.codes[chosen])
    return SurvivalTargets(targets.times[chosen], targets.events[chosen])
