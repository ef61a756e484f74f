"""Pixels of whole-slide images, through openslide where it is installed, else through tiffslide.

Patches are read as TRIDENT and CLAM read them: from the level that they choose, without regard to transparency, black
where a patch reaches over the slide's edge. Positions are pixels of level 0 with the empty border that some formats
have (openslide's bounds-x and bounds-y are not added), which is how both tools store them.
"""

import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ..errors import ImageError, ShazamError
from .decoding import NEW_SUBFILE_TYPE, PILLOW_ERRORS, REDUCED, SAMPLE_FORMAT, SAMPLES_PER_PIXEL, open_image

BACKENDS = (("openslide", "OpenSlide"), ("tiffslide", "TiffSlide"))
PACKAGES = {"openslide": ("openslide-python",), "tiffslide": ("tiffslide", "tifffile", "imagecodecs")}
SAME_LEVEL = 0.1  # TRIDENT takes a level whose downsample is that close to the wanted one as it is, without resizing
SAME_RESOLUTION = 0.01  # of a pixel's width and height
GENERIC = (None, "generic-tiff")  # vendors of TIFFs that no scanner's format describes
WIDTH, HEIGHT, BITS, PHOTOMETRIC, EXTRA_SAMPLES = 256, 257, 258, 262, 338  # TIFF tags
COLOURS = {(1, 1), (2, 3), (6, 3)}  # photometric and channels, alpha not counted: grey, RGB, YCbCr
ALPHA = {1, 2}  # values of EXTRA_SAMPLES


class SlideReader:
    """Reads patches of slides; every thread keeps the slide that it read last open, since rows come slide by slide."""

    def __init__(self) -> None:
        self._last = threading.local()

    def read(self, path: Path, x: int, y: int, side_level0: int, side: int) -> Image.Image:
        """One patch.

        Args:
            path: the slide.
            x, y: its corner, in pixels of level 0.
            side_level0: its side, in pixels of level 0.
            side: the side that it is resized to, in pixels.

        Returns:
            The patch in mode RGB, `side` x `side`; black where it reaches over the slide's edge.

        Raises:
            ImageError: naming the slide and the position, when it cannot be read.
        """
        slide = self._open(path)
        try:
            level, size = choose_level(slide.level_downsamples, side_level0, side)
            region = slide.read_region((x, y), level, (size, size))
        except (*PILLOW_ERRORS, RuntimeError, NotImplementedError) as error:
            raise ImageError(f"{path}: the patch at {x}, {y} cannot be read: {error}") from None
        if region.mode not in ("RGB", "RGBA", "L"):
            raise ImageError(f"{path}: 8-bit RGB or grey pixels expected, found mode {region.mode}")
        region = region.convert("RGB")
        return region if size == side else region.resize((side, side), Image.Resampling.BICUBIC)

    def _open(self, path: Path) -> Any:
        if getattr(self._last, "path", None) != path:
            self._last.path = None  # opening the next one may fail
            self._last.slide = open_slide(path)
            self._last.path = path
        return self._last.slide


def choose_level(downsamples: Sequence[float], side_level0: int, side: int) -> tuple[int, int]:
    """The level that a patch is read from, and its side there in pixels.

    Args:
        downsamples: of the slide's levels, ascending.
        side_level0: side of the patch at level 0.
        side: side wanted.

    Returns:
        A level within 0.1 of the wanted downsample with exactly `side` pixels; else the smallest level that is no
        smaller than wanted.

    >>> choose_level((1.0, 4.0022), side_level0=1024, side=256)
    (1, 256)
    >>> choose_level((1.0, 4.0022), side_level0=512, side=256)
    (0, 512)
    """
    wanted = side_level0 / side
    for level, downsample in enumerate(downsamples):
        if abs(downsample - wanted) <= SAME_LEVEL:
            return level, side
    level = max((i for i, downsample in enumerate(downsamples) if downsample <= wanted), default=0)
    downsample = downsamples[level]
    if abs(downsample - round(downsample)) <= SAME_LEVEL:  # 4.0022 is meant to be 4
        downsample = round(downsample)
    return level, max(1, round(side_level0 / downsample))


