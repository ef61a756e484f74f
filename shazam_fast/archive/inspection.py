"""A look at a sample of an archive's features: how long they are, and whether they are finite."""

from dataclasses import dataclass

import numpy as np

from .archive import FeatureArchive

SAMPLE_ROWS = 10_000
BATCH_ROWS = 1_000


@dataclass(frozen=True)
class TeacherSample:
    """One teacher's features in `rows` patches: smallest, median and largest norm, and patches with NaN or infinity.

    Norms are those of finite features, NaN where there is none.
    """

    n_rows: int
    min_norm: float
    median_norm: float
    max_norm: float
    non_finite: int


def sample_teachers(archive: FeatureArchive, seed: int = 0) -> dict[str, TeacherSample]:
    """Look at up to 10,000 patches chosen at random, or at all of a smaller archive, teacher by teacher."""
    chosen = np.arange(archive.n_rows)
    if archive.n_rows > SAMPLE_ROWS:
        chosen = np.sort(np.random.default_rng(seed).choice(archive.n_rows, SAMPLE_ROWS, replace=False))
    norms = np.empty((len(archive.teachers), len(chosen)))  # [teachers, n]
    for start in range(0, len(chosen), BATCH_ROWS):
        features = archive.gather(chosen[start : start + BATCH_ROWS])
        for index, teacher in enumerate(archive.teachers):
            block = features[:, archive.columns_of(teacher)]
            norms[index, start : start + len(block)] = np.linalg.norm(block.astype(np.float64), axis=1)
    samples = {}
    for teacher, found in zip(archive.teachers, norms, strict=True):
        finite = found[np.isfinite(found)]
        low, middle, high = (np.min(finite), np.median(finite), np.max(finite)) if len(finite) else (np.nan,) * 3
        samples[teacher] = TeacherSample(len(found), float(low), float(middle), float(high), len(found) - len(finite))
    return samples
