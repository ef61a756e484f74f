"""The section on a comparison of methods, from a `Comparison` or the JSON file of `shazam-fast compare --out`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...comparison.intervals import Interval
from ...comparison.methods import CONCATENATION, SINGLE_TEACHER
from ...comparison.result import Comparison
from ...errors import ShazamError
from ...runtime.documents import Count, Json, Name, Record, Text, read_document
from . import charts
from .page import ABSENT, Block, Cell, Figure, Section, Table, cells, minus, number, span
from .page import Text as Paragraph


class Range(msgspec.Struct, frozen=True):
    """An `Interval` as JSON holds it; null where there is no number."""

    value: float | None
    low: float | None
    high: float | None

    def interval(self) -> Interval:
        """The same with NaN for null."""
        return Interval(*(math.nan if v is None else v for v in (self.value, self.low, self.high)))


class Method(msgspec.Struct, frozen=True):
    """Figures of one method."""

    balanced_accuracy: Range
    weighted_f1: Range
    auroc: float | None = None
    calibration_error: float | None = None
    seconds: float | None = None


class Compared(Record, frozen=True, kw_only=True):
    """What `Comparison.to_dict` gives, as far as the report needs it."""

    classes: list[Text]
    teachers: list[Name]
    n_rows: Count
    n_groups: Count
    repeats: Count
    methods: dict[Name, Method]
    against: dict[Name, dict[Name, Range]]
    failed: dict[Name, Json] = msgspec.field(default_factory=dict)
    conclusion: Text


def read_comparison(given: Comparison | str | Path) -> Compared:
    """A comparison, or the JSON file (or the directory with one) that holds it.

    Raises ArchiveError when the file is missing or is not a comparison; ShazamError for other objects.
    """
    if isinstance(given, Comparison):
        return msgspec.convert(_without_nan(given.to_dict()), Compared)
    if not isinstance(given, str | Path):
        raise ShazamError(
            f"comparison: a Comparison, or the JSON file of one, expected; found {type(given).__name__}"
        )  # fmt: skip
    path = Path(given)
    return read_document(path / "comparison.json" if path.is_dir() else path, Compared)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def comparison_section(found: Compared) -> Section:
    """Methods by balanced accuracy, with intervals, and their differences to the best single teacher."""
    methods = sorted(found.methods, key=lambda name: -found.methods[name].balanced_accuracy.interval().value)
    reference = next((name for name in (SINGLE_TEACHER, CONCATENATION) if name in found.against), None)
    blocks: list[Block] = []
    if methods:
        gains = found.against.get(reference or "", {})
        blocks.append(_dots(found, methods, {m: g.interval() for m, g in gains.items()}, reference))
        blocks.append(_table(found, methods))
    blocks += [Paragraph(f"{name} could not run: {reason}", "note") for name, reason in found.failed.items()]
    said = (
        f"{minus(found.conclusion)} From {found.repeats:,} random splits of {found.n_rows:,} patches in "
        f"{found.n_groups:,} "
        "groups (patients where they are known)."
    )
    return Section("comparison", "Comparison of methods", blocks, [said])


def _dots(found: Compared, methods: list[str], gains: Mapping[str, Interval], reference: str | None) -> Figure:
    values = [found.methods[name].balanced_accuracy.interval() for name in methods]
    svg = charts.draw_comparison(methods, values, [gains.get(name) for name in methods], reference or "")
    right = (
        f" Right: paired difference to {reference}, with intervals that hold together for all methods (95%)."
        if reference
        else ""
    )
    return Figure(
        svg,
        f"Left: balanced accuracy on the test parts, mean of {found.repeats:,} splits, with 95% intervals by bootstrap "
        f"over {found.n_groups:,} groups.{right} Blue: students of this package.",
        wide=True,
    )  # fmt: skip


def _table(found: Compared, methods: list[str]) -> Table:
    references = [name for name in (SINGLE_TEACHER, CONCATENATION) if name in found.against]
    rows = []
    for name in methods:
        m = found.methods[name]
        gains = [found.against[reference].get(name) for reference in references]
        rows.append(
            [
                Cell(name), _range(m.balanced_accuracy), _range(m.weighted_f1), *map(_gain, gains),
                *cells((number(m.auroc), number(m.calibration_error), number(m.seconds, 1))),
            ]
        )  # fmt: skip
    names = [f"difference to {name}" for name in references]
    headings = ("method", "balanced accuracy", "weighted F1", *names, "AUROC", "calibration error", "seconds")
    return Table(
        "All methods on the same splits, with 95% intervals. The differences, in balanced accuracy, are paired, and "
        "their "
        "intervals are corrected for the number of methods. Seconds: to fit and predict, per split, on the machine "
        "that ran "
        "the comparison.",
        headings,
        rows,
        stacked=True,
    )  # fmt: skip


def _range(given: Range) -> Cell:
    i = given.interval()
    return Cell(number(i.value), small=span(i.low, i.high))


def _gain(given: Range | None) -> Cell:
    if given is None:
        return Cell(ABSENT)
    i = given.interval()
    return Cell(minus(f"{i.value:+.3f}"), small=minus(f"{i.low:+.3f} to {i.high:+.3f}"))
