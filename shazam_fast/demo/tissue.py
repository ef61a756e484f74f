"""The demo's tissue: one stained image, the stain that the teachers see, and the stain that the student predicts.

The image is scikit-image's `immunohistochemistry` (colon glands, 512 x 512, inside its wheel, so nothing is
downloaded). Its colours are unmixed into hematoxylin (nuclei) and DAB (the antibody). Teachers see patches
of hematoxylin alone; the label of a patch is how much DAB it carries. So the task is: tell from the
structure of the tissue what a second stain would show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shazam_fast.errors import ShazamError

CLASSES = ("negative", "weak", "strong")
TRAIN, VAL, TEST, NO_SPLIT = 0, 1, 2, 255

# Bands of the image, as fractions of its height: each holds glands, stroma and every class.
AREAS = {VAL: (0.0, 0.22), TRAIN: (0.22, 0.70), TEST: (0.70, 1.0)}

MIN_SIZE = 16  # pixels: teachers compare pixels up to 5 apart in every direction

# Stain units (absorbance as `rgb2hed` scales it) below which contrast is noise: without it, normalising
# would blow up the grain of empty glass until it looked like tissue.
CONTRAST_FLOOR = 0.002
# Pixels. Where DAB is dense little light is left, and unmixing turns its grain into hematoxylin grain, which
# gives labels away (a linear probe gains 0.07 of balanced accuracy from it): smooth it off. The filter
# reaches 4 pixels, far less than the margin between areas.
GRAIN_SIGMA = 1.0


@dataclass(frozen=True)
class Tissue:
    """One image and its two stains; stains are in the absorbance units of `skimage.color.rgb2hed`."""

    rgb: NDArray[np.uint8]  # [H, W, 3]
    hematoxylin: NDArray[np.float32]  # [H, W]
    dab: NDArray[np.float32]  # [H, W]


@dataclass(frozen=True)
class Patches:
    """Overlapping square patches of one tissue; `size`, `stride` and `coords` are in pixels."""

    pixels: NDArray[np.float32]  # [n, s, s], hematoxylin, each patch at mean 0 and (nearly) variance 1
    coords: NDArray[np.int32]  # [n, 2], x and y of the top-left corner
    labels: NDArray[np.int64]  # [n], index into `classes`
    splits: NDArray[np.uint8]  # [n], 0 train, 1 val, 2 test, 255 none (the margins between areas)
    size: int
    stride: int
    classes: tuple[str, ...]


def load_tissue() -> Tissue:
    """Unmix scikit-image's immunohistochemistry image.

    Returns:
        The image and its two stains, 512 x 512 pixels.

    Raises:
        ShazamError: scikit-image is missing.

    >>> load_tissue().rgb.shape
    (512, 512, 3)
    """
    try:
        from scipy.ndimage import gaussian_filter
        from skimage.color import rgb2hed
        from skimage.data import immunohistochemistry
    except ImportError as error:
        raise ShazamError("the demo needs scikit-image: pip install 'shazam_fast[demo]'") from error
    rgb = np.asarray(immunohistochemistry(), dtype=np.uint8)  # [H, W, 3]
    stains = np.asarray(rgb2hed(rgb), dtype=np.float32)  # [H, W, 3]: hematoxylin, eosin, DAB
    hematoxylin = gaussian_filter(stains[..., 0], GRAIN_SIGMA)
    return Tissue(rgb, np.ascontiguousarray(hematoxylin), np.ascontiguousarray(stains[..., 2]))


def cut_patches(tissue: Tissue, size: int = 40, stride: int = 8) -> Patches:
    """Cut overlapping square patches, each with its label and its split.

    Args:
        tissue: what `load_tissue` gives.
        size: side of a patch in pixels.
        stride: distance between two neighbours in pixels.

    Returns:
        n patches; those that lie in two areas belong to no split.

    Raises:
        ShazamError: no such patch fits, or a split misses a class.

    >>> cut_patches(load_tissue(), size=64, stride=32).pixels.shape
    (225, 64, 64)
    """
    height, width = tissue.hematoxylin.shape
    if not MIN_SIZE <= size <= min(height, width) or stride < 1:
        expected = f"a patch size of {MIN_SIZE} to {min(height, width)} pixels and a stride of 1 or more"
        raise ShazamError(f"expected {expected}, found size {size} and stride {stride}")
    rows, columns = np.meshgrid(_starts(height, size, stride), _starts(width, size, stride), indexing="ij")
    coords = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.int32)  # [n, 2]
    splits = _assign_splits(coords[:, 1], size, height)
    labels = _grade(_crop(tissue.dab, coords, size).mean(axis=(1, 2)), splits == TRAIN)
    for split in AREAS:
        if len(np.unique(labels[splits == split])) < len(CLASSES):
            raise ShazamError(f"a split misses a class at size {size}, stride {stride}: use smaller ones")
    pixels = _normalise(_crop(tissue.hematoxylin, coords, size))
    return Patches(pixels, coords, labels, splits, size, stride, CLASSES)


def _starts(length: int, size: int, stride: int) -> NDArray[np.int64]:
    """Patch positions along one side; the last one touches the border, so every pixel is covered."""
    return np.unique(np.append(np.arange(0, length - size + 1, stride), length - size))


def _crop(plane: NDArray[np.float32], coords: NDArray[np.int32], size: int) -> NDArray[np.float32]:
    windows = np.lib.stride_tricks.sliding_window_view(plane, (size, size))
    return windows[coords[:, 1], coords[:, 0]]  # [n, s, s]


def _assign_splits(top: NDArray[np.int32], size: int, height: int) -> NDArray[np.uint8]:
    """Give each patch the area that holds it whole; areas lie a patch width apart: no shared pixel."""
    splits = np.full(len(top), NO_SPLIT, dtype=np.uint8)
    for split, (begin, end) in AREAS.items():
        first = begin * height + (size / 2 if begin > 0 else 0)
        last = end * height - (size / 2 if end < 1 else 0)
        splits[(top >= first) & (top + size <= last)] = split
    return splits


def _grade(levels: NDArray[np.float32], is_train: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Turn mean DAB into classes at the natural gaps (multi-Otsu) of the training area, and of it alone."""
    from skimage.filters import threshold_multiotsu

    if np.unique(levels[is_train]).size < len(CLASSES):
        raise ShazamError(f"expected {len(CLASSES)} levels of DAB or more in the training area, found fewer")
    return np.digitize(levels, threshold_multiotsu(levels[is_train], len(CLASSES))).astype(np.int64)


def _normalise(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shift each patch to mean 0 and scale it to variance 1, so that only structure is left to see.

    Unmixing is imperfect: DAB bleeds into hematoxylin, and its mere brightness would give labels away.
    Structure can still carry a trace (dense membranes leave pale lines), as on a real slide.
    """
    mean = patches.mean(axis=(1, 2), keepdims=True)
    deviation = patches.std(axis=(1, 2), keepdims=True)
    return np.asarray((patches - mean) / np.hypot(deviation, CONTRAST_FLOOR), dtype=np.float32)
