"""The demo's tissue: one stained image, the stain that the teachers see, and the stain that is to be predicted.

The image is scikit-image's `immunohistochemistry` (colon glands, 512 x 512, inside its wheel, so nothing is
downloaded). Its colours are unmixed into hematoxylin (nuclei) and DAB (the antibody). Teachers see patches
of hematoxylin alone; the label of a patch is how much DAB it carries. So the task is: tell from the
structure of the tissue what a second stain would show.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shazam_fast.errors import ShazamError

CLASSES = ("negative", "weak", "strong")
AREAS = 5  # per side of the image; an area is to the demo what a patient is to a study: whole in one split

MIN_SIZE = 16  # pixels: teachers compare pixels up to 5 apart in every direction

# Stain units (absorbance as `rgb2hed` scales it) below which contrast is noise: without it, normalising
# would blow up the grain of empty glass until it looked like tissue.
CONTRAST_FLOOR = 0.002
# Pixels. Where DAB is dense little light is left, and unmixing turns its grain into hematoxylin grain, which
# gives labels away (a linear probe gains 0.07 of balanced accuracy from it): smooth it off.
GRAIN_SIGMA = 1.0
MARGIN = 4  # pixels that the filter reaches: patches keep that far from the border of their area


@dataclass(frozen=True)
class Tissue:
    """One image and its two stains; stains are in the absorbance units of `skimage.color.rgb2hed`."""

    rgb: NDArray[np.uint8]  # [H, W, 3]
    hematoxylin: NDArray[np.float32]  # [H, W]
    dab: NDArray[np.float32]  # [H, W]


@dataclass(frozen=True)
class Patches:
    """Overlapping square patches of one tissue; `size` and `coords` are in pixels."""

    pixels: NDArray[np.float32]  # [n, s, s], hematoxylin, each patch at mean 0 and (nearly) variance 1
    coords: NDArray[np.int32]  # [n, 2], x and y of the top-left corner
    labels: NDArray[np.int64]  # [n], index into CLASSES
    areas: NDArray[np.int64]  # [n], the area that the patch lies in; patches of two areas share no pixel
    size: int


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


def cut_patches(tissue: Tissue, size: int = 40, stride: int = 9) -> Patches:
    """Cut overlapping square patches, each whole in one area of the image, with its label.

    Args:
        tissue: what `load_tissue` gives; square.
        size: side of a patch in pixels.
        stride: distance between two neighbours in pixels.

    Raises:
        ShazamError: no such patch fits into an area, or the tissue has no DAB to grade.

    >>> cut_patches(load_tissue(), size=64, stride=32).pixels.shape
    (25, 64, 64)
    """
    borders = np.linspace(0, len(tissue.dab), AREAS + 1).astype(int)
    largest = int(np.diff(borders).min()) - 2 * MARGIN
    if not MIN_SIZE <= size <= largest or stride < 1:
        expected = f"a patch size of {MIN_SIZE} to {largest} pixels and a stride of 1 or more"
        raise ShazamError(f"expected {expected}, found size {size} and stride {stride}")
    starts = [np.arange(a + MARGIN, b - MARGIN - size + 1, stride) for a, b in pairwise(borders)]
    place, area = np.concatenate(starts), np.repeat(np.arange(AREAS), [len(own) for own in starts])
    row, column = (index.ravel() for index in np.indices((len(place), len(place))))
    coords = np.stack([place[column], place[row]], axis=1).astype(np.int32)  # [n, 2]
    labels = _grade(_crop(tissue.dab, coords, size).mean(axis=(1, 2)))
    pixels = _normalise(_crop(tissue.hematoxylin, coords, size))
    return Patches(pixels, coords, labels, AREAS * area[row] + area[column], size)


def _crop(plane: NDArray[np.float32], coords: NDArray[np.int32], size: int) -> NDArray[np.float32]:
    windows = np.lib.stride_tricks.sliding_window_view(plane, (size, size))
    return windows[coords[:, 1], coords[:, 0]]  # [n, s, s]


def _grade(levels: NDArray[np.float32]) -> NDArray[np.int64]:
    """Turn mean DAB into classes at its natural gaps (multi-Otsu)."""
    from skimage.filters import threshold_multiotsu

    if np.unique(levels).size < len(CLASSES):
        raise ShazamError(f"expected {len(CLASSES)} levels of DAB or more, found fewer")
    return np.digitize(levels, threshold_multiotsu(levels, len(CLASSES))).astype(np.int64)


def _normalise(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shift each patch to mean 0 and scale it to variance 1, so that only structure is left to see.

    Unmixing is imperfect: DAB bleeds into hematoxylin, and its mere brightness would give labels away.
    Structure can still carry a trace (dense membranes leave pale lines), as on a real slide.
    """
    mean = patches.mean(axis=(1, 2), keepdims=True)
    deviation = patches.std(axis=(1, 2), keepdims=True)
    return np.asarray((patches - mean) / np.hypot(deviation, CONTRAST_FLOOR), dtype=np.float32)
