"""From a table to the targets of bags."""

import logging
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...annotation.columns import encode_labels
from ...errors import MismatchError
from ...tables.cells import cell_of, read_numbers, without_decimals
from ...tables.reader import Table
from ...tables.slide_names import show
from ..bags import Bags
from .requests import Regression, Request, Survival
from .rows import require_one_per_patient, rows_of_bags
from .targets import ClassTargets, SeveralClasses, SurvivalTargets, Targets, ValueTargets

logger = logging.getLogger("shazam_fast")

YES = ("1", "true", "yes")
NO = ("0", "false", "no")
CENSORED = re.compile("censor", re.IGNORECASE)  # in the name of a column that says who was censored
EVENT = re.compile("event|death|dead|deceased|died|relapse|recur|progress", re.IGNORECASE)


# Over 40 lines: every option is documented here.
def assign_targets(wanted: Request, table: Table, bags: Bags) -> Targets:
    """The targets of bags.

    Args:
        wanted, table: from `read_targets`.
        bags: the bags.

    Bags without a target are unknown, and counted in a warning.

    Raises MismatchError when no bag has a target, rows contradict each other (both are named), a column is not there,
    or a value cannot be used; see `Survival` for the column of events.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> from ..bags import make_bags
    >>> from .requests import read_targets
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", {"uni": np.ones((2, 4))}, slides=["s1", "s2"])
    >>> bags = make_bags(sf.open(path), "slide", {})
    >>> assign_targets(*read_targets({"s1.svs": "luad", "s2": "lusc"}), bags).codes.tolist()
    [0, 1]
    """
    if isinstance(wanted, Survival):
        return _assign_survival(wanted, table, bags)
    if isinstance(wanted, Regression):
        columns = [_read_values(table, table.require(name, "columns"), wanted.log2, bags) for name in wanted.columns]
        return ValueTargets(tuple(wanted.columns), np.stack(columns, axis=1))
    if wanted.several:
        found = [
            _read_classes(table, table.require(name, "column"), wanted.classes_of(name), bags)
            for name in wanted.columns
        ]
        names, classes = wanted.columns, tuple(one.classes for one in found)
        return SeveralClasses(names, classes, np.stack([one.codes for one in found], axis=1))
    assert wanted.column is None or isinstance(wanted.column, str)
    header = table.find_label(wanted.column)
    if header is None:
        raise MismatchError(
            f"{table.where}: a column of labels (label, target, class, diagnosis) expected, found {table.headers}; "
            "name it: sf.slides.Classes(table, column=...), --label-column"
        )
    return _read_classes(table, header, wanted.classes_of(None), bags)


def _read_classes(table: Table, header: str, classes: Sequence[str] | None, bags: Bags) -> ClassTargets:
    """The classes of bags in one column."""
    labels = table.texts(header)
    rows = rows_of_bags(table, bags, labels != "", lambda row: labels[row].item(), header)
    used = rows[rows >= 0]
    names, codes = encode_labels(labels[used], classes, lambda i: table.place(int(used[i])), table.orders.get(header))
    found = np.full(len(bags), -1, dtype=np.int64)
    found[rows >= 0] = codes
    if len(names) < 2:
        raise MismatchError(f"{table.where}: two or more classes expected, found {list(names)} in column {header!r}")
    _question_patients(table, header, bags, [names[code] for code in found.tolist()], found >= 0)
    return ClassTargets(names, found)


def _question_patients(table: Table, header: str, bags: Bags, labels: list[str], known: NDArray[np.bool_]) -> None:
    """Warn of patients whose slides have different classes, which is right for some labels (a slide's subtype) only."""
    found: dict[str, set[str]] = {}
    for bag in np.flatnonzero(known).tolist():
        found.setdefault(bags.patients[bag], set()).add(labels[bag])
    if several := {patient: names for patient, names in found.items() if len(names) > 1}:
        patient, names = next(iter(several.items()))
        logger.warning(
            "%s, column %r: slides of %d patients have different classes (%r: %s); correct the table if the label is "
            "the patient's", table.where, header, len(several), patient, ", ".join(sorted(names)),
        )  # fmt: skip


