"""Patches of whole-slide images, at the positions that TRIDENT and CLAM found tissue at.

Both write HDF5 files with a dataset `coords` [n, 2]: x and y of a patch's corner at level 0. Its attributes say how
large the patches are, in one of three ways:

    TRIDENT     {job}/patches/{slide}_patches.h5: patch_size_level0, the side at level 0; patch_size, the side wanted
    CLAM        patches/{slide}.h5: patch_size, the side at level patch_level
    older CLAM  the same with custom_downsample: that many times larger at level patch_level, resized to patch_size
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError, ImageError, MismatchError
from ..formats.geometry import UNITS, Geometry
from ..formats.hdf5 import opened
from ..formats.pieces import SPLITS
from ..runtime.summaries import counted
from ..tables.slide_names import IMAGE_SUFFIXES, match_slides, name_slides
from .slide_reader import choose_level, open_slide, reader_name, resolution
from .table import ImageTable, some_of

logger = logging.getLogger("shazam_fast")

COORDS_SUFFIXES = (".h5", ".hdf5")
LARGEST_SIDE = 1 << 15  # pixels; a larger side of a patch is an error
INFLATION = 1100  # times that compressed coords may be larger than their bytes in the file (gzip: 1,032)


@dataclass(frozen=True)
class _SlidePatches:
    """The patches of one slide: corners int64 [n, 2] and side at level 0, and the side that they are resized to."""

    path: Path
    name: str
    corners: NDArray[np.int64]
    side_level0: int
    side: int
    over_edge: int
    geometry: Geometry


def slide_patches(slides: str | Path, coords: str | Path) -> ImageTable:
    """Patches of one slide, or of many.

    Args:
        slides: a whole-slide image, or a folder of them.
        coords: TRIDENT's or CLAM's coords file of that slide, or the folder of theirs (.h5 or .hdf5). Slides of the
            folder that have no coords file are left out, which is logged with their number. A coords file is of the
            slide that the attribute `name` of its coords names, else of the one that it is called after.

    Returns:
        One row per patch, in the order of the coords files; with `geometry` per slide, and in `over_edge` the number
        of patches that reach over the edge of their slide (black outside it).

    Raises:
        ImageError: a coords file has no slide, a slide cannot be opened, or there is no patch at all.
        MismatchError: positions outside the slide, or another slide's size: the coords are another slide's; a coords
            file that fits two slides.
        ArchiveError: a file that is not a coords file of these tools.
        ShazamError: neither openslide nor tiffslide is installed.
    """
    found = [_read_patches(*pair) for pair in _pair(Path(slides), Path(coords))]
    if empty := [one.name for one in found if not len(one.corners)]:
        logger.warning("%s: left out %s without a patch: %s", coords, counted(len(empty), "slide"), some_of(empty))
    found = [one for one in found if len(one.corners)]
    if not found:
        raise ImageError(f"{coords}: no images: the coords hold no patch")
    counts = [len(one.corners) for one in found]
    sides = np.array([(one.side_level0, one.side) for one in found], dtype=np.int32)
    return ImageTable(
        paths=tuple(one.path for one, n in zip(found, counts, strict=True) for _ in range(n)),
        labels=np.full(sum(counts), -1, dtype=np.int64),
        classes=(),
        splits=np.full(sum(counts), SPLITS["none"], dtype=np.uint8),
        slides=tuple(one.name for one, n in zip(found, counts, strict=True) for _ in range(n)),
        coords=np.concatenate([one.corners for one in found]).astype(np.int32),
        sides=np.repeat(sides, counts, axis=0),
        geometry={one.name: one.geometry for one in found},
        over_edge=sum(one.over_edge for one in found),
    )


def _pair(slides: Path, coords: Path) -> list[tuple[str, Path, Path]]:
    """(name, slide, coords file) of every slide that has both, in the order of the coords files."""
    if slides.is_file() and coords.is_file():
        name = name_slides([slides.name])[0]
        if not any(index >= 0 for index in match_slides(_names_given(coords), [name], str(coords), str(slides))):
            logger.warning("%s: by their names these are the coords of another slide than %s", coords, slides.name)
        return [(name, slides, coords)]
    if slides.is_dir() and coords.is_dir():
        files = _files_of(coords, COORDS_SUFFIXES)
        known = _files_of(slides, IMAGE_SUFFIXES)
        if not files:
            raise ImageError(f"{coords}: no coords file ({', '.join(COORDS_SUFFIXES)}) found")
        return _pair_folders(slides, known, coords, files)
    raise ImageError(f"{slides}, {coords}: a slide and its coords file, or a folder of slides and one of .h5 expected")


def _pair_folders(slides: Path, known: list[Path], coords: Path, files: list[Path]) -> list[tuple[str, Path, Path]]:
    names = name_slides([path.name for path in known]) if known else []
    found = {file: _find(file, names, slides) for file in files}
    if missing := [file.name for file, index in found.items() if index < 0]:
        raise ImageError(f"{slides}: no slide for {len(missing)} coords files in {coords}: {some_of(missing)}")
    indices = list(found.values())
    if repeated := [file.name for file, index in found.items() if indices.count(index) > 1]:
        raise MismatchError(f"{coords}: several coords files are of one slide: {some_of(repeated)}; keep one of them")
    if left_out := [path.name for index, path in enumerate(known) if index not in indices]:
        count = counted(len(left_out), "slide")
        logger.warning("%s: left out %s without coords: %s", slides, count, some_of(left_out))
    return [(names[index], known[index], file) for file, index in found.items()]


def _find(file: Path, names: list[str], slides: Path) -> int:
    """Index of the slide that a coords file is of, -1 for none."""
    for given in _names_given(file):
        if (index := int(match_slides([given], names, str(file), str(slides))[0])) >= 0:
            return index
    return -1


def _files_of(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Regular files of a folder that are not hidden and have one of the suffixes, in any case."""
    names = sorted(folder.iterdir())
    return [file for file in names if file.name[0] != "." and file.suffix.lower() in suffixes and file.is_file()]


