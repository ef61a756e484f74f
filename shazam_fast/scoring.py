"""Scoring archives with a trained student, and evaluating it on labelled splits."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .archive import FeatureArchive
from .errors import MismatchError, NonFiniteError, ShazamError
from .matching import TeacherMatch
from .metrics import Metrics, compute_metrics
from .opening import ArchiveLike, open_archive
from .progress import Progress
from .score_parts import PartStore, Record, ScoreJob, choose_part_rows, make_table, write_part
from .scorer import GPU_TILE_ROWS, TILE_ROWS, Scorer
from .scores import Scores, open_scores
from .student import FoldedStudent, Student
from .student_config import StudentConfig
from .student_files import load

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 2048


def score(
    student: Student | str | Path,
    archive: ArchiveLike,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    embedding: bool = False,
    force: bool = False,
    device: str | None = None,
    cluster: str | None = None,
) -> Scores:
    """Score every patch of an archive, or of one split, at the speed of the hardware.

    With `out`, memory stays under 500 MB, PyTorch's own included, whatever the archive's size. A call that was killed
    or ran out of disk is finished by the same call: the parts that are there are kept, and all come out byte for byte
    as if nothing had happened. Without, the scores are kept in memory.

    Args:
        student: a student or where it was saved. Bare students are folded first, which is exact.
        archive: an archive or its path; needs no labels.
        out: directory for the scores, Parquet parts and a manifest; what is finished there is not done again. Columns
            are row, slide, x, y, prediction, probability_<class>, weight_<teacher>.
        split: "train", "val", "test" or "none"; all patches by default.
        embedding: also write the fused feature t of every patch, float32 [D], as the column "embedding".
        force: let teachers be missing even if the student was trained without teacher dropout. The scores' manifest
            says which are missing, and that it was forced.
        device: "cpu", "cuda", ...; a GPU when there is one.
        cluster: "ray" spreads the parts over a Ray cluster that sees the same files; needs `out`.

    Raises:
        MismatchError: the archive's teachers are not the student's (names them), the split is empty, or `out` holds
            the scores of another student, archive or call.
        NonFiniteError: a NaN or infinite feature; names the teacher and the row.
        ShazamError: the scores cannot be written, the disk is full; finished parts stay.
    """
    student, archive, place = _load(student), open_archive(archive), choose_device(device)
    if cluster not in (None, "ray"):
        raise ShazamError(f"cluster: 'ray' expected, found {cluster!r}")
    if cluster and out is None:
        raise ShazamError("a cluster writes its scores to a directory that all its machines see: give out")
    job = plan_job(student, archive, split=split, embedding=embedding, force=force, device=place)
    rows = archive.rows if split is None else sum(len(job.rows_of(archive, part)) for part in range(job.parts))
    if rows == 0:
        raise MismatchError(f"{archive.path}: no patches to score" + (f" in split {split!r}" if split else ""))
    if out is None:
        with Progress(f"scoring {archive.path.name}", rows, "patches") as progress:
            return Scores({**job.about, "rows": rows}, _score_in_memory(job, student, archive, place, progress))
    with PartStore(Path(out), job) as store:
        if not store.finished:
            with Progress(f"scoring {archive.path.name}", rows, "patches", store.rows) as progress:
                if cluster:
                    from .cluster import score_on_ray

                    score_on_ray(job, student, archive, place, store, progress)
                else:
                    _score_to_disk(job, student, archive, place, store, progress)
            store.finish()
    return open_scores(out)


def evaluate(
    student: Student | str | Path, archive: ArchiveLike, split: str = "test", *, device: str | None = None
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
    scores = score(student, archive, split=split, device=device)
    return compute_metrics(scores.probabilities, archive.labels[rows], tuple(student.config.classes))


@torch.no_grad()
def predict(
    model: Student | FoldedStudent, archive: FeatureArchive, rows: NDArray[np.int64], batch_size: int = BATCH_ROWS
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Logits [B, C] and teacher weights [B, N] of the given rows, batch by batch, on the model's device, in its dtype.

    For a model that is still in training; `Scorer` is faster for one that is not.
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


def plan_job(
    student: Student, archive: FeatureArchive, *, split: str | None, embedding: bool, force: bool, device: torch.device
) -> ScoreJob:
    """What is to be scored. Raises MismatchError when the archive's teachers are not the student's."""
    config = student.config
    match = TeacherMatch(archive, config, force)
    about = {
        "classes": list(config.classes),
        "teachers": list(config.teachers),
        "missing_teachers": list(match.missing),
        "forced": match.forced,
        "weights": config.block == "bare",
    }
    part_rows = choose_part_rows(len(config.classes), len(config.teachers), config.dim if embedding else 0)
    identity = {
        "the student": _digest(student),
        "the archive's files": archive.identity(),
        "split": split,
        "embedding": embedding,
        "device": device.type,
        "rows of a part": part_rows,
        "rows of a tile": GPU_TILE_ROWS if device.type == "cuda" else TILE_ROWS,
    }
    return ScoreJob(about, identity, archive.rows, part_rows, split, embedding)


def _score_in_memory(
    job: ScoreJob, student: Student, archive: FeatureArchive, device: torch.device, progress: Progress
) -> list["pa.Table"]:
    tables = []
    with Scorer(student, archive, device, embedding=job.embedding, force=job.about["forced"]) as scorer:
        for part in range(job.parts):
            if len(rows := job.rows_of(archive, part)):
                tables.append(make_table(archive, job, rows, scorer.score(rows)))
            progress.advance(len(rows))
    return tables


def _score_to_disk(
    job: ScoreJob, student: Student, archive: FeatureArchive, device: torch.device, store: PartStore, progress: Progress
) -> None:
    """Part after part, each written while the next one is computed."""
    writing: list[Future[Record]] = []

    def settle() -> None:
        while writing:
            record = writing.pop().result()
            store.add(record)
            progress.advance(record["rows"])

    with (
        Scorer(student, archive, device, embedding=job.embedding, force=job.about["forced"]) as scorer,
        ThreadPoolExecutor(1) as writer,
    ):
        try:
            for part in store.missing():
                rows = job.rows_of(archive, part)
                if len(rows) == 0:
                    store.add({"part": part, "rows": 0})
                    continue
                scores = scorer.score(rows)
                settle()
                writing.append(writer.submit(write_part, store.path, part, archive, job, rows, scores))
        finally:
            settle()


def _digest(student: Student) -> str:
    """Changes with the student's shape and with any of its values."""
    digest = hashlib.sha256(json.dumps(asdict(student.config)).encode())
    for name, tensor in student.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _load(student: Student | str | Path) -> Student:
    return student if isinstance(student, Student) else load(student)
