"""Decode image files to 8-bit RGB without loss; anything else is an error.

Greyscale, bilevel and palette images become RGB exactly, and so do images with an alpha channel that is opaque
everywhere. What 8-bit RGB cannot hold is an error, because Pillow drops or cuts it without a warning: several pages,
further channels, transparency, more than 8 bits per channel, signed values, floats, CMYK. Colour profiles and the
orientation that a camera notes are not applied, as in torchvision and TRIDENT.
"""

import os
import struct
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import ArchiveError, ImageError
from ..runtime.files import open_regular

# What Pillow raises on a file that is no image, truncated, or corrupt.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
REDUCED = 1  # bit of a TIFF page's NewSubfileType: a smaller copy of another page
NEW_SUBFILE_TYPE, SAMPLES_PER_PIXEL, SAMPLE_FORMAT = 254, 277, 339  # TIFF tags
UNSIGNED, UNDEFINED = 1, 4  # values of SAMPLE_FORMAT that hold plain pixels
JPEG2000_SIZE = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 stream and its segment of sizes
JPEG2000_HEAD = 1 << 16  # bytes in which that segment lies
SAVE_AS_RGB = "save it as 8-bit RGB"


def decode(path: Path) -> Image.Image:
    """The image in a file.

    Args:
        path: a regular file, or a link to one.

    Returns:
        The image in mode RGB.

    Raises:
        ImageError: naming the file, when it is missing, not a regular file, not an image, truncated or corrupt, or when
            8-bit RGB cannot hold all of it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (2, 2), 7).save(f"{folder}/grey.png")
    ...     decode(Path(folder) / "grey.png").getpixel((0, 0))
    (7, 7, 7)
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            f"{path}: PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so truncated images would be filled with grey; "
            "set it to False before reading images"
        )
    try:
        with open_image(path) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                with Image.open(file) as image:
                    _require_8_bits(path, image, file)
                    _require_all_channels(path, image)
                    _require_one_page(path, image)
                    image.load()
                    return to_rgb(path, image)
            except UnidentifiedImageError:
                kind = "not an image that Pillow can read" if size else "empty file"
                raise ImageError(f"{path}: {kind} ({size} bytes)") from None
    except PILLOW_ERRORS as error:
        raise ImageError(f"{path}: cannot be decoded: {error}") from None


def open_image(path: Path) -> BinaryIO:
    """A regular file opened for reading. Raises ImageError for a pipe, a device, a directory or a missing file."""
    try:
        return BufferedReader(open_regular(path))
    except ArchiveError as error:
        raise ImageError(str(error)) from None


def to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """A decoded image as RGB without loss. Raises ImageError where that is not possible."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        lowest = image.getchannel("A").getextrema()[0]
        if lowest != 255:
            raise ImageError(
                f"{path}: has transparent pixels (alpha down to {lowest}), and tools differ in the colour that they "
                f"give these; lay it over a background and {SAVE_AS_RGB}"
            )
        return image.convert("RGB")
    if image.mode in ("1", "L", "P"):
        return image.convert("RGB")
    raise ImageError(
        f"{path}: mode {image.mode} has no exact 8-bit RGB; convert it with its colour profile and {SAVE_AS_RGB}"
    )


def _require_8_bits(path: Path, image: Image.Image, file: BinaryIO) -> None:
    """Raise ImageError for channels of more than 8 bits, or of signed values, that Pillow would cut or reinterpret."""
    stored = " ".join(str(tile[3]) for tile in getattr(image, "tile", []))
    if ";16" in stored or image.mode.startswith("I") or _bits_of_jpeg2000(image, file) > 8:
        raise ImageError(f"{path}: more than 8 bits per channel; scale it and {SAVE_AS_RGB}")
    formats = _tags(image).get(SAMPLE_FORMAT, UNSIGNED)
    formats = formats if isinstance(formats, tuple) else (formats,)
    if image.mode != "F" and not set(formats) <= {UNSIGNED, UNDEFINED}:
        raise ImageError(f"{path}: signed values (SampleFormat {formats[0]}); scale it and {SAVE_AS_RGB}")


def _bits_of_jpeg2000(image: Image.Image, file: BinaryIO) -> int:
    """Most bits of a channel of a JPEG 2000 image, 0 for another format. Raises ValueError when it does not say."""
    if image.format != "JPEG2000":
        return 0
    position = file.tell()
    file.seek(0)
    head = file.read(JPEG2000_HEAD)
    file.seek(position)
    segment = head.find(JPEG2000_SIZE)
    if segment < 0:
        raise ValueError(f"the first {JPEG2000_HEAD} bytes do not say how many bits its channels have")
    count = int.from_bytes(head[segment + 40 : segment + 42])
    depths = head[segment + 42 : segment + 42 + 3 * count : 3]  # 7 bits of depth - 1, one for the sign
    return max((depth & 0x7F) + 1 for depth in depths)


def _require_all_channels(path: Path, image: Image.Image) -> None:
    """Raise ImageError when a TIFF stores more channels than Pillow decodes."""
    stored, decoded = _tags(image).get(SAMPLES_PER_PIXEL, 1), len(image.getbands())
    if stored > decoded:
        raise ImageError(f"{path}: {stored} channels, of which only {decoded} would be read; {SAVE_AS_RGB}")


def _require_one_page(path: Path, image: Image.Image) -> None:
    """Raise ImageError for several pages (channels, focal planes, frames); smaller copies of the first are passed over.

    The image is on its first page afterwards.
    """
    pages = getattr(image, "n_frames", 1)
    if pages == 1:
        return
    others = 0
    for page in range(1, pages):
        image.seek(page)
        others += not _tags(image).get(NEW_SUBFILE_TYPE, 0) & REDUCED
    image.seek(0)
    if others:
        raise ImageError(
            f"{path}: {others + 1} pages (channels, focal planes or frames), of which only the first would be read; "
            "save the one that is meant as a file of its own"
        )


def _tags(image: Image.Image) -> dict[int, Any]:
    """The tags of a TIFF's current page; empty for other formats."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