def _names_given(file: Path) -> list[str]:
    """What a coords file calls its slide: by the attribute of its coords where there is one, and by its own name."""
    with opened(file) as content:
        name = content["coords"].attrs.get("name") if "coords" in content else None
    own = file.stem.removesuffix("_patches")
    return [name, own] if isinstance(name, str) and name else [own]


def _read_patches(name: str, path: Path, file: Path) -> _SlidePatches:
    """Where a slide's patches lie, checked against the slide."""
    corners, attributes = _read_coords(file)
    slide = open_slide(path)
    level0, side = _read_sides(file, attributes, slide.level_downsamples)
    width, height = slide.dimensions
    size = attributes.get("level0_width", width), attributes.get("level0_height", height)
    if size != (width, height):
        raise MismatchError(
            f"{file}: coords of a slide of {size[0]} x {size[1]} pixels, but {path} has {width} x {height}: they are "
            "another slide's"
        )
    if (outside := np.flatnonzero((corners < 0).any(axis=1))).size:
        raise MismatchError(
            f"{file}: row {outside[0]}: position {corners[outside[0]].tolist()} lies left of or above the slide; "
            f"corners are pixels of level 0, counted from 0, 0; leave these {outside.size} patches out of the file, or "
            "write it anew with the tool that found the tissue"
        )
    if len(corners) and (corners.max(axis=0) >= (width, height)).any():
        raise MismatchError(
            f"{file}: positions from {corners.min(axis=0).tolist()} to {corners.max(axis=0).tolist()}, but {path} has "
            f"{width} x {height} pixels: are these the coords of another slide?"
        )
    over = int((corners + level0 > (width, height)).any(axis=1).sum())
    if over:
        logger.info("%s: %d of %d patches reach over the edge; black outside", path, over, len(corners))
    level, _ = choose_level(slide.level_downsamples, level0, side)
    geometry = Geometry("pixels", float(level0), level, resolution(slide), reader_name())
    return _SlidePatches(path, name, corners, level0, side, over, geometry)


def _read_sides(file: Path, attributes: dict[str, Any], downsamples: tuple[float, ...]) -> tuple[int, int]:
    """The side of the patches at level 0, and the side that they are resized to, in pixels."""
    try:
        side = _whole(attributes["patch_size"])
        if "patch_size_level0" in attributes:
            level0 = _whole(attributes["patch_size_level0"])
        else:
            level = _whole(attributes["patch_level"])
            level0 = round(side * _downsample_of(downsamples, level) * float(attributes.get("custom_downsample", 1)))
    except (KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise ArchiveError(
            f"{file}: attributes patch_size and patch_size_level0 (TRIDENT) or patch_level (CLAM) of the dataset "
            f"'coords' expected, found {sorted(attributes)}: {error!r}"
        ) from None
    if not (1 <= side <= LARGEST_SIDE and 1 <= level0 <= LARGEST_SIDE):
        raise ArchiveError(f"{file}: patches of {side} pixels, {level0} at level 0: not a size")
    return level0, side


def _downsample_of(downsamples: tuple[float, ...], level: int) -> float:
    """The downsample of a level. Raises IndexError when the slide does not have it."""
    if not 0 <= level < len(downsamples):
        raise IndexError(f"patch_level {level} of a slide with {len(downsamples)} levels")
    return downsamples[level]


def _whole(value: Any) -> int:
    """A whole number. Raises ValueError for another."""
    if int(value) != value:
        raise ValueError(f"a whole number of pixels expected, found {value}")
    return int(value)


def _read_coords(file: Path) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Corners [n, 2] and attributes of the dataset `coords`."""
    with opened(file) as content:
        if "coords" not in content:
            raise ArchiveError(f"{file}: a dataset 'coords' expected, found {sorted(content)}")
        coords = content["coords"]
        shape: tuple[int, ...] = getattr(coords, "shape", ())
        if len(shape) != 2 or shape[1] != 2:
            raise ArchiveError(f"{file}: coords of shape [patches, 2] expected, found {shape}")
        attributes, stored = dict(coords.attrs), coords.id.get_storage_size()
        if coords.nbytes > INFLATION * stored:
            raise ArchiveError(f"{file}: corrupt: coords of shape {shape} in {stored} bytes")
        units = [told["unit"] for told in (content.attrs, attributes) if "unit" in told]
        if any(UNITS.get(str(unit)) != "pixels" for unit in units):
            raise ArchiveError(f"{file}: coords in pixels of level 0 expected, found the unit {units[0]!r} (STAMP's?)")
        values = np.asarray(coords[:])
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or (values != np.trunc(values)).any():
        raise ArchiveError(f"{file}: whole numbers of pixels expected as coords, found {values.dtype} that are not")
    return values.astype(np.int64), attributes
