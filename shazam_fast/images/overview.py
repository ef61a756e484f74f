"""What pictures of slides are drawn over: a part of a whole-slide image, or of an image of it, made small."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError, MismatchError, ShazamError
from ..tables.slide_names import IMAGE_SUFFIXES, PICTURE_SUFFIXES, match_slides, name_slides, show
from .decoding import PILLOW_ERRORS, decode
from .slide_reader import choose_level, open_slide, scanned_from

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
        region = _on_white(slide.read_region(corner, level, size))
    except (*PILLOW_ERRORS, RuntimeError, NotImplementedError) as error:
        raise ImageError(f"{path}: the part at {corner[0]}, {corner[1]} cannot be read: {error}") from None
    pixels = np.array(region.resize((shape[1], shape[0]), Image.Resampling.BOX), dtype=np.uint8)
    inside = [min(n, round(n * (end - start) / part)) for n, end, start, part in zip(
        (shape[1], shape[0]), (width, height), corner, extent, strict=True)]  # fmt: skip
    pixels[inside[1] :], pixels[:, inside[0] :] = 255, 255
    return pixels


def _on_white(region: Image.Image) -> Image.Image:
    """A region in RGB; what was not scanned is transparent, and becomes white."""
    if region.mode != "RGBA":
        return region.convert("RGB")
    page = Image.new("RGBA", region.size, "white")
    page.alpha_composite(region)
    return page.convert("RGB")


class Tissue:
    """Finds and reads the tissue below maps: from slides, or from images of them such as thumbnails of TRIDENT or CLAM.

    Args:
        path: the file of the one slide, or a folder with a file per slide, of its name.
        downsample: level-0 pixels per pixel, where the files are images of whole slides, with the empty border that
            some formats have; None: they are slides.
        slides: names of the slides that are drawn.

    Raises:
        ImageError: no image there, or none of these slides.
        MismatchError: a slide without a file.
        ShazamError: `downsample` is missing for an image.
    """

    def __init__(self, path: Path, downsample: float | None, slides: tuple[str, ...]) -> None:
        self._files, self._downsample = find_slides(path, slides), downsample
        if missing := [name for name in slides if name not in self._files]:
            raise MismatchError(
                f"tissue {path}: no file of slide {missing[0]!r} ({len(missing)} of {len(slides)} slides)"
            )
        for file in self._files.values():
            if downsample is None and file.suffix.lower() in PICTURE_SUFFIXES:
                raise ShazamError(
                    f"tissue {file}: an image, not a slide; give the level-0 pixels per pixel of the image: "
                    "downsample= (--downsample)"
                )

    def scanned_from(self, slide: str) -> tuple[int, int]:
        """Upper left corner of the scanned area in level-0 pixels, see `scanned_from`; 0, 0 for images of slides."""
        return (0, 0) if self._downsample else scanned_from(open_slide(self._files[slide]))

    def read(self, slide: str, origin: NDArray[Any], extent: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.uint8]:
        """The part of a slide that a map shows, white beyond its edge.

        Args:
            slide: its name.
            origin, extent: upper left corner and size of the part in level-0 pixels, x and y.
            shape: height and width in pixels of the map.

        Returns RGB, uint8 [H, W, 3].

        Raises ImageError when it cannot be read; MismatchError when the part lies outside the slide.
        """
        file = self._files[slide]
        if self._downsample is None:
            image, corner, scale = _from_slide(file, origin, extent, shape)
        else:
            image, corner, scale = decode(file), np.zeros(2), np.full(2, self._downsample)
        box = np.concatenate([(origin - corner) / scale, (origin + extent - corner) / scale])
        return _cut(image, box, shape)


def _from_slide(
    file: Path, origin: NDArray[Any], extent: NDArray[Any], shape: tuple[int, int]
) -> tuple[Image.Image, NDArray[Any], NDArray[Any]]:
    """The part from the slide's first row and column on, its corner, and its level-0 pixels per pixel."""
    low, high = np.maximum(np.floor(origin), 0).astype(int), np.ceil(origin + extent).astype(int)
    if (high <= low).any():
        raise MismatchError(f"{file}: the patches lie outside the slide, at {high.tolist()} and before")
    width, height = np.maximum(1, np.round((high - low) / extent * shape[::-1])).astype(int).tolist()
    pixels = read_overview(file, tuple(low.tolist()), tuple((high - low).tolist()), (height, width))
    return Image.fromarray(pixels), low, (high - low) / (width, height)


def _cut(image: Image.Image, box: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The box of an image, resized to `shape`; white where it reaches over the edge."""
    height, width = shape
    x_scale, y_scale = width / (box[2] - box[0]), height / (box[3] - box[1])
    limits = [0, 0, *image.size]
    inner = tuple((np.maximum if i < 2 else np.minimum)(box[i], limits[i]).item() for i in range(4))
    page = Image.new("RGB", (width, height), "white")
    size = (round((inner[2] - inner[0]) * x_scale), round((inner[3] - inner[1]) * y_scale))
    if min(size) > 0:
        part = image.resize(size, Image.Resampling.BOX, box=inner)
        page.paste(part, (round((inner[0] - box[0]) * x_scale), round((inner[1] - box[1]) * y_scale)))
    return np.asarray(page)
