"""Scoring archives with a trained student, and evaluating it on labelled splits."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .archive import FeatureArchive
from .errors import MismatchError, NonFiniteError, ShazamError
from .files import UNFINISHED
from .metrics import Metrics, compute_metrics
from .opening import ArchiveLike, open_archive
from .progress import Progress
from .student import FoldedStudent, Student
from .student_config import StudentConfig
from .student_files import load

BATCH_ROWS = 2048


@dataclass(frozen=True)
class Scores:
    """What a student says of n patches.

    `rows` int64 [n] of the archive, `prediction` int64 [n] into `classes`, `probabilities` float32 [n, C],
    `weights` float32 [n, N]: the exact share of each of `teachers` in the patch's fused feature, rows summing
    to 1 (None for residual students, which have no such shares).
    """

    rows: NDArray[np.int64]
    prediction: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    weights: NDArray[np.float32] | None
    classes: tuple[str, ...]
    teachers: tuple[str, ...]


class TeacherMatch:
    """How an archive's columns become a student's: by teacher name, in the student's order.

    Raises MismatchError naming the teachers that differ. Teachers may be missing from the archive only if the
    student was trained with teacher dropout; extra ones are left unread by the student.
    """

    def __init__(self, archive: FeatureArchive, config: StudentConfig) -> None:
        missing = [name for name in config.teachers if name not in archive.teachers]
        widths = {n: d for n, d in config.teachers.items() if archive.teachers.get(n, d) != d}
        problems = [f"{n!r} has {archive.teachers[n]} columns, the student needs {d}" for n, d in widths.items()]
        if missing and (config.teacher_dropout == 0.0 or len(missing) == len(config.teachers)):
            problems.append(f"missing {missing}; found {list(archive.teachers)}")
            if config.teacher_dropout == 0.0:
                problems.append("only a student trained with teacher_dropout can do without a teacher")
        if problems:
            raise MismatchError(f"{archive.path}: the archive's teachers are not the student's: {'; '.join(problems)}")
        self._columns = [None if n in missing else archive.columns_of(n) for n in config.teachers]
        self._dims = list(config.teachers.values())
        self._as_they_are = list(archive.teachers.items()) == list(config.teachers.items())
        self.missing = tuple(missing)

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """features [B, archive's width] -> features [B, student's width], present bool [B, N] or None."""
        if self._as_they_are:
            return features, None
        blocks = [
            features.new_zeros(len(features), dim) if columns is None else features[:, columns]
            for dim, columns in zip(self._dims, self._columns, strict=True)
        ]
        present = torch.tensor([c is not None for c in self._columns], device=features.device)
        return torch.cat(blocks, dim=1), present.expand(len(features), -1) if self.missing else None


def score(
    student: Student | str | Path,
    archive: ArchiveLike,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    batch_size: int = BATCH_ROWS,
    device: str | None = None,
) -> Scores:
    """Score every patch of an archive (or of one split).

    Args:
        student: a student or where it was saved. Bare students are folded first, which is exact.
        archive: an archive or its path; needs no labels.
        out: Parquet file to write: row, slide, x, y, prediction, probability_<class>, weight_<teacher>.
        split: "train", "val", "test" or "none"; all patches by default.
        batch_size: patches at a time.
        device: "cpu", "cuda", ...; a GPU when there is one.

    Raises:
        MismatchError: the archive's teachers are not the student's (names them), or the split is empty.
        NonFiniteError: a NaN or infinite feature; names the teacher and the row.
    """
    student, archive = _load(student), open_archive(archive)
    rows = np.arange(archive.rows) if split is None else archive.split(split)
    if len(rows) == 0:
        raise MismatchError(f"{archive.path}: no patches to score" + (f" in split {split!r}" if split else ""))
    if out is not None and Path(out).exists():
        raise ShazamError(f"{out}: there is a file already; delete it or choose another name")
    config = student.config
    probabilities = np.empty((len(rows), len(config.classes)), dtype=np.float32)
    weights = np.empty((len(rows), len(config.teachers)), dtype=np.float32) if config.block == "bare" else None
    done = 0
    with Progress(f"scoring {archive.path.name}", len(rows), "patches") as progress:
        for logits, w in predict(_scorer(student, choose_device(device)), archive, rows, batch_size):
            here = slice(done, done + len(logits))
            probabilities[here] = logits.softmax(dim=1).cpu().numpy()
            if weights is not None and w is not None:
                weights[here] = w.cpu().numpy()
            done += len(logits)
            progress.advance(len(logits))
    scores = Scores(
        rows, probabilities.argmax(axis=1), probabilities, weights, tuple(config.classes), tuple(config.teachers)
    )
    if out is not None:
        _write_parquet(scores, archive, Path(out))
    return scores


def evaluate(
    student: Student | str | Path,
    archive: ArchiveLike,
    split: str = "test",
    *,
    batch_size: int = BATCH_ROWS,
    device: str | None = None,
) -> Metrics:
    """Metrics of a student on a labelled split; arguments and errors as `score`.

    Raises MismatchError also when the archive's classes are not the student's, or a label is unknown.
    """
    student, archive = _load(student), open_archive(archive)
    require_same_classes(student.config, archive)
    rows = archive.split(split)
    unlabelled = np.flatnonzero(archive.labels[rows] < 0)
    if unlabelled.size:
        raise MismatchError(
            f"{archive.path}: {unlabelled.size} of {len(rows)} patches of split {split!r} have no label, "
            f"the first is row {rows[unlabelled[0]]}"
        )
    scores = score(student, archive, split=split, batch_size=batch_size, device=device)
    return compute_metrics(scores.probabilities, archive.labels[rows], tuple(student.config.classes))


@torch.no_grad()
def predict(
    model: Student | FoldedStudent, archive: FeatureArchive, rows: NDArray[np.int64], batch_size: int = BATCH_ROWS
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Logits [B, C] and teacher weights [B, N] of the given rows, batch by batch, on the model's device, in its dtype.

    Raises NonFiniteError naming the teacher and the row when a feature is NaN or infinite.
    """
    match = TeacherMatch(archive, model.config)
    like = next(chain(model.parameters(), model.buffers()))
    for batch in archive.stream(rows, batch_size):
        features, present = match(torch.from_numpy(batch.features).to(like))
        logits, weights = model.infer(features, present)
        if not torch.isfinite(logits).all():
            archive.require_finite(batch.rows, batch.features)
            raise NonFiniteError(f"{archive.path}: rows {batch.rows[0]}..{batch.rows[-1]} give non-finite logits")
        yield logits, weights


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; by default a GPU when there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def require_same_classes(config: StudentConfig, archive: FeatureArchive) -> None:
    """Raise MismatchError when labels of the archive mean other classes than the student's."""
    if tuple(config.classes) != archive.classes:
        raise MismatchError(
            f"{archive.path}: its classes {list(archive.classes)} are not the student's {list(config.classes)}"
        )


