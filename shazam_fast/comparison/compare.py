"""Comparison of fusion methods on one archive: does fusing help, by how much, and how sure is that?"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..annotation.splits import GroupedSplit
from ..archive.archive import FeatureArchive
from ..archive.opening import ArchiveLike, open_archive
from ..errors import MismatchError, ShazamError
from ..runtime.progress import Progress
from ..scoring.metrics import Metrics, compute_metrics
from .fold import Fold
from .intervals import Interval, Tally, bootstrap_metrics, interval, simultaneous_intervals
from .methods import CONCATENATION, METHODS, SINGLE_TEACHER, Bench, require_methods

logger = logging.getLogger("shazam_fast")


@dataclass(frozen=True)
class Cell:
    """One method on one split: its test metrics, test predictions [n] and seconds; or why it could not run."""

    repeat: int
    method: str
    metrics: Metrics | None
    predicted: NDArray[np.int64] | None
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    `cells` has every method on every split. `balanced_accuracy` and `weighted_f1` map a method to its mean over the
    splits with a 95% interval by bootstrap over groups; `against` maps a reference method to the paired differences in
    balanced accuracy of all others, with intervals that hold together (corrected for the number of methods).
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

    def mean(self, method: str, metric: str) -> float:
        """Mean over the splits of a metric's name in `Metrics`; NaN for a method that never ran."""
        values = [getattr(c.metrics, metric) for c in self.cells if c.method == method and c.metrics is not None]
        return float(np.mean(values)) if values else float("nan")

    def seconds(self, method: str) -> float:
        """Mean seconds to fit the method and predict val and test, on one split."""
        return float(np.mean([cell.seconds for cell in self.cells if cell.method == method]))

    @property
    def failed(self) -> dict[str, str]:
        """Methods that could not run on some split, with the first reason."""
        found: dict[str, str] = {}
        for cell in self.cells:
            if cell.metrics is None:
                found.setdefault(cell.method, cell.reason)
        return found

    def conclusion(self) -> str:
        """One sentence: what fusing gains over the best single teacher, with its interval."""
        fused = {m: i for m, i in self.balanced_accuracy.items() if not m.startswith("best_single")}
        gains = self.against.get(SINGLE_TEACHER, {})
        if not fused or not gains:
            return "Nothing to conclude: the comparison has no single teacher or no fusion method."
        best = max((m for m in fused if m in gains), key=lambda m: fused[m].value)
        gain = gains[best]
        points = f"{100 * gain.value:+.1f} points of balanced accuracy, 95% interval {100 * gain.low:+.1f} to "
        points += f"{100 * gain.high:+.1f}"
        if gain.low > 0:
            return f"Fusing helps here: {best} gains {points} over the best single teacher."
        if gain.high < 0:
            return f"Fusing does not pay here: even {best} loses to the best single teacher ({points})."
        return f"Not decided here: {best} differs from the best single teacher by {points}."

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        methods = {}
        for name in self.balanced_accuracy:
            means = {m: self.mean(name, m) for m in ("accuracy", "auroc", "calibration_error")}
            ba, f1 = self.balanced_accuracy[name], self.weighted_f1[name]
            methods[name] = {"balanced_accuracy": vars(ba), "weighted_f1": vars(f1), **means}
            methods[name]["seconds"] = self.seconds(name)
        return {
            "classes": list(self.classes),
            "teachers": list(self.teachers),
            "n_rows": self.n_rows,
            "n_groups": self.n_groups,
            "repeats": self.repeats,
            "methods": methods,
            "against": {r: {m: vars(i) for m, i in found.items()} for r, found in self.against.items()},
            "failed": self.failed,
            "conclusion": self.conclusion(),
        }