def _read_values(table: Table, header: str, log2: bool, bags: Bags) -> NDArray[np.float64]:
    """The numbers of bags in one column, float64 [n], NaN unknown."""
    texts = table.texts(header)
    rows = rows_of_bags(table, bags, texts != "", lambda row: texts[row].item(), header)
    used = rows[rows >= 0]
    places = [f"{table.place(row)}, column {header!r}" for row in used.tolist()]
    values = read_numbers(texts[used].tolist(), places)
    if log2:
        if (wrong := np.flatnonzero(values < 0)).size:
            raise MismatchError(
                f"{places[wrong[0]]}: 0 or more expected for log2(value + 1), found {values[wrong[0]]:g}; leave "
                "log2 out if the values are logarithms already"
            )
        values = np.log2(values + 1)
    if (values == values[0]).all():
        raise MismatchError(
            f"{table.where}, column {header!r}: all {len(values)} values of the archive's slides are {values[0]:g}, so "
            "nothing can be learnt; leave the column out"
        )
    found = np.full(len(bags), np.nan)
    found[rows >= 0] = values
    return found


def _assign_survival(wanted: Survival, table: Table, bags: Bags) -> SurvivalTargets:
    time, event = table.require(wanted.time, "time"), table.require(wanted.event, "event")
    texts, marks = table.texts(time), without_decimals(table.texts(event))
    observed = str(cell_of(wanted.observed, "observed"))
    _check_marks(table, event, marks, observed)
    rows = rows_of_bags(
        table, bags, (texts != "") & (marks != ""), lambda row: (texts[row].item(), marks[row].item()), time
    )
    used = rows[rows >= 0]
    times = read_numbers(texts[used].tolist(), [f"{table.place(row)}, column {time!r}" for row in used.tolist()])
    if (wrong := np.flatnonzero(times <= 0)).size:
        raise MismatchError(
            f"{table.place(int(used[wrong[0]]))}, column {time!r}: a time above 0 expected, found {times[wrong[0]]:g}; "
            "leave the cell empty where it is unknown"
        )
    events = np.char.lower(marks[used]) == observed.lower()
    found = SurvivalTargets(np.full(len(bags), np.nan), np.zeros(len(bags), dtype=np.bool_))
    found.times[rows >= 0], found.events[rows >= 0] = times, events
    _question_events(table, event, observed, times, events)
    words = np.where(found.events, " (event)", " (censored)").tolist()
    pairs = [f"{number:g}{word}" for number, word in zip(found.times.tolist(), words, strict=True)]
    require_one_per_patient(bags, pairs, found.known, f"{table.where}, columns {time!r} and {event!r}")
    return found


def _question_events(
    table: Table, event: str, observed: str, times: NDArray[np.float64], events: NDArray[np.bool_]
) -> None:
    """Raise MismatchError where no event was observed; warn where none was censored, or events come late."""
    if not events.any():
        raise MismatchError(
            f"{table.where}: no slide of the archive has an observed event ({event!r} = {observed!r}), so nothing can "
            "be learnt; check observed="
        )
    if events.all():
        logger.warning(
            "%s: no time is censored: all %d have %r = %r; is every one of them an observed event?",
            table.where, len(events), event, observed,
        )  # fmt: skip
    elif np.median(times[events]) > np.median(times[~events]):
        logger.warning(
            "%s: observed events come later (median %g) than censored times (median %g); is %r = %r really an observed "
            "event?", table.where, np.median(times[events]), np.median(times[~events]), event, observed,
        )  # fmt: skip


def _check_marks(table: Table, header: str, marks: NDArray[np.str_], observed: str) -> None:
    """Raise MismatchError unless the column of events has two values, of which `observed` is plausibly the event."""
    values = sorted({text.lower() for text in marks.tolist() if text})
    if len(values) > 2 or observed.lower() not in values:
        raise MismatchError(
            f"{table.where}, column {header!r}: two values expected, one of them observed={observed!r}; "
            f"found {show(values)}. Give as observed= the value that means that the event was observed; without an "
            "observed event there is nothing to learn"
        )
    inverted = (CENSORED.search(header) and observed.lower() in YES) or (
        not CENSORED.search(header) and EVENT.search(header) and observed.lower() in NO
    )
    if inverted:
        raise MismatchError(
            f"{table.where}: column {header!r} looks inverted: by its name, {observed!r} does not mean that the event "
            f"was observed. Give the other value as observed=, or rename the column if {observed!r} is right"
        )
