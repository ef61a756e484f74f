"""The tissue below a map: from the slide's file, or from an image of it such as a thumbnail of TRIDENT or CLAM."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError, ShazamError

if TYPE_CHECKING:
    from PIL import Image

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")  # which are no slides


class Tissue:
    """Finds and reads the tissue of slides.

    Args:
        path: the file of the one slide, or a folder with a file per slide, of its name.
        downsample: level-0 pixels per pixel, where the files are images of whole slides; None: they are slides.
        slides: names of the slides that are drawn.

    Raises:
        ImageError: no image there, or none of these slides.
        MismatchError: a slide without a file.
        ShazamError: Pillow is missing, or `downsample` for an image.
    """

    def __init__(self, path: Path, downsample: float | None, slides: tuple[str, ...]) -> None:
        try:
            from ..images.overview import find_slides
        except ImportError as error:
            raise ShazamError("tissue below maps needs Pillow: pip install 'shazam_fast[slides]'") from error
        self._files, self._downsample = find_slides(path, slides), downsample
        if missing := [name for name in slides if name not in self._files]:
            raise MismatchError(
                f"tissue {path}: no file of slide {missing[0]!r} ({len(missing)} of {len(slides)} slides)"
            )
        for file in self._files.values():
            if downsample is None and file.suffix.lower() in IMAGES:
                raise ShazamError(
                    f"tissue {file}: an image, not a slide; give the level-0 pixels per pixel of the image: "
                    "downsample= (--downsample)"
                )

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
            from ..images.decoding import decode

            image, corner, scale = decode(file), np.zeros(2), np.full(2, self._downsample)
        box = np.concatenate([(origin - corner) / scale, (origin + extent - corner) / scale])
        return _cut(image, box, shape)


def _from_slide(
    file: Path, origin: NDArray[Any], extent: NDArray[Any], shape: tuple[int, int]
) -> tuple["Image.Image", NDArray[Any], NDArray[Any]]:
    """The part from the slide's first row and column on, its corner, and its level-0 pixels per pixel."""
    from PIL import Image

    from ..images.overview import read_overview

    low, high = np.maximum(np.floor(origin), 0).astype(int), np.ceil(origin + extent).astype(int)
    if (high <= low).any():
        raise MismatchError(f"{file}: the patches lie outside the slide, at {high.tolist()} and before")
    width, height = np.maximum(1, np.round((high - low) / extent * shape[::-1])).astype(int).tolist()
    pixels = read_overview(file, tuple(low.tolist()), tuple((high - low).tolist()), (height, width))
    return Image.fromarray(pixels), low, (high - low) / (width, height)


def _cut(image: "Image.Image", box: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The box of an image, resized to `shape`; white where it reaches over the edge."""
    from PIL import Image

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
