"""Images as 8-bit RGB, read without any loss that nobody asked for.

Palettes, greyscale and bilevel images become RGB exactly. Transparent pixels are laid over white: in a scan they are
glass that was not imaged, and glass is white. What RGB of 8 bits cannot hold (16 bits a channel, floats, CMYK) is
refused, because Pillow would clip or cut it without a word.
"""

import struct
import zlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import ImageError

WHITE = (255, 255, 255)
# What Pillow raises on a file that is no image, truncated, or corrupt.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def decode(path: Path) -> Image.Image:
    """The image in a file, as RGB. Raises ImageError, naming the file, when it cannot be read without loss."""
    try:
        with Image.open(path) as image:
            require_8_bits(path, image)
            image.load()
            return to_rgb(path, image)
    except UnidentifiedImageError:
        size = path.stat().st_size
        raise ImageError(f"{path}: {'not an image' if size else 'empty file'} ({size} bytes)") from None
    except PILLOW_ERRORS as error:
        raise ImageError(f"{path}: cannot be decoded: {error}") from None


def require_8_bits(path: Path, image: Image.Image) -> None:
    """Raise ImageError when the file stores 16 bits a channel, which Pillow would cut to 8 under the mode RGB."""
    stored = " ".join(str(tile[3]) for tile in getattr(image, "tile", []))
    if ";16" in stored or image.mode.startswith("I"):
        raise ImageError(f"{path}: 16 or more bits a channel; convert it to 8-bit RGB, as its teachers were trained on")


def to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """A decoded image as RGB, exactly. Raises ImageError for modes that have no exact RGB of 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*WHITE, 255))
        canvas.alpha_composite(image)
        return canvas.convert("RGB")
    if image.mode in ("1", "L", "P"):
        return image.convert("RGB")
    raise ImageError(
        f"{path}: mode {image.mode} has no exact 8-bit RGB; convert the image with the profile it was made with"
    )
