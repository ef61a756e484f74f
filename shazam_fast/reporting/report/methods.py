"""The section on a comparison of methods, from a `Comparison` or what `shazam-fast compare --out` wrote."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...comparison.methods import CONCATENATION, SINGLE_TEACHER
from ...comparison.result import Comparison
from ...comparison.table import MANIFEST
from ...errors import ShazamError
from ...runtime.documents import Count, Json, Name, Record, Text, read_document
from ...runtime.summaries import counted
from ...scoring.intervals import Interval
from .. import charts
from .page import ABSENT, Block, Cell, Figure, Section, Table, cells, minus, number, span
from .page import Text as Paragraph
from .svg import to_svg


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
    fit_seconds: float | None = None
    gflops: float | None = None


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
    study: Text = ""
    notes: list[Text] = msgspec.field(default_factory=list)
    conclusion: Text


def read_comparison(given: Comparison | str | Path) -> Compared:
    """A comparison, or the directory or JSON file that holds one.

    Raises ArchiveError when the file is missing or is not a comparison; ShazamError for other objects.
    """
    if isinstance(given, Comparison):
        return msgspec.convert(_without_nan(given.to_dict()), Compared)
    if not isinstance(given, str | Path):
        raise ShazamError(
            f"comparison: a Comparison, or the directory of one, expected; found {type(given).__name__}"
        )  # fmt: skip
    path = Path(given)
    return read_document(path / MANIFEST if path.is_dir() else path, Compared)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def comparison_section(found: Compared) -> Section:
    """Methods by balanced accuracy (settings of a study in their order), and their differences to a reference."""
    methods = list(found.methods)
    if not found.study:
        methods.sort(key=lambda name: -found.methods[name].balanced_accuracy.interval().value)
    blocks: list[Block] = [_dots(found, methods), _table(found, methods)] if methods else []
    blocks += [Paragraph(note, "note") for note in found.notes]
    blocks += [Paragraph(f"{name} could not run: {reason}", "note") for name, reason in found.failed.items()]
    splits = f"{found.repeats:,} splits" if found.repeats > 1 else "one split"
    said = (
        f"{minus(found.conclusion)} From {splits} of {counted(found.n_rows, 'patch')}, with test patches of "
        f"{counted(found.n_groups, 'group')} (patients where they are known)."
    )
    title = f"Comparison of settings: {found.study}" if found.study else "Comparison of methods"
    return Section("comparison", title, blocks, [said])


def _references(found: Compared) -> list[str]:
    """The references that differences are shown to: the best single teacher first."""
    usual = [name for name in (SINGLE_TEACHER, CONCATENATION) if name in found.against]
    return usual or list(found.against)[:1]


def _dots(found: Compared, methods: list[str]) -> Figure:
    reference = next(iter(_references(found)), "")
    values = [found.methods[name].balanced_accuracy.interval() for name in methods]
    gains = [given.interval() if given else None for given in map(found.against.get(reference, {}).get, methods)]
    right = f" Right: paired difference to {reference}; these intervals hold together, with 95%, for all rows."
    return Figure(
        to_svg(charts.draw_comparison(methods, values, gains, reference), "comparison"),
        "Left: balanced accuracy on the test parts, mean of all splits and seeds, with 95% intervals by bootstrap over "
        f"{found.n_groups:,} groups.{right if reference else ''} Blue: students of this package.",
        wide=True,
    )


def _table(found: Compared, methods: list[str]) -> Table:
    references, known = _references(found), any(m.gflops is not None for m in found.methods.values())
    rows = []
    for name in methods:
        m = found.methods[name]
        gains = [_gain(found.against[reference].get(name)) for reference in references]
        numbers = [number(m.auroc), number(m.calibration_error), number(m.fit_seconds, 1)]
        numbers += [number(m.gflops, 0)] if known else []
        rows.append([Cell(name), _range(m.balanced_accuracy), _range(m.weighted_f1), *gains, *cells(numbers)])
    differences = [f"difference to {name}" for name in references]
    last = ("AUROC", "calibration error", "seconds", *(["GFLOPs"] if known else []))
    return Table(
        "The same splits for all, with 95% intervals. The differences, in balanced accuracy, are paired, and their "
        "intervals are corrected for the number of methods. Seconds: to fit, per split, on the machine that ran the "
        "comparison." + (" GFLOPs: of the encoders, per patch." if known else ""),
        ("setting" if found.study else "method", "balanced accuracy", "weighted F1", *differences, *last),
        rows,
        style="stacked",
    )


def _range(given: Range) -> Cell:
    i = given.interval()
    return Cell(number(i.value), small=span(i.low, i.high))


def _gain(given: Range | None) -> Cell:
    if given is None:
        return Cell(ABSENT)
    i = given.interval()
    return Cell(minus(f"{i.value:+.3f}"), small=minus(f"{i.low:+.3f} to {i.high:+.3f}"))
