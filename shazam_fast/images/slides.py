"""Patches of whole-slide images, at the positions that TRIDENT and CLAM found tissue at.

Both write HDF5 files with a dataset `coords` [n, 2]: x and y of a patch's corner at level 0. Its attributes say how
large the patches are, in one of two ways:

    TRIDENT  {job}/patches/{slide}_patches.h5: patch_size_level0, the side at level 0, and patch_size, the side wanted
    CLAM     patches/{slide}.h5: patch_size, the side at level patch_level

Slides are read through openslide where it is installed, else through tiffslide.
"""

import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ArchiveError, ImageError, MismatchError, ShazamError
from ..formats.hdf5 import opened
from ..formats.pieces import SPLITS
from ..runtime.slide_names import IMAGE_SUFFIXES
from .decoding import PILLOW_ERRORS, WHITE, to_rgb
from .table import ImageTable

BACKENDS = (("openslide", "OpenSlide"), ("tiffslide", "TiffSlide"))
TOLERANCE = 1.01  # levels said to be 4 times smaller are 4.0003 times smaller


def slide_patches(slides: str | Path, coords: str | Path) -> ImageTable:
    """Patches of one slide, or of many.

    Args:
        slides: a whole-slide image, or a folder of them.
        coords: TRIDENT's or CLAM's coords file of that slide, or the folder of theirs; slides without one are left out.

    Raises:
        ImageError: a coords file has no slide, a slide cannot be opened, or there is no patch at all.
        MismatchError: positions outside the slide: the coords are another slide's.
        ArchiveError: a coords file that is not one.
        ShazamError: neither openslide nor tiffslide is installed.
    """
    pairs = _pair(Path(slides), Path(coords))
    found = [_read_patches(slide, file) for slide, file in pairs]
    counts = [len(corners) for corners, _ in found]
    return ImageTable(
        paths=tuple(slide for (slide, _), n in zip(pairs, counts, strict=True) for _ in range(n)),
        labels=np.full(sum(counts), -1, dtype=np.int64),
        classes=(),
        splits=np.full(sum(counts), SPLITS["none"], dtype=np.uint8),
        slides=tuple(slide.stem for (slide, _), n in zip(pairs, counts, strict=True) for _ in range(n)),
        coords=np.concatenate([corners for corners, _ in found]).astype(np.int32),
        sides=np.concatenate([np.tile(sides, (len(corners), 1)) for corners, sides in found]).astype(np.int32),
    )


class SlideReader:
    """Reads patches of slides; every thread keeps the slide that it read last open, since rows come slide by slide."""

    def __init__(self) -> None:
        self._last = threading.local()

    def read(self, path: Path, x: int, y: int, side_level0: int, side: int) -> Image.Image:
        """The patch with its corner at x, y of level 0, resized to `side`, as RGB; white beyond the slide's edges.

        It is read from the smallest level that is no smaller than wanted. Raises ImageError when that fails.
        """
        slide = self._open(path)
        try:
            level = slide.get_best_level_for_downsample(TOLERANCE * side_level0 / side)
            downsample = slide.level_downsamples[level]
            size = max(1, round(side_level0 / downsample))
            width, height = slide.level_dimensions[level]
            width, height = min(size, width - round(x / downsample)), min(size, height - round(y / downsample))
            region = to_rgb(path, slide.read_region((x, y), level, (width, height)))
        except (*PILLOW_ERRORS, RuntimeError, NotImplementedError) as error:
            raise ImageError(f"{path}: the patch at {x}, {y} cannot be read: {error}") from None
        if (width, height) != (size, size):
            inside, region = region, Image.new("RGB", (size, size), WHITE)
            region.paste(inside)
        return region if size == side else region.resize((side, side), Image.Resampling.BICUBIC)

    def _open(self, path: Path) -> Any:
        if getattr(self._last, "path", None) != path:
            self._last.slide = _open_slide(path)
            self._last.path = path
        return self._last.slide


def _pair(slides: Path, coords: Path) -> list[tuple[Path, Path]]:
    """(slide, coords file) of every slide that has both."""
    if slides.is_file() and coords.is_file():
        return [(slides, coords)]
    if slides.is_dir() and coords.is_dir():
        by_name = {file.stem: file for file in sorted(slides.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES}
        files = {file.stem.removesuffix("_patches"): file for file in sorted(coords.glob("*.h5"))}
        if missing := sorted(set(files) - set(by_name)):
            raise ImageError(
                f"{slides}: no slide for {len(missing)} coords files in {coords}: {', '.join(missing[:5])}"
            )
        if files:
            return [(by_name[name], file) for name, file in files.items()]
    raise ImageError(f"{slides}, {coords}: a slide and its coords file, or a folder of slides and one of .h5 expected")


def _read_patches(path: Path, file: Path) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Corners [n, 2] at level 0 of a slide's patches; their side at level 0, and the side wanted."""
    corners, attributes = _read_coords(file)
    slide = _open_slide(path)
    try:
        side = int(attributes["patch_size"])
        if "patch_size_level0" in attributes:
            level0 = int(attributes["patch_size_level0"])
        else:
            level0 = round(side * slide.level_downsamples[int(attributes["patch_level"])])
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ArchiveError(
            f"{file}: attributes patch_size and patch_size_level0 (TRIDENT) or patch_level (CLAM) of the dataset "
            f"'coords' expected, found {sorted(attributes)}: {error!r}"
        ) from None
    width, height = slide.dimensions
    if side < 1 or level0 < 1:
        raise ArchiveError(f"{file}: patches of {side} pixels, {level0} at level 0: not a size")
    if len(corners) and (corners.min() < 0 or (corners.max(axis=0) >= (width, height)).any()):
        raise MismatchError(
            f"{file}: positions to {corners.max(axis=0).tolist()}, but {path} has {width} x {height} pixels: "
            "are these the coords of another slide?"
        )
    return corners, (level0, side)


def _read_coords(file: Path) -> tuple[NDArray[np.int64], dict[str, Any]]:
    with opened(file) as content:
        if "coords" not in content:
            raise ArchiveError(f"{file}: a dataset 'coords' expected, found {sorted(content)}")
        coords = content["coords"]
        if coords.ndim != 2 or coords.shape[1] != 2:
            raise ArchiveError(f"{file}: coords of shape [patches, 2] expected, found {coords.shape}")
        return np.asarray(coords[:], dtype=np.int64), dict(coords.attrs)


def _open_slide(path: Path) -> Any:
    for module, name in BACKENDS:
        try:
            backend = import_module(module)
        except (ImportError, OSError):  # openslide without its C library
            continue
        try:
            slide = getattr(backend, name)(str(path))
            _ = slide.dimensions  # tiffslide reads the header when it is first asked for something
        except Exception as error:
            raise ImageError(f"{path}: {module} cannot open the slide: {error}") from None
        return slide
    raise ShazamError("openslide or tiffslide is needed to read slides: pip install 'shazam_fast[slides]'")
