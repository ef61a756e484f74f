"""The probabilities of a slide as an OME-TIFF image, which QuPath lays over the slide."""

from pathlib import Path

import numpy as np

from ...errors import ShazamError
from ...runtime.files import UNFINISHED
from ..painting import paint
from ..slide_scores import SlideScores

PER_STEP = 8  # pixels of the overlay per step from patch to patch
MOST = 2048  # pixels of its longer side
TILE = 256


def require_tifffile() -> None:
    """Raise ShazamError when tifffile is not installed."""
    try:
        import tifffile  # noqa: F401 - is it there?
    except ImportError:
        raise ShazamError("an overlay needs tifffile: pip install 'shazam_fast[slides]'") from None


def write_overlay(slide: SlideScores, path: Path) -> None:
    """Write an image that begins at position 0, 0 of the slide: one channel per class, float32, NaN without patches.

    A pixel is an eighth of the step between patches, larger where the longer side would have more than 2048 pixels; in
    it is the mean of the patches that cover it. Its size in micrometres is recorded where the slide's is known.

    Args:
        slide: positions and size are in level-0 pixels. What lies left of 0 or above it is cut off.
        path: the file; written under a temporary name and renamed.
    """
    import tifffile

    extent = np.maximum(slide.coords.max(axis=0) + slide.size, 1.0)
    pixel = max(_step(slide) / PER_STEP, float(extent.max()) / MOST)  # level-0 pixels
    width, height = np.ceil(extent / pixel - 1e-6).astype(int).tolist()
    low, high = (np.round(corner / pixel).astype(np.int64) for corner in (slide.coords, slide.coords + slide.size))
    high = np.maximum(high, low + 1)
    low, high = (corner.clip(0, (width, height)) for corner in (low, high))
    mean = paint(low, high, slide.probabilities, (height, width))  # [H, W, C]
    metadata: dict[str, object] = {"axes": "CYX", "Channel": {"Name": list(slide.classes)}, "Name": slide.name}
    if slide.mpp:
        size = slide.mpp * pixel
        metadata |= {"PhysicalSizeX": size, "PhysicalSizeY": size}
        metadata |= {"PhysicalSizeXUnit": "\u00b5m", "PhysicalSizeYUnit": "\u00b5m"}
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        tifffile.imwrite(
            unfinished, np.moveaxis(mean, 2, 0).astype(np.float32), ome=True, metadata=metadata, tile=(TILE, TILE),
            photometric="minisblack", compression="zlib",
        )  # fmt: skip
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _step(slide: SlideScores) -> float:
    """The smallest distance between neighbours along x or y, at most the side of a patch."""
    steps = [np.diff(np.unique(slide.coords[:, axis].round(2))) for axis in (0, 1)]
    return float(min([slide.size, *(step.min() for step in steps if len(step))]))
