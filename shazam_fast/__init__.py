"""Fuse the features of several pathology foundation models ("teachers") with a small attention student.

    import shazam_fast as sf
    result = sf.train("patches.archive", out="runs/first")
    scores = sf.score(result.student, "cohort.archive", out="cohort.parquet")

Public names load their module on first use, so that importing the package stays fast.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import slides as slides
    from .annotation.splits import GroupedSplit as GroupedSplit
    from .archive.archive import FeatureArchive as FeatureArchive
    from .archive.conversion import ConversionReport as ConversionReport
    from .archive.conversion import convert as convert
    from .archive.opening import open_archive as open  # noqa: F401 - an alias that renames
    from .archive.rows import Batch as Batch
    from .archive.writer import ArchiveWriter as ArchiveWriter
    from .archive.writer import write_archive as write_archive
    from .comparison.compare import compare as compare
    from .comparison.finetuning.config import FinetuneConfig as FinetuneConfig
    from .comparison.finetuning.run import FinetuneResult as FinetuneResult
    from .comparison.finetuning.run import finetune as finetune
    from .comparison.result import Comparison as Comparison
    from .comparison.table import open_comparison as open_comparison
    from .errors import ArchiveError as ArchiveError
    from .errors import ImageError as ImageError
    from .errors import MismatchError as MismatchError
    from .errors import NonFiniteError as NonFiniteError
    from .errors import ShazamError as ShazamError
    from .estimator import ShazamClassifier as ShazamClassifier
    from .extraction.extract import extract as extract
    from .extraction.run import ExtractionReport as ExtractionReport
    from .formats.geometry import Geometry as Geometry
    from .images.datasets import load_dataset as load_dataset
    from .images.table import ImageTable as ImageTable
    from .reporting.heatmaps import heatmap as heatmap
    from .reporting.plots import plot as plot
    from .reporting.report.report import report as report
    from .reporting.sheet import TopPatch as TopPatch
    from .reporting.top_patches import top_patches as top_patches
    from .scoring.evaluate import evaluate as evaluate
    from .scoring.metrics import Metrics as Metrics
    from .scoring.score import score as score
    from .scoring.scores import Scores as Scores
    from .scoring.scores import open_scores as open_scores
    from .student.config import StudentConfig as StudentConfig
    from .student.ensemble import Ensemble as Ensemble
    from .student.ensemble import average as average
    from .student.export.onnx_file import export_onnx as export_onnx
    from .student.folded import FoldedStudent as FoldedStudent
    from .student.loading import load as load
    from .student.student import Student as Student
    from .sweeping.sweep import SweepResult as SweepResult
    from .sweeping.sweep import sweep as sweep
    from .teachers.models import load_teacher as load_teacher
    from .teachers.registry import get_teacher as get_teacher
    from .teachers.registry import list_teachers as list_teachers
    from .teachers.registry import register_teacher as register_teacher
    from .teachers.spec import TeacherSpec as TeacherSpec
    from .teachers.transform import Transform as Transform
    from .training.calibration import calibrate as calibrate
    from .training.config import TrainConfig as TrainConfig
    from .training.train import TrainResult as TrainResult
    from .training.train import train as train

__version__ = "0.1.0"

# How often a thread of PyTorch looks for its next work before it sleeps. GNU's OpenMP looks 30 times as often, which
# makes small operations several times slower on a machine that other programs use too; sleeping at once (PASSIVE) makes
# them 1.6 times slower on an idle one. It is read when PyTorch is loaded; it has no effect afterwards.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_HOMES = {
    "errors": (
        "ArchiveError",
        "ImageError",
        "MismatchError",
        "NonFiniteError",
        "ShazamError",
    ),
    "archive.archive": ("FeatureArchive",),
    "archive.rows": ("Batch",),
    "archive.conversion": (
        "ConversionReport",
        "convert",
    ),
    "formats.geometry": ("Geometry",),
    "annotation.splits": ("GroupedSplit",),
    "archive.writer": (
        "ArchiveWriter",
        "write_archive",
    ),
    "images.datasets": ("load_dataset",),
    "images.table": ("ImageTable",),
    "teachers.registry": (
        "get_teacher",
        "list_teachers",
        "register_teacher",
    ),
    "teachers.spec": ("TeacherSpec",),
    "teachers.transform": ("Transform",),
    "teachers.models": ("load_teacher",),
    "extraction.extract": ("extract",),
    "extraction.run": ("ExtractionReport",),
    "student.config": ("StudentConfig",),
    "student.folded": ("FoldedStudent",),
    "student.ensemble": ("Ensemble", "average"),
    "student.loading": ("load",),
    "student.export.onnx_file": ("export_onnx",),
    "student.student": ("Student",),
    "sweeping.sweep": ("SweepResult", "sweep"),
    "scoring.evaluate": ("evaluate",),
    "scoring.metrics": ("Metrics",),
    "scoring.score": ("score",),
    "scoring.scores": (
        "Scores",
        "open_scores",
    ),
    "training.calibration": ("calibrate",),
    "training.config": ("TrainConfig",),
    "training.train": (
        "TrainResult",
        "train",
    ),
    "comparison.compare": ("compare",),
    "comparison.result": ("Comparison",),
    "comparison.table": ("open_comparison",),
    "comparison.finetuning.config": ("FinetuneConfig",),
    "comparison.finetuning.run": (
        "FinetuneResult",
        "finetune",
    ),
    "reporting.heatmaps": ("heatmap",),
    "reporting.plots": ("plot",),
    "reporting.report.report": ("report",),
    "reporting.sheet": ("TopPatch",),
    "reporting.top_patches": ("top_patches",),
    "estimator": ("ShazamClassifier",),
}
_HOME = {name: (module, name) for module, names in _HOMES.items() for name in names}
_HOME["open"] = ("archive.opening", "open_archive")

__all__ = ["slides"]
__all__ += list(_HOME)


def __getattr__(name: str) -> object:
    if name == "slides":
        return import_module(".slides", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'shazam_fast' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
