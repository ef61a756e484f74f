"""Several models under the same folds, in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from ..archive.opening import ArchiveLike
from ..errors import ShazamError
from ..runtime.checks import require_choice, require_path
from ..runtime.files import write_durably, writing
from ..runtime.jobs.locks import require_writable
from ..scoring.intervals import Interval, simultaneous_intervals
from .cohort.requests import Request, Source
from .crossvalidation import SlideTraining, run_work
from .options import COMPARED, MODELS
from .selecting.selection import SelectionLike
from .slide_teachers.reading import SlideTeachersLike
from .work import plan_work

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "shazam_fast slide comparison"
SUMMARY = "slide-comparison.json"
CONSTANT = "constant"  # the predictor that knows the training folds' frequencies or means alone


@dataclass(frozen=True)
class SlideComparison:
    """Models that were trained and tested on the same folds.

    Attributes:
        results: model -> its training.
        reference: the model that the others are compared with.
        differences: metric -> {model: paired difference to the reference}, with 95% intervals that hold together for
            all models (corrected for their number).

    >>> SlideComparison.__dataclass_fields__.keys() >= {"results", "reference", "differences"}
    True
    """

    results: Mapping[str, SlideTraining]
    reference: str
    differences: Mapping[str, Mapping[str, Interval]]

    def rows(self) -> list[dict[str, Any]]:
        """One row per metric and model, and per metric one for the constant predictor.

        Columns: metric, model, value, low, high, difference, difference_low, difference_high (None: there is none).
        """
        found = []
        for metric, constant in next(iter(self.results.values())).metrics.constant.items():
            for model, result in self.results.items():
                value = asdict(result.metrics.values[metric])
                gain = self.differences[metric].get(model)
                limits = (None, None, None) if gain is None else (gain.value, gain.low, gain.high)
                names = ("difference", "difference_low", "difference_high")
                found.append({"metric": metric, "model": model, **value, **dict(zip(names, limits, strict=True))})
            found.append({"metric": metric, "model": CONSTANT, "value": constant})
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return {
            "reference": self.reference,
            "selected_on_reported": next(iter(self.results.values())).metrics.selected_on_reported,
            "table": self.rows(),
            "models": {model: result.to_dict() for model, result in self.results.items()},
        }

    def to_pandas(self) -> "pd.DataFrame":
        """The table of `rows` as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows())


# Over 40 lines: every option is documented here.
def crossvalidate(
    archive: ArchiveLike,
    targets: Request | Source,
    *,
    models: Sequence[str] = COMPARED,
    folds: int | str = 5,
    by: str = "slide",
    loss: str = "nll",
    sites: str | None = None,
    protocol: str = "held_out",
    selection: SelectionLike = None,
    slide_teachers: SlideTeachersLike | None = None,
    out: str | Path | None = None,
    device: str | None = None,
    **options: Any,
) -> SlideComparison:
    """Train several models of slides on the same folds, and compare them with one another and a constant predictor.

    Args:
        archive, targets: as for `sf.slides.train`.
        models: names of models, two or more; the first is the reference of the differences.
        folds, by, loss, sites, protocol, selection, slide_teachers, device: as for `sf.slides.train`.
        out: directory for one student per model, and `slide-comparison.json` with the table. After an
            interruption, run the same call again.
        options: as for `sf.slides.train`, the same for all models.

    Returns the trainings and their table.

    Raises what `sf.slides.train` raises, and ShazamError when fewer than two models are given, or one twice.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> labels = {f"s{i}": "lusc" if i % 2 else "luad" for i in range(12)}
    >>> slides = np.repeat(list(labels), 4)
    >>> features = {"uni": np.random.default_rng(0).normal(size=(48, 8)) + (slides[:, None] > "s5")}
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", features, slides=slides)
    >>> found = crossvalidate(path, labels, models=["mean", "max"], folds=3, epochs=2, dim=8, device="cpu")
    >>> found.reference, sorted(found.differences["auroc"])
    ('mean', ['max'])
    """
    given = [models] if isinstance(models, str) else list(models)
    names = [require_choice("models", model, MODELS) for model in given]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ShazamError(f"models: two or more different models expected, found {names}")
    folder = None if out is None else require_path("out", out)
    if folder is not None:
        require_writable(folder)
    first = plan_work(
        archive, targets, model=names[0], folds=folds, by=by, loss=loss, sites=sites, protocol=protocol,
        selection=selection, slide_teachers=slide_teachers, device=device, options=options,
    )  # fmt: skip
    works = {name: first.with_model(name) for name in names}  # all are checked before one is trained
    results = {name: run_work(work, None if folder is None else folder / name) for name, work in works.items()}
    found = SlideComparison(results, names[0], _differences(results, names[0]))
    if folder is not None:
        with writing(folder):
            write_durably(
                folder / SUMMARY, msgspec.json.format(msgspec.json.encode({"format": FORMAT, **found.to_dict()}))
            )
    return found


def _differences(results: Mapping[str, SlideTraining], reference: str) -> dict[str, dict[str, Interval]]:
    """Differences to the reference, paired: the draws of patients are the same for all models."""
    base = results[reference].drawn.values
    return {
        metric: simultaneous_intervals(
            {name: one.drawn.values[metric] - draws for name, one in results.items() if name != reference}
        )
        for metric, draws in base.items()
        if not np.isnan(draws[0])
    } | {metric: {} for metric, draws in base.items() if np.isnan(draws[0])}
