"""A part of a whole-slide image, made small: what pictures of slides are drawn over."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError, MismatchError
from ..tables.slide_names import IMAGE_SUFFIXES, match_slides, name_slides, show
from .decoding import PILLOW_ERRORS
from .slide_reader import choose_level, open_slide

LARGEST_READ = 1 << 27  # pixels that are read of a slide for one overview


def find_slides(images: str | Path | Mapping[str, str | Path], names: Sequence[str]) -> dict[str, Path]:
    """The file of each slide that has one.

    Args:
        images: a folder of whole-slide images, one image, or {slide: image}.
        names: of slides.

    Raises ImageError when there is no image, or none is of these slides.

    >>> find_slides({"s1": "slides/s1.svs"}, ["s1", "s2"])
    {'s1': PosixPath('slides/s1.svs')}
    """
    if isinstance(images, Mapping):
        given, where = {name: Path(file) for name, file in images.items()}, "images"
    else:
        root = Path(images)
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        files = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
        if not files:
            raise ImageError(
                f"{images}: no whole-slide image; a folder of them, one image or {{slide: image}} expected"
            )
        below = root if root.is_dir() else root.parent
        given, where = dict(zip(name_slides(files, below), files, strict=True)), str(images)
    found = match_slides(list(given), names, where, "the scores").tolist()
    if max(found, default=-1) < 0:
        raise ImageError(f"{where}: no image of the slides {show(list(names))}; found {show(list(given))}")
    return {names[index]: file for index, file in zip(found, given.values(), strict=True) if index >= 0}


def read_overview(
    path: Path, corner: tuple[int, int], extent: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """A part of a slide in few pixels.

    Args:
        path: the slide.
        corner: x and y of its upper left corner, in pixels of level 0.
        extent: its width and height, in pixels of level 0.
        shape: height and width wanted.

    Returns RGB, uint8 [height, width, 3]; white outside the slide.

    Raises ImageError, naming the file, when it cannot be read or has no level that is small enough; MismatchError when
    the part lies outside it.
    """
    slide = open_slide(path)
    width, height = slide.dimensions
    if corner[0] >= width or corner[1] >= height:
        raise MismatchError(
            f"{path}: the patches begin at {corner[0]}, {corner[1]}, but the slide has {width} x {height} pixels; is "
            "it another slide, or are positions in another unit?"
        )
    level, _ = choose_level(slide.level_downsamples, max(extent), max(shape))
    scale = slide.level_downsamples[level]
    size = max(1, round(extent[0] / scale)), max(1, round(extent[1] / scale))
    if size[0] * size[1] > LARGEST_READ:
        raise ImageError(
            f"{path}: its smallest level has {size[0]} x {size[1]} pixels where the patches lie; save it as a pyramid, "
            "or draw without images"
        )
    try:
        region = slide.read_region(corner, level, size).convert("RGB")
    except (*PILLOW_ERRORS, RuntimeError, NotImplementedError) as error:
        raise ImageError(f"{path}: the part at {corner[0]}, {corner[1]} cannot be read: {error}") from None
    pixels = np.array(region.resize((shape[1], shape[0]), Image.Resampling.BOX), dtype=np.uint8)
    inside = [min(n, round(n * (end - start) / part)) for n, end, start, part in zip(
        (shape[1], shape[0]), (width, height), corner, extent, strict=True)]  # fmt: skip
    pixels[inside[1] :], pixels[:, inside[0] :] = 255, 255
    return pixels