def open_slide(path: Path) -> Any:
    """An OpenSlide or TiffSlide object. Raises ImageError, naming the file, when it cannot be opened without loss."""
    module, name = _backend()
    with open_image(path) as file:
        try:
            slide = getattr(module, name)(str(path))
            _ = slide.dimensions  # tiffslide reads the header when it is first asked for something
        except Exception as error:
            raise ImageError(f"{path}: {module.__name__} cannot open the slide: {error}") from None
        if _property(slide, "vendor") in GENERIC:
            _require_plain_tiff(path, file)
    return slide


def reader_name() -> str:
    """Name and version of the library that reads slides, such as "openslide 4.0.0".

    Raises ShazamError when none is installed.
    """
    module, _ = _backend()
    return f"{module.__name__} {vars(module).get('__library_version__', module.__version__)}"


def reader_packages() -> tuple[str, ...]:
    """Names of the installed packages on which the pixels read from a slide depend."""
    return PACKAGES[_backend()[0].__name__]


def resolution(slide: Any) -> float | None:
    """Micrometres per pixel of level 0, as the slide's file says; None where it does not, or pixels are not square."""
    try:
        x, y = (float(_property(slide, name)) for name in ("mpp-x", "mpp-y"))
    except (TypeError, ValueError):
        return None
    return x if x > 0 and abs(x - y) <= SAME_RESOLUTION * x and x != float("inf") else None


def scanned_from(slide: Any) -> tuple[int, int]:
    """Upper left corner of the scanned area, in pixels of level 0 with the empty border.

    Formats such as MRXS have that border, and openslide tells the area as bounds-x, bounds-y, bounds-width and
    bounds-height. QuPath shows the area alone, so that its positions begin here. 0, 0 where one of the four is missing.
    """
    try:
        x, y, *_ = (int(_property(slide, f"bounds-{name}")) for name in ("x", "y", "width", "height"))
    except (TypeError, ValueError):
        return 0, 0
    return x, y


def _backend() -> tuple[Any, str]:
    for name, kind in BACKENDS:
        try:
            return import_module(name), kind
        except (ImportError, OSError):  # openslide without its C library
            continue
    raise ShazamError("openslide or tiffslide is needed to read slides: pip install 'shazam_fast[slides]'")


def _property(slide: Any, name: str) -> Any:
    return slide.properties.get(f"{type(slide).__module__.split('.')[0]}.{name}")


def _require_plain_tiff(path: Path, file: BinaryIO) -> None:
    """Raise ImageError for channels, depths and pages that the readers would drop or cut without a warning."""
    try:
        pages = list(_tiff_pages(file))
    except PILLOW_ERRORS as error:
        raise ImageError(f"{path}: its TIFF header cannot be read: {error}") from None
    if not pages:
        return
    first = pages[0]
    channels = first.get(SAMPLES_PER_PIXEL, 1)
    extra = first.get(EXTRA_SAMPLES, ())
    alpha = len(extra) == 1 and extra[0] in ALPHA
    bits, formats = set(first.get(BITS, (1,))), set(first.get(SAMPLE_FORMAT, (1,)))
    if (first.get(PHOTOMETRIC), channels - alpha) not in COLOURS or bits != {8} or formats != {1}:
        raise ImageError(
            f"{path}: 8-bit RGB or grey expected, found {channels} channels of {max(bits)} bits, photometric "
            f"{first.get(PHOTOMETRIC)}; convert the slide to 8-bit RGB"
        )
    size = first.get(WIDTH), first.get(HEIGHT)
    planes = [
        page for page in pages
        if (page.get(WIDTH), page.get(HEIGHT)) == size and not page.get(NEW_SUBFILE_TYPE, 0) & REDUCED
    ]  # fmt: skip
    if len(planes) > 1:
        raise ImageError(
            f"{path}: {len(planes)} pages of {size[0]} x {size[1]} pixels (channels or focal planes), of which only "
            "the first would be read; save the one that is meant as a slide of its own"
        )


def _tiff_pages(file: BinaryIO) -> Iterator[dict[int, Any]]:
    """The tags of every page of a TIFF; nothing for another format."""
    header = file.read(8)
    if header[:2] not in (b"II", b"MM"):
        return
    if 43 in header[2:4]:  # BigTIFF
        header += file.read(8)
    directory = ImageFileDirectory_v2(header)
    seen = set()
    while directory.next and directory.next not in seen:
        seen.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        yield dict(directory)
