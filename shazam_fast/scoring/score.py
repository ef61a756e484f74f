"""Scoring archives with a trained student: parts are written while the next ones are computed."""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..archive.opening import ArchiveLike, as_archive
from ..errors import MismatchError, ShazamError
from ..runtime.checks import require_choice, require_path, require_switch
from ..runtime.devices import choose_device, describe_device
from ..runtime.jobs.locks import require_writable
from ..runtime.jobs.ray_jobs import require_cluster
from ..runtime.progress import Progress
from ..student.config import StudentConfig
from ..student.loading import load_student
from ..student.matching import TeacherMatch
from ..student.student import Student
from .engine import TILE_ROWS, Scorer
from .gpu.streaming import gpu_tile_rows
from .inference import match_teachers
from .manifest import MANIFEST, ScoresManifest
from .parts import ScoreJob, ScoreParts, Work, choose_part_rows, make_table, rounding_error
from .scores import Scores, open_scores

if TYPE_CHECKING:
    import pyarrow as pa

DTYPES = ("float32", "float16")  # in which scores are stored
logger = logging.getLogger("shazam_fast")

WRITERS = {"cpu": 1, "cuda": 3}  # parts written at a time; a GPU scores several while one is written


# Over 40 lines: every option is documented here.
def score(
    student: Student | str | Path,
    archive: ArchiveLike,
    out: str | Path | None = None,
    *,
    split: str | None = None,
    fused: bool = False,
    influence: bool = False,
    dtype: str = "float32",
    allow_missing_teachers: bool = False,
    device: str | None = None,
    cluster: str | None = None,
) -> Scores:
    """Compute class probabilities and attention shares of every patch of an archive, or of one split.

    With `out`, scores go to disk part by part, and memory does not grow with the archive. After an interruption or a
    full disk, run the same call again: finished parts are kept, and all files are the same as without an interruption.
    Without `out`, the scores are kept in memory.

    Args:
        student: a student or where it was saved. Bare students are folded first, which is exact.
        archive: an archive or its path; needs no labels.
        out: directory for the scores, Parquet parts and a manifest; finished parts are kept. Columns are row,
            slide, x, y, prediction, probability_<class>, share_<teacher>, influence_<teacher>.
        split: "train", "val", "test" or "none"; all patches by default.
        fused: also write the fused feature t of every patch, float32 [D], as the column "fused".
        influence: also write, per teacher, how far the predicted class's probability lies above the one that the
            student gives without this teacher: above 0 it speaks for the prediction, below 0 against it. Exact, for at
            most 1.3 times the cost. Trust it only for students trained with teacher dropout: others have never seen a
            patch with a teacher missing. With features of three levels, a teacher's levels are withheld together.
        dtype: in which probabilities, shares and influence are stored: "float32", or "float16", in half the bytes. The
            largest rounding error, at most 0.00025, is in the manifest and in `Scores.rounding_error`. The prediction
            is that of the exact probabilities.
        allow_missing_teachers: score even if teachers are missing and the student was trained without teacher
            dropout; results may be unreliable. The scores' manifest says which are missing.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if PyTorch finds one.
        cluster: "ray" spreads the parts over a Ray cluster that sees the same files; needs `out`.

    Returns the scores, in memory or opened from `out`.

    Raises:
        MismatchError: the archive's teachers are not the student's (names them), the split is empty, or `out` holds
            the scores of another student, archive or call.
        NonFiniteError: a NaN or infinite feature; names the teacher and the row.
        ArchiveError: the archive or the student is missing or damaged.
        ShazamError: a device that is not there; influence of fewer than two teachers; the scores cannot be written, the
            disk is full; finished parts stay.

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> archive = sf.write_archive(f"{tempfile.mkdtemp()}/patches", {"uni": np.ones((3, 8))})
    >>> student = sf.Student(sf.StudentConfig({"uni": 8}, ("normal", "tumour"), dim=8, depth=1)).eval()
    >>> scores = sf.score(student, archive, device="cpu")
    >>> scores.probabilities.shape, scores.shares.tolist()
    ((3, 2), [[1.0], [1.0], [1.0]])
    """
    require_cluster(cluster)
    require_switch("fused", fused)
    require_switch("influence", influence)
    require_choice("dtype", dtype, DTYPES)
    require_switch("allow_missing_teachers", allow_missing_teachers)
    if cluster and out is None:
        raise ShazamError("a cluster writes its scores to a directory that all its machines see: give out")
    out = None if out is None else require_path("out", out)
    if out is not None and not (out / MANIFEST).exists():
        require_writable(out)
    student, archive, place = load_student(student), as_archive(archive), choose_device(device)
    options = {"fused": fused, "influence": influence, "allow_missing_teachers": allow_missing_teachers}
    job = plan_job(student, archive, split=split, dtype=dtype, device=place, **options)
    work = Work(student, archive, place)
    rows = archive.n_rows if split is None else sum(len(job.rows_of(archive, part)) for part in range(job.parts))
    if rows == 0:
        raise MismatchError(f"{archive.path}: no patches to score" + (f" in split {split!r}" if split else ""))
    if out is None:
        with Progress(f"scoring {archive.path.name}", rows, "patches") as progress:
            tables, error = _score_in_memory(job, work, progress)
            return Scores(msgspec.structs.replace(job.manifest, rows=rows, rounding_error=error), tables)
    parts = ScoreParts(out, job)
    parts.complete(partial(_score_missing, parts, work, rows, cluster))
    parts.read_finished()
    return open_scores(out)


