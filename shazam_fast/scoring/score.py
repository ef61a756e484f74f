"""Scoring archives with a trained student, and evaluating it on labelled splits."""

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..archive.archive import FeatureArchive
from ..archive.opening import ArchiveLike, open_archive
from ..errors import MismatchError, ShazamError
from ..runtime.devices import choose_device
from ..runtime.progress import Progress
from ..student.student import Student, load_student
from .engine import GPU_TILE_ROWS, TILE_ROWS, Scorer
from .inference import match_teachers
from .parts import PartStore, Record, ScoreJob, choose_part_rows, make_table, write_part
from .scores import Scores, open_scores

if TYPE_CHECKING:
    import pyarrow as pa


def score(
    student: Student | str | Path,
    archive: ArchiveLike,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    fused: bool = False,
    allow_missing_teachers: bool = False,
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
            are row, slide, x, y, prediction, probability_<class>, share_<teacher>.
        split: "train", "val", "test" or "none"; all patches by default.
        fused: also write the fused feature t of every patch, float32 [D], as the column "fused".
        allow_missing_teachers: score even if teachers are missing and the student was trained without teacher
            dropout; results may be unreliable. The scores' manifest says which are missing.
        device: "cpu", "cuda", ...; a GPU when there is one.
        cluster: "ray" spreads the parts over a Ray cluster that sees the same files; needs `out`.

    Raises:
        MismatchError: the archive's teachers are not the student's (names them), the split is empty, or `out` holds
            the scores of another student, archive or call.
        NonFiniteError: a NaN or infinite feature; names the teacher and the row.
        ShazamError: the scores cannot be written, the disk is full; finished parts stay.
    """
    student, archive, place = load_student(student), open_archive(archive), choose_device(device)
    if cluster not in (None, "ray"):
        raise ShazamError(f"cluster: 'ray' expected, found {cluster!r}")
    if cluster and out is None:
        raise ShazamError("a cluster writes its scores to a directory that all its machines see: give out")
    job = plan_job(
        student, archive, split=split, fused=fused, allow_missing_teachers=allow_missing_teachers, device=place
    )
    rows = archive.n_rows if split is None else sum(len(job.rows_of(archive, part)) for part in range(job.parts))
    if rows == 0:
        raise MismatchError(f"{archive.path}: no patches to score" + (f" in split {split!r}" if split else ""))
    if out is None:
        with Progress(f"scoring {archive.path.name}", rows, "patches") as progress:
            return Scores({**job.about, "rows": rows}, _score_in_memory(job, student, archive, place, progress))
    with PartStore(Path(out), job) as store:
        if not store.finished:
            with Progress(f"scoring {archive.path.name}", rows, "patches", store.n_rows) as progress:
                if cluster:
                    from .cluster import score_on_ray

                    score_on_ray(job, student, archive, place, store, progress)
                else:
                    _score_to_disk(job, student, archive, place, store, progress)
            store.finish()
    return open_scores(out)


def plan_job(
    student: Student,
    archive: FeatureArchive,
    *,
    split: str | None,
    fused: bool,
    allow_missing_teachers: bool,
    device: torch.device,
) -> ScoreJob:
    """What is to be scored. Raises MismatchError when the archive's teachers are not the student's."""
    config = student.config
    match = match_teachers(student, archive, allow_missing_teachers)
    about = {
        "classes": list(config.classes),
        "teachers": list(config.teachers),
        "missing_teachers": list(match.missing),
        "forced": match.forced,
        "shares": config.block == "bare",
    }
    part_rows = choose_part_rows(len(config.classes), len(config.teachers), config.dim if fused else 0)
    identity = {
        "the student": _digest(student),
        "the archive's files": archive.identity(),
        "split": split,
        "fused": fused,
        "device": device.type,
        "rows of a part": part_rows,
        "rows of a tile": GPU_TILE_ROWS if device.type == "cuda" else TILE_ROWS,
    }
    return ScoreJob(about, identity, archive.n_rows, part_rows, split, fused)


def _score_in_memory(
    job: ScoreJob, student: Student, archive: FeatureArchive, device: torch.device, progress: Progress
) -> list["pa.Table"]:
    tables = []
    with Scorer(student, archive, device, fused=job.fused, allow_missing_teachers=job.about["forced"]) as scorer:
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
        Scorer(student, archive, device, fused=job.fused, allow_missing_teachers=job.about["forced"]) as scorer,
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