# Over 40 lines: every option is documented here.
def compare(
    archive: ArchiveLike,
    methods: Sequence[str] | None = None,
    *,
    repeats: int = 10,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    own_splits: bool = False,
) -> Comparison:
    """Fit fusion methods and baselines on the same splits and compare them on the test parts.

    Args:
        archive: an archive or its path, with labels; groups (patients) where they are known.
        methods: names in `METHODS`; all by default. A method that cannot run is reported, the others go on.
        repeats: number of random splits that keep groups whole and classes in proportion.
        val, test: shares of the labelled patches.
        seed: of the splits (seed, seed + 1, ...), of the methods and of the bootstrap.
        own_splits: take the archive's own train, val and test instead; `repeats` then changes the methods' seed alone.

    Returns:
        A `Comparison`: metrics with intervals, paired differences to the best single teacher (chosen on val) and to
        logistic regression on the concatenation.

    Raises:
        MismatchError: no labels, an empty split, too few groups.
        ShazamError: an unknown method, or `repeats` below 1.

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> labels = np.arange(80) % 2
    >>> features = {t: np.random.default_rng(0).normal(size=(80, 4)) + labels[:, None] for t in ("uni", "gigapath")}
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/patches", features, labels=labels)
    >>> found = sf.compare(path, ["best_single_balanced", "lr_concat_balanced"], repeats=2)
    >>> sorted(found.balanced_accuracy)
    ['best_single_balanced', 'lr_concat_balanced']
    """
    opened = open_archive(archive)
    names = tuple(METHODS) if methods is None else tuple(methods)
    require_methods(names)
    if repeats < 1:
        raise ShazamError(f"repeats: at least 1 expected, found {repeats}")
    cells: list[Cell] = []
    tallies: dict[str, list[Tally]] = {name: [] for name in names}
    with Progress("comparing", repeats * len(names), "fits") as progress:
        for repeat in range(repeats):
            fold = Fold(opened if own_splits else _resplit(opened, val, test, seed + repeat), seed + repeat)
            bench = Bench(fold)
            for name in names:
                cell = _run(bench, repeat, name)
                cells.append(cell)
                if cell.predicted is not None:
                    tallies[name].append(Tally(fold.labels("test"), cell.predicted, fold.groups("test")))
                progress.advance(1, name)
    return summarise(opened, repeats, cells, tallies, seed)


def summarise(
    archive: FeatureArchive, repeats: int, cells: Sequence[Cell], tallies: Mapping[str, Sequence[Tally]], seed: int
) -> Comparison:
    """Intervals and paired differences of the cells; a method that failed on a split has none."""
    whole = {name: found for name, found in tallies.items() if len(found) == repeats}
    if not whole:
        reasons = "; ".join(sorted({cell.reason for cell in cells}))
        raise MismatchError(f"{archive.path}: no method could run on every split: {reasons}")
    accuracy, f1 = bootstrap_metrics(whole, len(archive.classes), seed)
    against = {
        reference: simultaneous_intervals(
            {name: values - accuracy[reference] for name, values in accuracy.items() if name != reference}
        )
        for reference in (SINGLE_TEACHER, CONCATENATION)
        if reference in accuracy and len(accuracy) > 1
    }
    groups = np.unique(np.concatenate([tally.groups for tally in next(iter(whole.values()))]))
    return Comparison(
        classes=archive.classes,
        teachers=tuple(archive.teachers),
        n_rows=int((archive.labels >= 0).sum()),
        n_groups=len(groups),
        repeats=repeats,
        cells=tuple(cells),
        balanced_accuracy={name: interval(values) for name, values in accuracy.items()},
        weighted_f1={name: interval(values) for name, values in f1.items()},
        against=against,
    )


def _run(bench: Bench, repeat: int, name: str) -> Cell:
    """Fit one method; a user's error becomes the reason why it has no result."""
    started = time.perf_counter()
    try:
        probabilities = METHODS[name](bench)["test"]
    except ShazamError as error:
        logger.warning("%s: %s", name, error)
        return Cell(repeat, name, None, None, time.perf_counter() - started, str(error))
    seconds = time.perf_counter() - started
    metrics = compute_metrics(probabilities, bench.fold.labels("test"), bench.fold.archive.classes)
    return Cell(repeat, name, metrics, probabilities.argmax(axis=1), seconds)


def _resplit(archive: FeatureArchive, val: float, test: float, seed: int) -> FeatureArchive:
    """The archive with a random split of its labelled rows."""
    wanted = GroupedSplit(val, test, seed)
    return archive.with_splits(
        wanted.assign(archive.labels, archive.group_index, archive.slide_index, str(archive.path))
    )
