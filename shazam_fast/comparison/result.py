"""What a comparison found: one cell per method, split and seed, and the intervals made of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError, ShazamError
from ..runtime.summaries import Plottable, counted, summary_html
from ..scoring.intervals import Interval, Tally, bootstrap_metrics, interval, simultaneous_intervals
from ..scoring.metrics import FRACTIONS, Metrics, compute_metrics
from ..teachers.licences import known_as
from ..teachers.registry import get_teacher
from .methods import NOT_FUSED, SINGLE_TEACHER


@dataclass(frozen=True)
class Cell:
    """One method on one split with one seed.

    Args:
        repeat: number of the split.
        seed: number of the seed; methods without randomness have seed 0 alone.
        method: its name; in a study the name of the setting.
        teachers: those that it reads.
        rows, labels, groups: int64 [n]: the test part's rows in the archive, classes, and what the bootstrap draws.
        probabilities: float32 [n, C] of the test part; None where the method could not run.
        fit_seconds: to fit and to choose on val, with all that it shares with other methods.
        score_seconds: to predict the test part.
        reason: why the method could not run.
    """

    repeat: int
    seed: int
    method: str
    teachers: tuple[str, ...]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    probabilities: NDArray[np.float32] | None
    metrics: Metrics | None
    fit_seconds: float
    score_seconds: float
    reason: str = ""

    @property
    def predicted(self) -> NDArray[np.int64] | None:
        """The most probable class of every test patch, int64 [n]."""
        return None if self.probabilities is None else self.probabilities.argmax(axis=1)

    @property
    def seconds(self) -> float:
        """Seconds to fit and to predict the test part."""
        return self.fit_seconds + self.score_seconds


@dataclass(frozen=True)
class Setup:
    """What is compared, as a result states it.

    Args:
        classes, teachers: names.
        n_rows: number of labelled patches.
        repeats: number of splits.
        seed: of splits, methods and bootstrap.
        references: method -> the methods that are compared with it.
        study: name of the study, "" for a comparison of methods.
        notes: remarks on splits and teachers.
    """

    classes: tuple[str, ...]
    teachers: tuple[str, ...]
    n_rows: int
    repeats: int
    seed: int
    references: Mapping[str, Sequence[str]]
    study: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Comparison(Plottable):
    """What `compare` found.

    Args:
        classes, teachers: names.
        n_rows, n_groups: labelled patches, and groups among the test patches of all splits.
        repeats: number of splits.
        cells: every method on every split, with every seed.
        balanced_accuracy, weighted_f1: method -> mean over splits and seeds, with a 95% interval by bootstrap over
            groups.
        against: reference -> {method: paired difference in balanced accuracy}, with intervals that hold together
            (corrected for the number of methods).
        study: name of the study, "" for a comparison of methods; the "methods" of a study are its settings.
        notes: remarks on splits and teachers.
    """

    classes: tuple[str, ...]
    teachers: tuple[str, ...]
    n_rows: int
    n_groups: int
    repeats: int
    cells: tuple[Cell, ...]
    balanced_accuracy: Mapping[str, Interval]
    weighted_f1: Mapping[str, Interval]
    against: Mapping[str, Mapping[str, Interval]]
    study: str = ""
    notes: tuple[str, ...] = ()

    def mean(self, method: str, metric: str) -> float:
        """Mean over splits and seeds of a metric's name in `Metrics`; NaN for a method that never ran."""
        values = [getattr(c.metrics, metric) for c in self.cells if c.method == method and c.metrics is not None]
        return float(np.mean(values)) if values else float("nan")

    def seconds(self, method: str, kind: str = "") -> float:
        """Mean seconds of one fit: `kind` "fit", "score" (the test part), or "" for both together."""
        found = [getattr(cell, f"{kind}_seconds".lstrip("_")) for cell in self.cells if cell.method == method]
        return float(np.mean(found))

    def teachers_of(self, method: str) -> dict[tuple[str, ...], int]:
        """The sets of teachers that a method chose, the most frequent first, and how often."""
        cells = [cell for cell in self.cells if cell.method == method and cell.metrics is not None]
        return dict(Counter(cell.teachers for cell in cells).most_common())

    def gflops(self, method: str) -> float | None:
        """10^9 operations per patch of the encoders that a method reads, mean over cells; None if not known of one."""
        found = [(encoder_gflops(teachers), count) for teachers, count in self.teachers_of(method).items()]
        if not found or any(cost is None for cost, _ in found):
            return None
        return sum((cost or 0.0) * count for cost, count in found) / sum(count for _, count in found)

    @property
    def failed(self) -> dict[str, str]:
        """Methods that could not run on some split, with the first reason."""
        found: dict[str, str] = {}
        for cell in self.cells:
            if cell.metrics is None:
                found.setdefault(cell.method, cell.reason)
        return found

    def conclusion(self) -> str:
        """One sentence: what fusing gains over the best single teacher (in a study, over the reference), how sure."""
        if self.study:
            return self._best_setting()
        if len(self.teachers) == 1:
            return f"There is one teacher only ({self.teachers[0]}), so nothing is fused: the methods are classifiers."
        fused = {m: i for m, i in self.balanced_accuracy.items() if m not in NOT_FUSED}
        gains = self.against.get(SINGLE_TEACHER, {})
        if not any(m in gains for m in fused):
            return "Nothing to conclude: the comparison has no single teacher or no fusion method."
        best = max((m for m in fused if m in gains), key=lambda m: fused[m].value)
        gain = gains[best]
        points = _points(gain)
        if gain.low > 0:
            return f"Fusing helps here: {best} gains {points} over the best single teacher."
        if gain.high < 0:
            return f"Fusing does not pay here: even {best} loses to the best single teacher ({points})."
        return f"Not decided here: {best} differs from the best single teacher by {points}."

    def _best_setting(self) -> str:
        best = max(self.balanced_accuracy, key=lambda name: self.balanced_accuracy[name].value)
        sentence = f"Highest balanced accuracy: {best} ({self.balanced_accuracy[best].value:.3f})"
        for reference, gains in self.against.items():
            if best in gains:
                sure = "" if gains[best].low > 0 else "; not decided"
                return f"{sentence}, against {reference} {_points(gains[best])}{sure}."
        return sentence + "."

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        methods = {}
        for name in self.balanced_accuracy:
            means = {m: self.mean(name, m) for m in ("accuracy", "auroc", "calibration_error")}
            ba, f1 = self.balanced_accuracy[name], self.weighted_f1[name]
            methods[name] = {
                "balanced_accuracy": vars(ba), "weighted_f1": vars(f1), **means,
                "seconds": self.seconds(name), "fit_seconds": self.seconds(name, "fit"),
                "score_seconds": self.seconds(name, "score"), "gflops": self.gflops(name),
                "teachers": [[list(teachers), n] for teachers, n in self.teachers_of(name).items()],
            }  # fmt: skip
        return {
            "classes": list(self.classes),
            "teachers": list(self.teachers),
            "n_rows": self.n_rows,
            "n_groups": self.n_groups,
            "repeats": self.repeats,
            "study": self.study,
            "methods": methods,
            "against": {r: {m: vars(i) for m, i in found.items()} for r, found in self.against.items()},
            "failed": self.failed,
            "notes": list(self.notes),
            "conclusion": self.conclusion(),
        }

    def to_pandas(self) -> Any:
        """A DataFrame with one row per cell: split, seed, method, teachers, metrics, seconds, reason.

        Raises ShazamError where pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ShazamError("to_pandas needs pandas: pip install pandas") from None
        return pd.DataFrame([describe(cell) for cell in self.cells])

    def __repr__(self) -> str:
        what = f"study {self.study!r}" if self.study else "methods"
        splits, patches = counted(self.repeats, "split"), counted(self.n_rows, "patch")
        words = f"Comparison({what}: {len(self.balanced_accuracy)} on {splits} of {patches}"
        return f"{words}, tested on {counted(self.n_groups, 'group')}. {self.conclusion()})"

    def _repr_html_(self) -> str:
        """A table for notebooks, best first."""
        ranked = sorted(self.balanced_accuracy.items(), key=lambda entry: -entry[1].value)
        rows = (
            (name, f"{i.value:.3f}", f"{i.low:.3f} to {i.high:.3f}", f"{self.weighted_f1[name].value:.3f}")
            for name, i in ranked
        )
        return summary_html(self.conclusion(), {}, ("method", "balanced accuracy", "95% interval", "weighted F1"), rows)


def make_cell(probabilities: NDArray[np.floating[Any]], classes: tuple[str, ...], fields: Mapping[str, Any]) -> Cell:
    """The cell of a method's test probabilities [n, C]; `fields` has the other fields.

    Metrics are those of the probabilities in float32, as they are stored, so that a table read again gives the same.
    """
    stored = probabilities.astype(np.float32)
    return Cell(**fields, probabilities=stored, metrics=compute_metrics(stored, fields["labels"], classes))


def describe(cell: Cell) -> dict[str, Any]:
    """A cell without its predictions, as one row of a table."""
    metrics = {name: None if cell.metrics is None else float(getattr(cell.metrics, name)) for name in FRACTIONS}
    return {
        "repeat": cell.repeat, "seed": cell.seed, "method": cell.method, "teachers": list(cell.teachers), **metrics,
        "n_test": len(cell.rows), "fit_seconds": cell.fit_seconds, "score_seconds": cell.score_seconds,
        "reason": cell.reason,
    }  # fmt: skip


def encoder_gflops(teachers: Sequence[str]) -> float | None:
    """10^9 operations per patch to run these teachers, 0 for none; None if it is not known of one.

    Levels of a teacher come from one run of it.

    >>> encoder_gflops(["uni_v1", "uni_v1:low"]) == encoder_gflops(["uni"])
    True
    >>> encoder_gflops(["my own encoder"]) is None
    True
    """
    names = {known_as(name) for name in teachers}
    costs = [get_teacher(name).gflops for name in names if name is not None]
    return None if None in names or 0.0 in costs else float(sum(costs))


def summarise(setup: Setup, cells: Sequence[Cell], where: str) -> Comparison:
    """Intervals and paired differences of the cells; a method that failed on a split has none."""
    failed = {cell.method for cell in cells if cell.metrics is None}
    tallies: dict[str, list[Tally]] = {}
    for cell in cells:
        if cell.method not in failed and cell.predicted is not None:
            tallies.setdefault(cell.method, []).append(Tally(cell.labels, cell.predicted, cell.groups))
    if not tallies:
        reasons = "; ".join(sorted({cell.reason for cell in cells}))
        raise MismatchError(f"{where}: no method could run on every split: {reasons}")
    accuracy, f1 = bootstrap_metrics(tallies, len(setup.classes), setup.seed)
    against = {
        reference: simultaneous_intervals({m: accuracy[m] - accuracy[reference] for m in compared})
        for reference, others in setup.references.items()
        if reference in accuracy and (compared := [m for m in others if m in accuracy and m != reference])
    }
    groups = np.unique(np.concatenate([tally.groups for tally in next(iter(tallies.values()))]))
    return Comparison(
        classes=setup.classes,
        teachers=setup.teachers,
        n_rows=setup.n_rows,
        n_groups=len(groups),
        repeats=setup.repeats,
        cells=tuple(cells),
        balanced_accuracy={name: interval(values) for name, values in accuracy.items()},
        weighted_f1={name: interval(values) for name, values in f1.items()},
        against=against,
        study=setup.study,
        notes=setup.notes,
    )


def _points(gain: Interval) -> str:
    points = f"{100 * gain.value:+.1f} points of balanced accuracy, 95% interval {100 * gain.low:+.1f} to "
    return points + f"{100 * gain.high:+.1f}"
