"""Scoring on several machines: Ray hands the parts out, takes them from workers that die, and runs them again.

Ray itself decides where a part is scored. The machines share a file system: workers read the archive and write parts
under the same paths as the caller, who alone keeps the journal.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from ..archive.archive import FeatureArchive
from ..errors import MismatchError, ShazamError
from ..runtime.progress import Progress
from ..student.student import Student
from .engine import Scorer
from .parts import PartStore, Record, ScoreJob, write_part

RETRIES = 5  # of a part whose worker died

_scorers: dict[str, Scorer] = {}  # of this worker's process, by job: ready for its next part


def score_on_ray(
    job: ScoreJob, student: Student, archive: FeatureArchive, device: torch.device, store: PartStore, progress: Progress
) -> None:
    """Score the missing parts on the Ray cluster that is there (RAY_ADDRESS, or one on this machine), one CPU a part.

    Raises ShazamError when Ray is missing, or a part's worker died time and again; otherwise what scoring raises.
    """
    try:
        import ray
    except ImportError:
        raise ShazamError("cluster='ray' needs Ray: pip install 'shazam_fast[cluster]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    gpus = 1 if device.type == "cuda" else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(score_part)
    everything = ray.put((job, student, archive, device.type, os.getcwd()))
    waiting = [task.remote(everything, os.path.abspath(store.path), part) for part in store.missing()]
    try:
        while waiting:
            (done, *_), waiting = ray.wait(waiting)
            record = ray.get(done)
            store.add(record)
            progress.advance(record["rows"])
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, ShazamError | OSError) else error from None
    except ray.exceptions.RayError as error:
        raise ShazamError(f"{store.path}: Ray gave up on a part: {error}; the same call goes on from here") from None
    finally:
        for remaining in waiting:
            ray.cancel(remaining, force=True)


def score_part(everything: tuple[ScoreJob, Student, FeatureArchive, str, str], folder: str, part: int) -> Record:
    """Score and write one part, in a worker."""
    job, student, archive, device, directory = everything
    os.chdir(directory)  # paths may be relative to the caller's
    rows = job.rows_of(archive, part)
    if len(rows) == 0:
        return {"part": part, "rows": 0}
    scores = _scorer(job, student, archive, device).score(rows)
    return write_part(Path(folder), part, archive, job, rows, scores)


def _scorer(job: ScoreJob, student: Student, archive: FeatureArchive, device: str) -> Scorer:
    key: Any = repr(job.identity)
    if key not in _scorers:
        if archive.identity() != job.identity["the archive's files"]:
            raise MismatchError(f"{archive.path}: its files on {os.uname().nodename} are not those of the caller")
        options = {"fused": job.fused, "allow_missing_teachers": job.about["forced"]}
        _scorers.clear()
        _scorers[key] = Scorer(student, archive, torch.device(device), **options).__enter__()
    return _scorers[key]
