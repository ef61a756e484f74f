"""Scores that tests of pictures make for themselves, and what a picture holds."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
from synthetic import CLASSES, TEACHERS

import shazam_fast as sf
from shazam_fast.scoring.manifest import ScoresManifest

GRID = [(x * 224 + 1000, y * 224 + 5000) for y in range(3) for x in range(4)]


def make_scores(slides, classes=CLASSES, shares=True, geometry=None):
    """Of {slide: positions}; patch i is of class i % C with probability 0.8; teacher i % N has the largest share."""
    names = [name for name, coords in slides.items() for _ in coords]
    x, y = np.array([corner for coords in slides.values() for corner in coords]).T
    n, C, N = len(names), len(classes), len(TEACHERS)
    probabilities = np.full((n, C), 0.2 / (C - 1), np.float32)
    teacher_shares = np.full((n, N), 0.4 / (N - 1), np.float32)
    probabilities[np.arange(n), np.arange(n) % C] = 0.8
    teacher_shares[np.arange(n), np.arange(n) % N] = 0.6
    columns = {"row": np.arange(n), "slide": pa.array(names).dictionary_encode(), "x": x, "y": y}
    columns["prediction"] = pa.array([classes[i % C] for i in range(n)]).dictionary_encode()
    columns |= {f"probability_{name}": probabilities[:, i] for i, name in enumerate(classes)}
    if shares:
        columns |= {f"share_{name}": teacher_shares[:, i] for i, name in enumerate(TEACHERS)}
    manifest = ScoresManifest(
        classes=list(classes),
        teachers=list(TEACHERS),
        missing_teachers=[],
        rows=n,
        shares=shares,
        forced=False,
        geometry=geometry or {},
    )
    return sf.Scores(manifest, [pa.table(columns)])


def recorded(patch_size, unit="pixels", mpp=None):
    return SimpleNamespace(unit=unit, patch_size=patch_size, level=0, mpp=mpp, reader=None)


def colours_of(path):
    from matplotlib import image

    return (image.imread(path)[..., :3] * 255).round().astype(int)
