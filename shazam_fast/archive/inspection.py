"""What an archive holds: patches by split, norms of a sample of the features, and how many are not finite."""

from dataclasses import dataclass

import numpy as np

from ..annotation.splits import count_members
from ..formats.pieces import SPLITS
from .archive import FeatureArchive

SAMPLE_ROWS = 10_000
BATCH_ROWS = 1_000


@dataclass(frozen=True)
class TeacherSample:
    """Norms of one teacher's features in a sample of `n_rows` patches.

    `non_finite` counts features with NaN or infinity. The norms are those of the others, NaN if there are none.
    """

    n_rows: int
    min_norm: float
    median_norm: float
    max_norm: float
    non_finite: int


def describe_splits(archive: FeatureArchive) -> dict[str, dict[str, int | None]]:
    """Patches, slides and groups (patients) of every split that has patches.

    Args:
        archive: an open archive.

    Returns split -> {"patches", "slides", "groups"}; None for slides or groups that are not known of all patches.
    """
    found: dict[str, dict[str, int | None]] = {}
    for name in SPLITS:
        rows = archive.split(name)
        if not len(rows):
            continue
        found[name] = {"patches": len(rows)}
        found[name] |= count_members({"slides": archive.slide_index[rows], "groups": archive.group_index[rows]})
    return found


def slides_by_split(archive: FeatureArchive) -> dict[str, list[str]]:
    """Names of the slides of "train" and of "val" whose patches are in no other labelled split.

    Args:
        archive: an open archive.
    """
    names = ("train", "val", "test")
    found = np.zeros((len(names), len(archive.slides)), dtype=bool)  # [split, slide]
    for split, name in enumerate(names):
        slides = archive.slide_index[archive.split(name)]
        found[split, slides[slides >= 0]] = True
    whole = found & (found.sum(axis=0) == 1)
    return {name: [archive.slides[i] for i in np.flatnonzero(whole[split])] for split, name in enumerate(names[:2])}


def sample_teachers(archive: FeatureArchive, seed: int = 0) -> dict[str, TeacherSample]:
    """Norms per teacher, of up to 10,000 patches.

    Args:
        archive: an open archive.
        seed: random seed of the choice of patches.

    Returns teacher -> its sample.
    """
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
