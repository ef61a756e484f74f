"""Scoring on several machines: Ray distributes the parts to workers, and runs the part of a worker that died again.

The machines share a file system: workers read the archive and write parts
under the same paths as the caller, who holds the lock and publishes.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..archive.archive import FeatureArchive
from ..errors import MismatchError
from ..runtime.jobs.ray_jobs import ray_cluster
from ..runtime.progress import Progress
from ..student.student import Student
from .engine import Scorer
from .parts import ScoreJob, ScoreParts, Work

RETRIES = 5  # of a part whose worker died
STOPPING_SECONDS = 10  # after which a worker that does not answer is left to Ray

_scorers: dict[str, Scorer] = {}  # by job: the one that this worker's process keeps for its next part


def score_on_ray(parts: ScoreParts, missing: Sequence[int], work: Work, progress: Progress) -> None:
    """Score the missing parts on a Ray cluster; one CPU, or GPU, per part.

    Args:
        parts: the directory of the parts; the caller holds its lock.
        missing: numbers of the parts to score.
        work: what is scored, and where workers compute.
        progress: advanced by the patches of every finished part.

    Raises ShazamError when Ray is missing, or the workers of a part died RETRIES times; otherwise what scoring raises.
    """
    with ray_cluster(parts.path) as ray:
        gpus = 1 if work.device.type == "cuda" else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(score_part)
        everything = ray.put((parts.scored, work.student, work.archive, work.device.type, os.getcwd()))
        waiting = [task.remote(everything, os.path.abspath(parts.path), part) for part in missing]
        try:
            while waiting:
                (done, *_), waiting = ray.wait(waiting)
                progress.advance(ray.get(done))
        finally:
            for remaining in waiting:
                ray.cancel(remaining, force=True)
            if waiting:  # the caller gives up the directory: nobody may write there then
                ray.wait(waiting, num_returns=len(waiting), timeout=STOPPING_SECONDS)


def score_part(everything: tuple[ScoreJob, Student, FeatureArchive, str, str], folder: str, part: int) -> int:
    """Score and write one part, in a worker. Returns its number of patches."""
    job, student, archive, device, directory = everything
    os.chdir(directory)  # paths may be relative to the caller's
    parts = ScoreParts(Path(folder), job)
    rows = job.rows_of(archive, part)
    scores = _scorer(parts, student, archive, device).score(rows) if len(rows) else None
    return parts.write(part, archive, rows, scores)


def _scorer(parts: ScoreParts, student: Student, archive: FeatureArchive, device: str) -> Scorer:
    if parts.digest not in _scorers:
        if archive.fingerprint["features"] != parts.job["features"]:
            raise MismatchError(f"{archive.path}: its files on {os.uname().nodename} are not those of the caller")
        job = parts.scored
        options = {
            "fused": job.fused,
            "allow_missing_teachers": job.manifest.forced,
            "influence": job.influence,
        }
        _scorers.clear()
        _scorers[parts.digest] = Scorer(student, archive, torch.device(device), **options).__enter__()
    return _scorers[parts.digest]
