"""One function that draws what a person looks at: `shazam_fast.plot`, which every `.plot()` calls.

The objects lie in rooms that know nothing of pictures; this one knows them all.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..comparison.methods import CONCATENATION, SINGLE_TEACHER
from ..comparison.result import Comparison
from ..errors import ShazamError
from ..runtime.checks import require_path
from ..scoring.metrics import Metrics, reliability
from ..training.train import TrainResult
from . import charts
from .canvas import missing_glyphs_logged, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_PREDICTIONS = ("roc", "precision-recall", "reliability", "confidence")  # kinds that need probabilities and labels


def plot(what: TrainResult | Metrics | Comparison, kind: str | None = None, out: str | Path | None = None) -> "Figure":
    """Draw a training, metrics or a comparison, and write the picture where `out` says.

    Args:
        what: a result of `train`: kinds "losses" (the default) and "validation", by epoch. Metrics of `evaluate`:
            "confusion" (the default), "roc", "precision-recall", "reliability" and "confidence". A result of
            `compare`: "methods".
        kind: which picture.
        out: a file that ends in .png, .svg or .pdf; none is written by default.

    Returns the picture, a matplotlib Figure.

    Raises ShazamError when there is nothing to draw, no such kind, no matplotlib, or the file cannot be written.

    >>> import numpy as np, shazam_fast as sf
    >>> metrics = sf.Metrics(4, ("normal", "tumour"), 0.75, 0.73, 0.75, 0.9, 0.1, np.array([[1, 1], [0, 2]]))
    >>> sf.plot(metrics).axes[0].get_xlabel()
    'predicted class'
    """
    kinds = _kinds(what)
    chosen = next(iter(kinds)) if kind is None else kind
    if chosen not in kinds:
        raise ShazamError(f"plot: {type(what).__name__} has the kinds {', '.join(kinds)}; found {kind!r}")
    figure = kinds[chosen]()
    if out is not None:
        path = require_path("out", out)
        with missing_glyphs_logged(path):
            save_figure(figure, path)
    return figure


def _kinds(what: object) -> Mapping[str, Callable[[], "Figure"]]:
    """The pictures that there are of an object, the usual one first."""
    if isinstance(what, Metrics):
        confusion = {"confusion": partial(charts.draw_confusion, what.confusion, what.classes)}
        return {**confusion, **{kind: partial(_predictions, what, kind) for kind in OF_PREDICTIONS}}
    if isinstance(what, TrainResult):
        return {kind: partial(_training, what, place) for place, kind in enumerate(("losses", "validation"))}
    if isinstance(what, Comparison):
        return {"methods": partial(_methods, what)}
    raise ShazamError(
        f"plot: a result of train, evaluate or compare expected, found {type(what).__name__}; heatmap draws scores"
    )


def _predictions(metrics: Metrics, kind: str) -> "Figure":
    if metrics.probabilities is None or metrics.labels is None:
        raise ShazamError(
            f"plot: these metrics were read from a file and hold no predictions, which {kind!r} needs; make them anew "
            "with evaluate(student, archive)"
        )
    if kind in ("reliability", "confidence"):
        confidence, accuracy, count = reliability(metrics.probabilities, metrics.labels)
        return charts.draw_reliability(confidence, accuracy, count)[kind == "confidence"]
    if len(np.unique(metrics.labels)) < 2:
        raise ShazamError(f"plot: {kind!r} needs two classes among the labels, found one")
    return charts.draw_curves(metrics.probabilities, metrics.labels, metrics.classes)[kind != "roc"]


def _training(result: TrainResult, place: int) -> "Figure":
    history = result.history
    if not history:
        raise ShazamError("plot: the result has no history")
    scores = [record.get("val_score", 0.0) for record in history]
    kept = result.student.training_record.get("job", {}).get("selection", "best")
    best = len(history) - 1 if kept == "last" else scores.index(max(scores))
    return charts.draw_training(history, best)[place]


def _methods(found: Comparison) -> "Figure":
    reference = next((name for name in (SINGLE_TEACHER, CONCATENATION, *found.against) if name in found.against), "")
    methods = sorted(found.balanced_accuracy, key=lambda name: -found.balanced_accuracy[name].value)
    gains: Mapping[str, Any] = found.against.get(reference, {})
    values = [found.balanced_accuracy[name] for name in methods]
    return charts.draw_comparison(methods, values, [gains.get(name) for name in methods], reference)
