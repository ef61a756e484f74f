"""Fuse the features of several pathology foundation models ("teachers") with a small attention student.

    import shazam_fast as sf
    result = sf.train("patches.archive", out="runs/first")
    scores = sf.score(result.student, "cohort.archive", out="cohort.parquet")

Public names load their module on first use, so that importing the package stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .archive import Batch as Batch
    from .archive import FeatureArchive as FeatureArchive
    from .conversion import ConversionReport as ConversionReport
    from .conversion import convert as convert
    from .datasets import dataset as dataset
    from .errors import ArchiveError as ArchiveError
    from .errors import ImageError as ImageError
    from .errors import MismatchError as MismatchError
    from .errors import NonFiniteError as NonFiniteError
    from .errors import ShazamError as ShazamError
    from .extraction import ExtractionReport as ExtractionReport
    from .extraction import extract as extract
    from .finetuning import FinetuneResult as FinetuneResult
    from .finetuning import finetune as finetune
    from .heatmap import heatmap as heatmap
    from .image_sources import ImageTable as ImageTable
    from .metrics import Metrics as Metrics
    from .opening import open_archive as open  # noqa: F401 - an alias that renames
    from .scores import Scores as Scores
    from .scores import open_scores as open_scores
    from .scoring import evaluate as evaluate
    from .scoring import score as score
    from .splits import GroupedSplit as GroupedSplit
    from .student import FoldedStudent as FoldedStudent
    from .student import Student as Student
    from .student_config import StudentConfig as StudentConfig
    from .student_files import load as load
    from .teacher_registry import register_teacher as register_teacher
    from .teacher_registry import teacher as teacher
    from .teacher_registry import teachers as teachers
    from .teacher_spec import TeacherSpec as TeacherSpec
    from .teacher_spec import Transform as Transform
    from .training import TrainResult as TrainResult
    from .training import train as train
    from .training_config import TrainConfig as TrainConfig
    from .writer import ArchiveWriter as ArchiveWriter
    from .writer import write_archive as write_archive

__version__ = "0.1.0"

_HOMES = {
    "archive": ("Batch", "FeatureArchive"),
    "conversion": ("ConversionReport", "convert"),
    "datasets": ("dataset",),
    "errors": ("ArchiveError", "ImageError", "MismatchError", "NonFiniteError", "ShazamError"),
    "extraction": ("ExtractionReport", "extract"),
    "finetuning": ("FinetuneResult", "finetune"),
    "image_sources": ("ImageTable",),
    "metrics": ("Metrics",),
    "heatmap": ("heatmap",),
    "scores": ("Scores", "open_scores"),
    "scoring": ("evaluate", "score"),
    "splits": ("GroupedSplit",),
    "student": ("FoldedStudent", "Student"),
    "student_config": ("StudentConfig",),
    "student_files": ("load",),
    "teacher_registry": ("register_teacher", "teacher", "teachers"),
    "teacher_spec": ("TeacherSpec", "Transform"),
    "training": ("TrainResult", "train"),
    "training_config": ("TrainConfig",),
    "writer": ("ArchiveWriter", "write_archive"),
}
_HOME = {name: (module, name) for module, names in _HOMES.items() for name in names}
_HOME["open"] = ("opening", "open_archive")

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'shazam_fast' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