def _score_missing(parts: ScoreParts, work: Work, rows: int, cluster: str | None) -> None:
    """Write the parts that are missing, of all `rows`, and the manifest."""
    missing = parts.missing(range(parts.count))
    done = sum(record.part.rows for p in range(parts.count) if (record := parts.record(p)) and record.part)
    with Progress(f"scoring {work.archive.path.name}", rows, "patches", done) as progress:
        if cluster:
            from .cluster import score_on_ray

            score_on_ray(parts, missing, work, progress)
        else:
            _score_to_disk(parts, missing, work, progress)
    parts.publish_scores()


# Over 40 lines with what it documents.
def plan_job(
    student: Student,
    archive: FeatureArchive,
    *,
    split: str | None,
    fused: bool,
    influence: bool,
    dtype: str,
    allow_missing_teachers: bool,
    device: torch.device,
) -> ScoreJob:
    """Describe a scoring: its manifest, what makes two scorings the same, and how rows are divided into parts.

    Arguments as for `score`. Raises MismatchError when the archive's teachers are not the student's.
    """
    config = student.config
    match = match_teachers(student, archive, allow_missing_teachers)
    manifest = ScoresManifest(
        rows=0,
        classes=list(config.classes),
        teachers=list(config.teachers),
        missing_teachers=list(match.missing),
        forced=match.forced,
        shares=config.block == "bare",
        influence=_withheld(config, match) if influence else [],
        geometry=dict(archive.geometry),
        dtype="float16" if dtype == "float16" else "float32",
    )
    stored = len(config.classes) + len(config.teachers) + len(manifest.influence)
    part_rows = choose_part_rows(np.dtype(dtype).itemsize * stored + (4 * config.dim if fused else 0))
    content = archive.fingerprint
    read = ("features", "slides", "positions", *(("splits",) if split is not None else ()))
    job = {
        "student": _digest(student),
        **{what: content[what] for what in read},
        "split": split,
        "fused": fused,
        "influence": influence,
        "dtype": dtype,
        "device": describe_device(device),
        **({"triton": version("triton")} if device.type == "cuda" and find_spec("triton") else {}),
        "rows of a part": part_rows,
        "rows of a tile": gpu_tile_rows(archive, config) if device.type == "cuda" else TILE_ROWS,
    }
    return ScoreJob(manifest, job, archive.n_rows, part_rows, split, fused)


def _score_in_memory(job: ScoreJob, work: Work, progress: Progress) -> tuple[list["pa.Table"], float]:
    """A table of every part, and the largest rounding error."""
    tables, error, asked = [], 0.0, deque[NDArray[np.int64]]()

    def rows_of_parts() -> Iterator[NDArray[np.int64]]:
        for part in range(job.parts):
            if len(rows := job.rows_of(work.archive, part)):
                asked.append(rows)
                yield rows

    with _scorer(job, work) as scorer:
        for scores in scorer.score_parts(rows_of_parts(), job.part_rows):
            rows = asked.popleft()
            tables.append(make_table(work.archive, job, rows, scores))
            error = max(error, rounding_error(job, scores))
            progress.advance(len(rows))
    return tables, error


def _score_to_disk(parts: ScoreParts, missing: Sequence[int], work: Work, progress: Progress) -> None:
    """Part after part, each written while the next ones are computed."""
    job, archive, writers = parts.scored, work.archive, WRITERS[work.device.type]
    writing: list[Future[int]] = []
    asked = deque[tuple[int, NDArray[np.int64]]]()

    def settle(most: int) -> None:
        """Wait until at most so many parts are being written."""
        while len(writing) > most:
            progress.advance(writing.pop(0).result())

    def rows_of_parts() -> Iterator[NDArray[np.int64]]:
        for part in missing:
            rows = job.rows_of(archive, part)
            if len(rows):
                asked.append((part, rows))
                yield rows
            else:
                parts.write(part, archive, rows, None)

    with _scorer(job, work) as scorer, ThreadPoolExecutor(writers) as pool:
        try:
            for scores in scorer.score_parts(rows_of_parts(), job.part_rows):
                part, rows = asked.popleft()
                settle(writers - 1)
                writing.append(pool.submit(parts.write, part, archive, rows, scores))
        finally:
            settle(0)


def _scorer(job: ScoreJob, work: Work) -> Scorer:
    return Scorer(*work, fused=job.fused, allow_missing_teachers=job.manifest.forced, influence=job.influence)


def _withheld(config: StudentConfig, match: TeacherMatch) -> list[str]:
    """The encoders whose influence is asked for. Raises ShazamError unless two of them are there."""
    names = config.encoder_names
    missing = {names[config.encoders[list(config.teachers).index(teacher)]] for teacher in match.missing}
    if len(there := [name for name in names if name not in missing]) < 2:
        raise ShazamError(
            f"influence: two teachers or more expected, found {there}: without its only teacher a student predicts "
            "nothing; score without influence"
        )
    if config.teacher_dropout == 0.0:
        logger.warning(
            "influence of a student that was trained without teacher dropout: it has never seen a patch with a teacher "
            "missing, so do not trust these values; train with teacher_dropout above 0 (--teacher-dropout 0.2)"
        )
    return names


def _digest(student: Student) -> str:
    """Changes with the student's shape and with any of its values."""
    digest = hashlib.sha256(json.dumps(asdict(student.config)).encode())
    for name, tensor in student.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
