"""Tables of metrics of whole slides."""

from typing import TYPE_CHECKING

from ...runtime.summaries import counted
from ...slides.options import SELECTED
from ..printing import print_table, say

if TYPE_CHECKING:
    from ...slides.cohort.metrics import SlideMetrics
    from ...slides.comparing import SlideComparison


def print_slide_comparison(found: "SlideComparison") -> None:
    """Print a line per metric and model: value, interval, difference to the reference with its interval."""
    lines = [
        (
            row["metric"], row["model"], f"{row['value']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}" if "low" in row else "",
            f"{row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f})"
            if row.get("difference") is not None else "",
        )
        for row in found.rows()
    ]  # fmt: skip
    metrics = next(iter(found.results.values())).metrics
    title = f"{_bags(metrics)}, the same folds"
    print_table(["metric", "model", "value", "95% interval", f"against {found.reference}"], lines, title)
    if metrics.selected_on_reported:
        say(SELECTED)


def print_slide_metrics(metrics: "SlideMetrics") -> None:
    """Print each metric with its interval, beside the constant predictor's."""
    rows = [
        (name, f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}", f"{metrics.constant[name]:.3f}")
        for name, found in metrics.values.items()
    ]
    print_table(["metric", "value", "95% interval", "constant predictor"], rows, _bags(metrics))
    if metrics.selected_on_reported:
        say(SELECTED)


def _bags(metrics: "SlideMetrics") -> str:
    return f"{counted(metrics.n_slides, 'bag')} (slides or patients) of {counted(metrics.n_patients, 'patient')}"
