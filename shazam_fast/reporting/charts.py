"""Charts of metrics, trainings and comparisons, for files and for the report.

All have one of two widths and the same type, so that they line up.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..scoring.intervals import Interval
from ..scoring.metrics import CALIBRATION_BINS
from .canvas import new_page, shorten
from .palette import CLASS_COLOURS, INK, MUTED, RULE, hex_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HALF, WIDE = 5.1, 10.6  # widths in inches
HEIGHT = 3.5  # of a figure of half width
TYPE, SMALL = 9.0, 8.0  # points
ACCENT, OTHER, GREY = CLASS_COLOURS[0], CLASS_COLOURS[5], "#8c8c8c"
ROW = 0.27  # inches per method
CELL, NAMES = 0.52, 1.75  # inches: a cell of a confusion matrix, room for the names of its classes
MOST_NUMBERED = 15  # classes of a confusion matrix whose cells have numbers
MOST_CURVES = len(CLASS_COLOURS)  # classes with a curve of their own

Array = NDArray[np.float64]


def draw_curves(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], classes: Sequence[str]
) -> list["Figure"]:
    """ROC curves and precision-recall curves of every class against the rest; two figures."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    shown = _classes_shown(labels, len(classes))
    colours = hex_colours(CLASS_COLOURS, len(classes))
    roc, recall = _axes(HALF, HEIGHT), _axes(HALF, HEIGHT)
    keys: dict[Axes, list[tuple[Any, str]]] = {roc: [], recall: []}
    roc.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (4, 3)))
    for c in shown:
        truth, scores = labels == c, probabilities[:, c]
        style = {"color": colours[c], "lw": 1.6}
        if len(classes) > 2 or c == 1:  # of two classes one curve mirrors the other
            wrong, right, _ = roc_curve(truth, scores)
            keys[roc].append((roc.step(wrong, right, where="post", **style)[0], classes[c]))
        precision, found, _ = precision_recall_curve(truth, scores)
        keys[recall].append((recall.step(found, precision, where="post", **style)[0], classes[c]))
        recall.plot([0, 1], [truth.mean()] * 2, color=colours[c], lw=0.8, ls=(0, (1, 2)))
    labels_of = ((roc, "1 \u2212 specificity", "sensitivity (recall)"), (recall, "recall (sensitivity)", "precision"))
    for axes, x, y in labels_of:
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xlabel=x, ylabel=y)
        _legend(axes, "lower right" if axes is roc else "lower left", keys[axes])
    return [_figure(roc), _figure(recall)]


def draw_reliability(
    confidence: Array, accuracy: Array, count: NDArray[Any], limits: Sequence[Interval] | None = None
) -> list["Figure"]:
    """Accuracy against confidence, and how often each confidence occurs; two figures.

    Args:
        confidence, accuracy, count: means, and number of predictions, of each bin of confidence; [bins].
        limits: intervals of the accuracy of the bins that have predictions; None: none are drawn.
    """
    used = np.flatnonzero(count > 0)
    x, y, n = confidence[used], accuracy[used], count[used]
    axes = _axes(HALF, HEIGHT)
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (4, 3)))
    if limits is not None:
        axes.vlines(x, [i.low for i in limits], [i.high for i in limits], color=ACCENT, lw=1.2, alpha=0.55)
    axes.scatter(x, y, s=14 + 90 * n / n.max(), color=ACCENT, edgecolor="white", lw=0.8, zorder=3)
    low = max(0.0, min(float(x.min()), float(y.min())) - 0.05)
    axes.set(xlim=(low, 1.01), ylim=(low - 0.01, 1.02), xlabel="mean probability of the predicted class",
             ylabel="fraction that is right")  # fmt: skip
    bars = _axes(HALF, HEIGHT)
    centres = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS
    bars.bar(centres, count, width=0.92 / CALIBRATION_BINS, color=ACCENT)
    bars.set(xlim=(low, 1.01), xlabel="probability of the predicted class", ylabel="patches")
    _whole(bars.yaxis)
    return [_figure(axes), _figure(bars)]


def draw_training(history: Sequence[Mapping[str, Any]], best: int) -> list["Figure"]:
    """Training losses, and metrics on the validation split, by epoch; `best` is the place of the chosen epoch."""
    series = (
        {"loss": "training loss (total)", "cross_entropy": "training cross-entropy", "val_loss": "validation loss"},
        {"val_balanced_accuracy": "balanced accuracy", "val_weighted_f1": "weighted F1"},
    )
    figures = []
    epochs = [record["epoch"] + 1 for record in history]
    for index, names in enumerate(series):
        axes = _axes(HALF, HEIGHT)
        axes.axvline(epochs[best], color=GREY, lw=0.8, ls=(0, (4, 3)))
        keys: list[tuple[Any, str]] = []
        for (key, label), colour in zip(names.items(), (ACCENT, OTHER, CLASS_COLOURS[2]), strict=False):
            if all(isinstance(record.get(key), int | float) for record in history):
                marker = "o" if len(history) == 1 else None
                values = [record[key] for record in history]
                keys.append((axes.plot(epochs, values, color=colour, lw=1.5, marker=marker)[0], label))
        axes.set(xlabel="epoch", ylabel=("loss", "on the validation split")[index])
        _whole(axes.xaxis)
        _legend(axes, "best", keys)
        figures.append(_figure(axes))
    return figures


