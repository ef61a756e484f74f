"""Whole slides: one label or survival time per slide or patient, the features of several teachers per patch.

    import shazam_fast as sf
    result = sf.slides.train("trident_job", "labels.csv", out="runs/slides")
    scores = sf.slides.score(result.student, "new_slides", out="scored")

Public names load their module on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..reporting.wholeslides.heatmaps import heatmap as heatmap
    from ..reporting.wholeslides.sheet import top_patches as top_patches
    from ..reporting.wholeslides.survival import draw_survival as draw_survival
    from .bags import Selection as Selection
    from .cohort.curves import SurvivalCurves as SurvivalCurves
    from .cohort.metrics import SlideMetrics as SlideMetrics
    from .cohort.requests import Classes as Classes
    from .cohort.requests import Regression as Regression
    from .cohort.requests import Survival as Survival
    from .comparing import SlideComparison as SlideComparison
    from .comparing import crossvalidate as crossvalidate
    from .crossvalidation import SlideTraining as SlideTraining
    from .crossvalidation import train as train
    from .scores import SlideScores as SlideScores
    from .scores import open_scores as open_scores
    from .scoring import evaluate as evaluate
    from .scoring import score as score
    from .selecting.selection import open_selection as open_selection
    from .selecting.selection import select as select
    from .students import SlideStudent as SlideStudent
    from .students import load as load

_HOMES = {
    ".reporting.wholeslides.heatmaps": ("heatmap",),
    ".reporting.wholeslides.sheet": ("top_patches",),
    ".reporting.wholeslides.survival": ("draw_survival",),
    "bags": ("Selection",),
    "comparing": ("SlideComparison", "crossvalidate"),
    "cohort.curves": ("SurvivalCurves",),
    "crossvalidation": ("SlideTraining", "train"),
    "cohort.metrics": ("SlideMetrics",),
    "scores": ("SlideScores", "open_scores"),
    "scoring": ("evaluate", "score"),
    "selecting.selection": ("open_selection", "select"),
    "students": ("SlideStudent", "load"),
    "cohort.requests": ("Classes", "Regression", "Survival"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'shazam_fast.slides' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
