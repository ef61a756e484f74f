"""The picture of survival curves, with the numbers at risk."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...runtime.checks import require_path
from ...runtime.jobs.locks import require_writable
from ...slides.cohort.curves import SurvivalCurve, SurvivalCurves
from .. import canvas
from ..palette import CLASS_COLOURS, INK, MUTED, RULE, hex_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 6.0, 3.6  # inches of the axes
LEFT, TOP, GAP, LINE, EDGE = 1.5, 0.75, 0.62, 0.24, 0.32  # inches
TICKS = 6  # times at which patients at risk are counted


# Over 40 lines with what it documents.
def draw_survival(curves: SurvivalCurves, out: str | Path, *, unit: str = "time") -> Path:
    """Draw Kaplan-Meier curves with their intervals, censored patients, the log-rank test and the numbers at risk.

    Args:
        curves: from `SlideTraining.survival_curves`.
        out: the file, .png, .svg or .pdf.
        unit: words for the horizontal axis, such as "months".

    Returns the file.

    Raises ShazamError when matplotlib is missing, or the file cannot be written.

    >>> import tempfile
    >>> curve = SurvivalCurve("all", 2, 1, [3.0], [0.5], [0.1], [0.8], [2], [1], [5.0])
    >>> draw_survival(SurvivalCurves((curve,), 0.0, 1.0), f"{tempfile.mkdtemp()}/curves.png").name
    'curves.png'
    """
    out = require_path("out", out)
    canvas.require_kind(out)
    require_writable(out.absolute().parent)
    count = len(curves.curves)
    page = canvas.new_page(LEFT + WIDTH + EDGE, TOP + HEIGHT + GAP + (count + 1) * LINE + EDGE, "heatmap")
    axes = canvas.place(page, LEFT, TOP, WIDTH, HEIGHT)
    end = max([t for curve in curves.curves for t in (*curve.times, *curve.censored)], default=1.0)
    ticks = np.linspace(0, end, TICKS).tolist()
    axes.set(xlim=(0, end), ylim=(0, 1.02), xticks=ticks, xticklabels=[f"{tick:.3g}" for tick in ticks])
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelsize=canvas.SMALL)
    axes.grid(color=RULE, lw=0.6)
    axes.set_axisbelow(True)
    colours = hex_colours(CLASS_COLOURS, count)
    keys = [(curve.name, colour) for curve, colour in zip(curves.curves, colours, strict=True)]
    canvas.write_title(axes, "Without the event", keys)
    canvas.write(axes, unit, (1, 0), (0, -28), ha="right", color=MUTED)
    canvas.write(axes, f"log-rank p = {curves.p_value:.2g}", (0, 0), (0, -28), color=INK)
    for curve, colour in zip(curves.curves, colours, strict=True):
        _draw_curve(axes, curve, colour)
    table = canvas.place(page, LEFT, TOP + HEIGHT + GAP, WIDTH, (count + 1) * LINE)
    _write_at_risk(table, curves, colours, ticks)
    out.parent.mkdir(parents=True, exist_ok=True)
    with canvas.missing_glyphs_logged(out):
        canvas.save_figure(page, out)
    return out


def _draw_curve(axes: "Axes", curve: SurvivalCurve, colour: str) -> None:
    last = max([0.0, *curve.times, *curve.censored])
    times = [0.0, *curve.times, last]
    survival, low, high = ([1.0, *values, [1.0, *values][-1]] for values in (curve.survival, curve.low, curve.high))
    axes.fill_between(times, low, high, step="post", color=colour, alpha=0.15, lw=0)
    axes.step(times, survival, where="post", color=colour, lw=1.8)
    at = np.searchsorted(curve.times, curve.censored, side="right")
    axes.plot(curve.censored, np.array([1.0, *curve.survival])[at], "|", color=colour, ms=7, mew=1.2)


def _write_at_risk(table: "Axes", curves: SurvivalCurves, colours: list[str], times: list[float]) -> None:
    """The number of patients at risk at each time, a line per group."""
    table.set_axis_off()
    rows = len(curves.curves) + 1
    canvas.write(table, "at risk", (0, 1 - 0.5 / rows), (-16, 0), ha="right", va="center_baseline", color=MUTED)
    for line, (curve, colour) in enumerate(zip(curves.curves, colours, strict=True), start=1):
        at = 1 - (line + 0.5) / rows
        canvas.write(table, curve.name, (0, at), (-16, 0), ha="right", va="center_baseline", color=colour)
        for time in times:
            cell = f"{curve.at_risk_at(time)}"
            canvas.write(table, cell, (time / times[-1], at), ha="center", va="center_baseline", color=INK)
