"""Sections on how well the student predicts: metrics, confusion, curves, calibration, teacher shares, training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...scoring.intervals import Interval
from .. import charts
from .evidence import FEW_GROUPS, Evidence, Performance, Resampling, calibration
from .page import Beside, Block, Cell, Figure, Section, Table, Text, cells, number, number_columns, span
from .svg import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MOST_BESIDE = 5  # classes of a confusion matrix beside the metrics
MOST_INLINE = 6  # columns of shares with the range beside the mean
SHARES_DIFFER = 0.02  # shares that lie within it of an equal one are called equal


def metrics_section(evidence: Evidence, found: Performance, draws: Resampling) -> Section:
    """Overall metrics, scores by class, confusion matrix."""
    n, classes = len(evidence.labels), evidence.classes
    overall = Table(
        f"Metrics on the {n:,} labelled patches of {evidence.split!r}, with 95% intervals "
        f"{resampled(evidence, draws)}. "
        "Resampling adds noise to the calibration error, so its interval leans upwards.",
        ("metric", "value", "95% interval"),
        [cells((name, number(i.value), span(i.low, i.high))) for name, i in found.overall.items()],
    )
    pair: list[Block] = [overall, _confusion_table(found.confusion, classes)]
    return Section(
        "metrics",
        f"Results on {evidence.split}",
        [*(pair if len(classes) > MOST_BESIDE else [Beside(pair)]), _class_table(evidence, found)],
        _metric_findings(evidence, found, draws),
    )


def resampled(evidence: Evidence, draws: Resampling) -> str:
    """How the intervals were made."""
    return f"from {draws.draws:,} bootstrap samples of {draws.n_groups:,} {evidence.unit}"


def interval_warnings(evidence: Evidence, draws: Resampling) -> list[str]:
    """What makes the intervals unreliable."""
    found = []
    if evidence.unit == "patches":
        found.append(
            "No patient and no slide is known for some patches, so these were resampled one by one. Patches of one "
            "patient resemble one another: the intervals are too narrow. Give the patients with groups= (--groups)."
        )
    if draws.n_groups < 2:
        found.append(f"All patches are of one of the {evidence.unit}: no interval can be given.")
    elif draws.n_groups < FEW_GROUPS:
        found.append(
            f"The split has only {draws.n_groups} {evidence.unit}: intervals from so few are too narrow to be relied "
            "on."
        )
    return found


def _with_interval(i: Interval) -> Cell:
    return Cell(number(i.value), small=span(i.low, i.high, 2))


def _class_table(evidence: Evidence, found: Performance) -> Table:
    counts = np.bincount(evidence.labels, minlength=len(evidence.classes))
    groups = [len(np.unique(evidence.groups[evidence.labels == c])) for c in range(len(evidence.classes))]
    rows = [
        [Cell(name), Cell(f"{counts[c]:,}"), Cell(f"{groups[c]:,}"), *map(_with_interval, found.by_class[c].values())]
        for c, name in enumerate(evidence.classes)
    ]
    return Table(
        "Scores by class, with 95% intervals. Recall is the sensitivity for the class, precision its positive "
        "predictive value at this split's class frequencies. AUROC: the class against all others.",
        ("class", "patches", evidence.unit if evidence.unit != "patches" else "units", *found.by_class[0]),
        rows,
    )


def _confusion_table(confusion: Any, classes: Sequence[str]) -> Table:
    totals = confusion.sum(axis=1)
    names, headings = number_columns(classes)
    rows = []
    for c, name in enumerate(names):
        part = confusion[c] / totals[c] if totals[c] else np.zeros(len(classes))
        entries = [
            Cell(f"{n:,}", float(p), f"{100 * p:.0f}%" if n else "") for n, p in zip(confusion[c], part, strict=True)
        ]
        rows.append([Cell(name), *entries, Cell(f"{totals[c]:,}")])
    return Table(
        "Confusion matrix: patches of each true class (row) by predicted class (column), in number and in percent of "
        "the true class.",
        ("true class", *headings, "n"),
        rows,
        corner="predicted class",
        style="grid",
    )


def _metric_findings(evidence: Evidence, found: Performance, draws: Resampling) -> list[str]:
    accuracy, classes = found.overall["balanced accuracy"], evidence.classes
    said = [
        f"On {len(evidence.labels):,} patches of {draws.n_groups:,} {evidence.unit} in {evidence.split!r} the balanced "
        f"accuracy is {in_words(accuracy)}, the AUROC {in_words(found.overall['AUROC'])}. Guessing gives "
        f"{1 / _classes_present(found):.2f} and 0.50. The intervals cover the choice of {evidence.unit} for this "
        "split, "
        "not another split or another training."
    ]
    recall = [i["recall"].value for i in found.by_class]
    worst = int(np.nanargmin(recall))
    wrong = found.confusion[worst].copy()
    wrong[worst] = 0
    if wrong.sum():
        taken = int(wrong.argmax())
        said.append(
            f"The class {classes[worst]} is found least often: recall {in_words(found.by_class[worst]['recall'])}; "
            f"{wrong[taken]:,}"
            f" of its {found.confusion[worst].sum():,} patches are taken for {classes[taken]}."
        )
    return said


def _classes_present(found: Performance) -> int:
    return int((found.confusion.sum(axis=1) > 0).sum())


def in_words(i: Interval, digits: int = 2) -> str:
    """An estimate with its interval, as a part of a sentence."""
    limits = span(i.low, i.high, digits)
    return f"{i.value:.{digits}f}" + (f" (95% interval {limits})" if limits else " (no interval)")


def draw_calibration(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], draws: Resampling
) -> tuple[list["Drawing"], Interval]:
    """Reliability with intervals, how often each confidence occurs, and the expected calibration error.

    Args:
        probabilities: [n, C].
        labels: int64 [n], all known.
        draws: of the n patches.
    """
    found = calibration(probabilities, labels, draws)
    limits = [draws.interval(found.accuracy[:, b]) for b in np.flatnonzero(found.count[0] > 0)]
    drawn = charts.draw_reliability(found.confidence[0], found.accuracy[0], found.count[0], limits)
    return drawn, draws.interval(found.error)


def curves_section(evidence: Evidence, draws: Resampling) -> Section | str:
    """ROC, precision-recall and reliability; or why not."""
    if len(np.unique(evidence.labels)) < 2:
        return "all labelled patches of the split have the same class"
    n = len(evidence.labels)
    curves = charts.draw_curves(evidence.probabilities, evidence.labels, evidence.classes)
    roc, recall = map(to_svg, curves, ("roc", "precision-recall"))
    bins, error = draw_calibration(evidence.probabilities, evidence.labels, draws)
    reliability, bars = map(to_svg, bins, ("reliability", "confidence"))
    sure = float(evidence.probabilities.max(axis=1).mean())
    right = float((evidence.prediction == evidence.labels).mean())
    positive = "" if len(evidence.classes) > 2 else f" Positive class: {evidence.classes[1]}."
    more = "" if len(evidence.classes) <= charts.MOST_CURVES else f" The {charts.MOST_CURVES} most frequent classes."
    figures = [
        Figure(roc, f"ROC curves, each class against the rest; n = {n:,} patches. Dashed: guessing.{positive}{more}"),
        Figure(recall, f"Precision and recall, each class against the rest. Dotted: the class's frequency.{more}"),
        Figure(
            reliability,
            "Reliability: how often predictions of a given probability are right. Below the dashed line the student is "
            f"too sure, above it not sure enough. Area of a point: its patches; bars: 95% intervals. Expected "
            f"calibration error {in_words(error, 3)}.",
        ),
        Figure(bars, f"How often each probability of the predicted class occurs; n = {n:,} patches."),
    ]  # fmt: skip
    gap = 100 * (sure - right)
    trend = "high" if gap > 0 else "low"
    finding = (
        f"The student gives its predictions a probability of {100 * sure:.0f}% on average, and {100 * right:.0f}% are "
        f"right: its probabilities are on average {abs(gap):.1f} points too {trend}. Expected calibration error: "
        f"{in_words(error)}."
    )
    return Section("curves", "Discrimination and calibration", [Beside(figures)], [finding])


def shares_section(evidence: Evidence) -> Section | str:
    """Mean attention share of each teacher by class; or why not."""
    shares, classes, teachers = evidence.shares, evidence.classes, list(evidence.student.config.teachers)
    if shares is None:
        return f"a student with block={evidence.student.config.block!r} has no exact attention shares"
    if len(teachers) < 2:
        return "the student has one teacher, whose share is always 1"
    labelled = bool((evidence.labels >= 0).all())
    codes = evidence.labels if labelled else evidence.prediction
    names, headings = number_columns(classes)
    whole = np.ones(len(codes), dtype=np.bool_)
    chosen = [("all", whole), *((heading, codes == c) for c, heading in enumerate(headings) if (codes == c).any())]
    columns = [_share_cells(shares[where]) for _, where in chosen]
    rows = [[Cell(name), *(column[t] for column in columns)] for t, name in enumerate(teachers)]
    most, equal = float(shares.mean(axis=0).max()), 1 / len(teachers)
    legend = f" Classes: {', '.join(names)}." if headings != list(classes) else ""
    table = Table(
        f"Mean attention share of each teacher in the fused feature, by {'true' if labelled else 'predicted'} class, "
        f"and the range from the 10th to the 90th percentile of patches. Equal shares would be {equal:.3f}.{legend}",
        ("teacher", *(f"{name}, n = {where.sum():,}" for name, where in chosen)),
        rows,
        style="grid stacked" if len(chosen) > MOST_INLINE else "grid",
    )
    caution = Text(
        "A share is the exact part of a teacher's feature in the fused feature. It does not measure how useful the "
        "teacher is: a teacher of pure noise can have a large share.",
    )
    finding = (
        f"The attention shares of the {len(teachers)} teachers are nearly equal"
        if most - equal < SHARES_DIFFER
        else f"The largest mean attention share, {most:.2f}, is that of {teachers[int(shares.mean(axis=0).argmax())]}"
    )
    return Section(
        "shares", "Teacher shares", [caution, table], [f"{finding}; a share does not measure usefulness."]
    )  # fmt: skip


def _share_cells(shares: NDArray[np.float32]) -> list[Cell]:
    """Mean and range of each teacher's shares [n, N]."""
    low, high = np.quantile(shares, [0.1, 0.9], axis=0).tolist()
    mean = shares.mean(axis=0).tolist()
    return [Cell(number(m), m, span(one, other, 2)) for m, one, other in zip(mean, low, high, strict=True)]


def training_section(record: Mapping[str, Any]) -> Section | str:
    """Curves of the training; or why not."""
    if "members" in record:
        return "the student is an ensemble, each of whose members was trained"
    history = record.get("history")
    if not isinstance(history, list) or not history or not all(isinstance(h, dict) and "epoch" in h for h in history):
        return "the student keeps no record of its training"
    best = max(range(len(history)), key=lambda place: (history[place].get("val_score", 0.0), -place))
    losses, metrics = charts.draw_training(history, best)
    chosen = f"Dashed: epoch {history[best]['epoch'] + 1}, which was chosen on the validation split"
    figures = [
        Figure(to_svg(losses, "training-0"), f"Losses by epoch, {len(history)} epochs. {chosen}."),
        Figure(
            to_svg(metrics, "training-1"),
            f"Metrics on the validation split by epoch. {chosen} by 0.8 balanced accuracy + 0.2 weighted F1.",
        ),
    ]
    finding = []
    if best == len(history) - 1 and len(history) > 1:
        finding = ["The last epoch of the training was the best: longer training may give a better student."]
    return Section("training", "Training", [Beside(figures)], finding)