def draw_comparison(
    methods: Sequence[str], values: Sequence[Interval], gains: Sequence[Interval | None], reference: str
) -> "Figure":
    """A row per method: its balanced accuracy, and its difference to a reference, with intervals."""
    height = 0.6 + ROW * len(methods)
    figure = new_page(WIDE, height, "report")
    panels = [
        figure.add_axes((left / WIDE, 0.5 / height, 3.75 / WIDE, ROW * len(methods) / height)) for left in (2.6, 6.65)
    ]
    places = range(len(methods))
    for axes, found in zip(panels, (values, gains), strict=True):
        _style(axes)
        axes.spines["left"].set_visible(False)
        axes.set(ylim=(len(methods) - 0.5, -0.5), yticks=[])
        axes.locator_params(axis="x", nbins=6)
        axes.hlines(places, 0, 1, transform=axes.get_yaxis_transform(), color=RULE, lw=0.6, zorder=0)
        for place, one in zip(places, found, strict=True):
            if one is None:
                continue
            colour = ACCENT if methods[place].startswith("shazam") else INK
            axes.plot([one.low, one.high], [place] * 2, color=colour, lw=1.3, solid_capstyle="butt")
            axes.plot(one.value, place, "o", color=colour, ms=5)
    for place, name in enumerate(methods):
        _write(panels[0], shorten(name, 30), (-0.03, place), ha="right", va="center", transform=_across(panels[0]))
    panels[1].axvline(0, color=GREY, lw=0.8, ls=(0, (4, 3)))
    panels[0].set_xlabel("balanced accuracy")
    panels[1].set_xlabel(f"difference to {reference}", parse_math=False)
    return figure


def draw_confusion(confusion: NDArray[np.int64], classes: Sequence[str]) -> "Figure":
    """Counts of true class (row) and predicted class (column), coloured by the fraction of the true class.

    Args:
        confusion: int64 [C, C].
        classes: names of the C classes.
    """
    C = len(classes)
    side = max(2.4, CELL * C)
    figure = new_page(NAMES + side + 0.3, NAMES + side + 0.3, "report")
    width, height = figure.get_size_inches()
    axes = figure.add_axes((NAMES / width, NAMES / height, side / width, side / height))
    _style(axes)
    axes.spines[:].set_visible(False)
    total = confusion.sum(axis=1, keepdims=True)
    fraction = confusion / np.maximum(total, 1)
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    names = [shorten(name, 22) for name in classes]
    axes.set_xticks(range(C), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(C), names, parse_math=False)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    if C <= MOST_NUMBERED:
        for row, column in np.argwhere(total * np.ones(C, int) > 0).tolist():
            style: dict[str, Any] = {
                "color": "white" if fraction[row, column] > 0.55 else INK,
                "ha": "center",
                "va": "center",
            }
            axes.text(column, row, f"{confusion[row, column]:,}\n{fraction[row, column]:.0%}", fontsize=SMALL, **style)
    return figure


def _figure(axes: "Axes") -> "Figure":
    return axes.get_figure(root=True)  # type: ignore[return-value]  # these axes have one


def _axes(width: float, height: float) -> "Axes":
    figure = new_page(width, height, "report")
    axes = figure.add_axes((0.6 / width, 0.45 / height, 1 - 0.68 / width, 1 - 0.52 / height))
    _style(axes)
    axes.grid(color=RULE, lw=0.6)
    return axes


def _style(axes: "Axes") -> None:
    axes.set_facecolor("none")
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=MUTED, linewidth=0.8)
    axes.tick_params(labelsize=SMALL, color=MUTED, labelcolor=INK, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(fontsize=TYPE, color=INK)


def _legend(axes: "Axes", place: str, keys: Sequence[tuple[Any, str]]) -> None:
    """Names of lines; any text is a name, with "$" or "_" in it too."""
    if len(keys) < 2:
        return
    lines = [line for line, _ in keys]
    legend = axes.legend(
        lines, ["-"] * len(keys), loc=place, fontsize=SMALL, framealpha=0.85, edgecolor="none", handlelength=1.4
    )
    for text, (_, name) in zip(legend.get_texts(), keys, strict=True):
        text.set_parse_math(False)
        text.set_text(shorten(name))


def _write(axes: "Axes", text: str, at: tuple[float, float], **style: Any) -> None:
    axes.text(*at, text, fontsize=TYPE, color=INK, parse_math=False, **style)


def _across(axes: "Axes") -> Any:
    """Coordinates: x in fractions of the axes, y as in the data."""
    return axes.get_yaxis_transform()


def _whole(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, integer=True))


def _classes_shown(labels: NDArray[np.int64], C: int) -> list[int]:
    """Classes that have patches and leave patches to others, the most frequent where there are too many."""
    counts = np.bincount(labels, minlength=C)
    usable = [c for c in range(C) if 0 < counts[c] < len(labels)]
    return sorted(sorted(usable, key=lambda c: -counts[c])[:MOST_CURVES])
