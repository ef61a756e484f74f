"""From rows of an image table to features: each image decoded once, every teacher run on it.

Threads decode ahead of the models (Pillow lets go of the interpreter while it decodes and resizes). An image is resized
once for all teachers whose transforms agree in geometry, and goes to the device as bytes; it is normalised there once
for all teachers that agree in the statistics too. What a batch holds depends on its rows alone.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import ImageError, MismatchError
from ..images.decoding import decode
from ..images.slide_reader import SlideReader
from ..images.table import ImageTable
from ..runtime.levels import LEVELS, name_level
from ..teachers.models import Teacher, autocast_of, prepare
from ..teachers.transform import Transform

logger = logging.getLogger("shazam_fast")

BATCHES_AHEAD = 2  # batches that are decoded while the models run on another
MIRAX = ".mrxs"  # slides that keep their pixels in a folder of the same name
LAUNCHED = 2  # batches on the GPU: one is computed while the features of the other are copied back

Geometry = tuple[int, int | None, str]  # see Transform.geometry
Stamp = tuple[int, int]  # size in bytes and time of the last change in nanoseconds of a file


@dataclass(frozen=True)
class ExtractedBatch:
    """Features {column block: float32 [n, dim]} of the readable `rows` [n]; `unreadable` maps a row to the reason."""

    batch: range
    rows: NDArray[np.int64]
    features: Mapping[str, NDArray[np.float32]]
    unreadable: Mapping[int, str]


class ImageReader:
    """Row number -> RGB image, from image files or from slides. Used by several threads at once.

    Args:
        table: the images.
        stamps: file -> its size and time of change when the extraction began; other files may change.
    """

    def __init__(self, table: ImageTable, stamps: Mapping[Path, Stamp]) -> None:
        self._table = table
        self._stamps = stamps
        self._slides = SlideReader()
        self._warned = False

    def __call__(self, row: int) -> Image.Image:
        """The image of a row.

        Raises:
            ImageError: naming file and row, when the image cannot be read.
            MismatchError: naming file and row, when the file is gone or has changed since the extraction began.
        """
        path = self._table.paths[row]
        try:
            image = self._read(row)
        except ImageError as error:
            self._require_unchanged(path, row)
            raise ImageError(f"{error} (row {row} of the images)") from None
        self._require_unchanged(path, row)
        return image

    def _require_unchanged(self, path: Path, row: int) -> None:
        if path in self._stamps and self._stamps[path] != (found := stamp_of(path)):
            what = "is no longer there" if found is None else "has changed since the extraction began"
            raise MismatchError(
                f"{path} {what} (row {row} of the images); do not change images, and run the command again"
            )

    def _read(self, row: int) -> Image.Image:
        table = self._table
        if table.sides is not None and table.coords is not None:
            (x, y), (level0, side) = table.coords[row].tolist(), table.sides[row].tolist()
            return self._slides.read(table.paths[row], x, y, level0, side)
        image = decode(table.paths[row])
        if image.width != image.height and not self._warned:
            self._warned = True
            logger.warning("%s is not square: teachers that crop will not see all of it", table.paths[row])
        return image


class Extractor:
    """Runs teachers over images.

    Args:
        table: the images.
        teachers: built; they are moved to `device`, and their matrices are stored in the precision they run in.
        levels: of "low", "mid" (CLS of an early and a middle block) and "high" (the teacher's own feature).
        device: where the models run; autocast at each teacher's precision on a GPU, float32 on the CPU.
        workers: image-decoding threads.
        stamps: as for `ImageReader`.
    """

    def __init__(
        self,
        table: ImageTable,
        teachers: Sequence[Teacher],
        levels: Sequence[str],
        device: torch.device,
        workers: int,
        stamps: Mapping[Path, Stamp],
    ) -> None:
        self._reader = ImageReader(table, stamps)
        self._levels = [level for level in LEVELS if level in levels]
        self._device = device
        self._workers = workers
        self._gpu = device.type == "cuda"
        self._teachers = [prepare(teacher, device) for teacher in teachers]
        self._transforms = {transform.geometry: transform for teacher in teachers for transform in [teacher.transform]}
        self.dims = self._measure()

    def stream(self, batches: Iterable[range]) -> Iterator[ExtractedBatch]:
        """The features of every batch of rows, in order."""
        launched: deque[_Launched] = deque()
        for batch in self._decoded(batches):
            launched.append(self._launch(batch))
            if len(launched) == (LAUNCHED if self._gpu else 1):
                yield self._fetch(launched.popleft())
        while launched:
            yield self._fetch(launched.popleft())

    def _decoded(self, batches: Iterable[range]) -> Iterator["_Decoding"]:
        """Batches whose images are decoded, in order, while threads go on with the next."""
        waiting: deque[_Decoding] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        try:
            for batch in batches:
                waiting.append(self._submit(pool, batch))
                if len(waiting) > BATCHES_AHEAD:
                    yield waiting.popleft().wait()
            while waiting:
                yield waiting.popleft().wait()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, batch: range) -> "_Decoding":
        pixels = {
            geometry: torch.empty(len(batch), 3, t.size, t.size, dtype=torch.uint8, pin_memory=self._gpu)
            for geometry, t in self._transforms.items()
        }
        decoding = _Decoding(batch, pixels)
        decoding.futures += [pool.submit(self._decode, row, i, pixels) for i, row in enumerate(batch)]
        return decoding

    def _decode(self, row: int, position: int, pixels: Mapping[Geometry, Tensor]) -> None:
        image = self._reader(row)
        for geometry, transform in self._transforms.items():
            pixels[geometry][position] = torch.from_numpy(transform.pixels(image))

    @torch.inference_mode()
    def _launch(self, batch: "_Decoding") -> "_Launched":
        """Start the models on a batch; on a GPU this returns before they are done."""
        if not len(batch.rows):
            return _Launched(batch, torch.empty(0, sum(self.dims.values())), None)
        pixels = {geometry: p.to(self._device, non_blocking=True) for geometry, p in batch.readable().items()}
        features = torch.cat(self._run(pixels), dim=1)  # [B, sum of dims]
        if not self._gpu:
            return _Launched(batch, features, None)
        returned = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        returned.copy_(features, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        return _Launched(batch, returned, done)

    def _run(self, pixels: Mapping[Geometry, Tensor]) -> list[Tensor]:
        """Column blocks [B, dim], float32, of all teachers and levels."""
        inputs: dict[Transform, Tensor] = {}
        blocks: list[Tensor] = []
        for teacher in self._teachers:
            transform = teacher.transform
            if transform not in inputs:
                inputs[transform] = transform.normalize(pixels[transform.geometry])  # [B, 3, size, size]
            with torch.autocast(self._device.type, *autocast_of(teacher, self._device)):
                found = (
                    {"high": teacher.features(inputs[transform])}
                    if self._levels == ["high"]
                    else teacher.multi_level(inputs[transform])
                )
            blocks += [found[level].float() for level in self._levels]
        return blocks

    def _fetch(self, launched: "_Launched") -> ExtractedBatch:
        if launched.done is not None:
            launched.done.synchronize()
        parts = launched.features.split(list(self.dims.values()), dim=1)
        features = {name: part.numpy() for name, part in zip(self.dims, parts, strict=True)}
        decoding = launched.batch
        return ExtractedBatch(decoding.batch, decoding.rows, features, decoding.unreadable)

    @torch.inference_mode()
    def _measure(self) -> dict[str, int]:
        """{column block: dim}, from one blank image: the levels of a teacher may be narrower than its feature."""
        blank = {
            geometry: torch.zeros(1, 3, t.size, t.size, dtype=torch.uint8, device=self._device)
            for geometry, t in self._transforms.items()
        }
        names = [name_level(t.spec.name, level) for t in self._teachers for level in self._levels]
        return {name: block.shape[1] for name, block in zip(names, self._run(blank), strict=True)}


@dataclass
class _Decoding:
    """A batch whose images are being decoded into `pixels` {geometry: uint8 [B, 3, size, size]}."""

    batch: range
    pixels: dict[Geometry, Tensor]
    futures: list[Future[None]] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)

    def wait(self) -> "_Decoding":
        """Until all are decoded; notes those that cannot be read."""
        for row, future in zip(self.batch, self.futures, strict=True):
            try:
                future.result()
            except ImageError as error:
                self.unreadable[row] = str(error)
        return self

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows that could be read."""
        return np.array([row for row in self.batch if row not in self.unreadable], dtype=np.int64)

    def readable(self) -> dict[Geometry, Tensor]:
        """The pixels of those rows."""
        if not self.unreadable:
            return self.pixels
        kept = torch.from_numpy(self.rows - self.batch.start)
        return {geometry: p[kept] for geometry, p in self.pixels.items()}


@dataclass(frozen=True)
class _Launched:
    """A batch that the models work on; `features` are valid once `done` (None: now)."""

    batch: _Decoding
    features: Tensor
    done: torch.cuda.Event | None


def stamp_of(path: Path) -> Stamp | None:
    """Size and time of change of an image file (with the data folder of a .mrxs slide); None if it is missing."""
    try:
        found = [path.stat()]
        if path.suffix.lower() == MIRAX and (folder := path.with_suffix("")).is_dir():
            found += [file.stat() for file in folder.iterdir()]
    except OSError:
        return None
    return sum(file.st_size for file in found), max(file.st_mtime_ns for file in found)