def _scorer(student: Student, device: torch.device) -> Student | FoldedStudent:
    """The student in its fastest exact form, on `device`; the caller's own is left where it is."""
    model = student.fold() if student.config.block == "bare" else copy.deepcopy(student)
    return model.to(device).eval()


def _load(student: Student | str | Path) -> Student:
    return student if isinstance(student, Student) else load(student)


def _write_parquet(scores: Scores, archive: FeatureArchive, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def names_of(codes: NDArray[np.integer], names: tuple[str, ...]) -> pa.Array:
        known = pa.array(np.where(codes < 0, 0, codes).astype(np.int32), mask=codes < 0)
        return pa.DictionaryArray.from_arrays(known, pa.array(names, type=pa.string()))

    coords = archive.coords[scores.rows]
    columns = {
        "row": pa.array(scores.rows),
        "slide": names_of(archive.slide_index[scores.rows], archive.slides),
        "x": pa.array(coords[:, 0]),
        "y": pa.array(coords[:, 1]),
        "prediction": names_of(scores.prediction, scores.classes),
    }
    for index, name in enumerate(scores.classes):
        columns[f"probability_{name}"] = pa.array(scores.probabilities[:, index])
    if scores.weights is not None:
        for index, name in enumerate(scores.teachers):
            columns[f"weight_{name}"] = pa.array(scores.weights[:, index])
    about = {"shazam_fast": json.dumps({"classes": scores.classes, "teachers": scores.teachers})}
    unfinished = out.with_suffix(UNFINISHED)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns).replace_schema_metadata(about), unfinished, compression="zstd")
        unfinished.rename(out)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ShazamError(f"{out}: the scores could not be written: {error}") from error
