"""Run an extraction part by part, and publish the archive when all parts are written."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from ..archive.parts import ArchiveHead, ArchiveParts, PartChunk
from ..errors import ImageError, MismatchError, ShazamError
from ..formats.native import Manifest
from ..runtime.documents import Record
from ..runtime.jobs.locks import make_directory
from ..runtime.progress import Progress
from ..runtime.summaries import counted
from .pipeline import ExtractedBatch, Extractor
from .plan import PartSource, Plan, describe_job
from .sharing import Sharing

BATCH_SIZES = {"cpu": 8, "gpu": 64}  # on a CPU, batches that fit its cache are fastest
IMAGES = "images.parquet"  # row and path of every image in the archive


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction wrote.

    Attributes:
        path: directory of the archive.
        n_rows: number of patches.
        teachers: teacher (or "teacher:level") -> dim.
        left_out: images that could not be read: {"path", "row" (in the source), "reason"} each.
    """

    path: Path
    n_rows: int
    teachers: Mapping[str, int]
    left_out: tuple[Mapping[str, Any], ...]


class _Notes(Record, frozen=True, kw_only=True):
    """What is kept of a part: the paths of its images, those left out with the reason, the digest of its images."""

    paths: list[str]
    left_out: list[dict[str, Any]]
    source: str


class ImageParts(ArchiveParts):
    """The parts of an extraction, whose images must not change; `sources` has one entry per part."""

    def __init__(self, path: Path, job: Mapping[str, Any], head: ArchiveHead, sources: Sequence[PartSource]) -> None:
        super().__init__(path, job, len(sources), head, others=(IMAGES,))
        self.sources = sources

    def read_finished(self) -> Manifest | None:
        """As `ArchiveParts.read_finished`; raises MismatchError too when images have changed since."""
        manifest = super().read_finished()
        if manifest is not None:
            for number, digest in enumerate(manifest.notes["sources"]):
                self._require_unchanged(number, digest)
        return manifest

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """As `ArchiveParts.missing`; raises MismatchError when images of a finished part have changed since."""
        for number in range(self.count):
            if (record := self.record(number)) is not None:
                self._require_unchanged(number, msgspec.convert(record.notes, _Notes).source)
        return super().missing(numbers)

    def _require_unchanged(self, number: int, digest: str) -> None:
        if digest != self.sources[number].digest:
            raise MismatchError(
                f"{self.path}: images have changed since part {number} was written of them (the last one: "
                f"{self.sources[number].newest}); restore them, or delete the directory and extract again"
            )


class Extraction:
    """A plan and its models on a device: writes any of the archive's parts."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        teachers = plan.build()
        self._plan = plan
        self._batch_size = plan.batch_size or BATCH_SIZES["cpu" if device.type == "cpu" else "gpu"]
        job = describe_job(plan, teachers, device, self._batch_size)
        self._extractor = Extractor(plan.table, teachers, plan.levels, device, plan.workers, plan.stamps)
        slides, slide_index = _codes(plan.table.slides)
        groups, group_index = _codes(plan.table.groups)
        self._columns: dict[str, NDArray[Any] | None] = {
            "label": plan.table.labels,
            "split": plan.table.splits,
            "coords": plan.table.coords,
            "slide": slide_index,
            "group": group_index,
        }
        dims, table = self._extractor.dims, plan.table
        head = ArchiveHead(dims, plan.dtype, table.classes, slides, groups, table.geometry)
        self.store = ImageParts(plan.out, job, head, plan.sources())

    def write(self, parts: Sequence[int]) -> None:
        """Extract and write the given parts; images of the next one are decoded while a part is finished.

        Raises ImageError for an image that cannot be read, unless such images are to be left out.
        """
        batches = [batch for part in parts for batch in self._plan.batches(part, self._batch_size)]
        stream = self._extractor.stream(batches)
        with Progress(f"extracting to {self.store.path.name}", sum(map(len, batches)), "images") as progress:
            for part, extracted in groupby(stream, key=lambda found: self._plan.part_of(found.batch)):
                source = self.store.sources[part].digest
                notes: dict[str, Any] = {"paths": [], "left_out": [], "source": source}
                self.store.write(part, self._chunks(extracted, notes, progress), notes)

    def _chunks(
        self, extracted: Iterable[ExtractedBatch], notes: dict[str, Any], progress: Progress
    ) -> Iterator[PartChunk]:
        for found in extracted:
            if found.unreadable and self._plan.unreadable == "stop":
                reason = next(iter(found.unreadable.values()))
                raise ImageError(
                    f"{reason}. Finished parts are kept: mend the image and extract again, "
                    "or leave such images out with unreadable='exclude'"
                )
            paths = {row: _printable(self._plan.table.paths[row]) for row in found.batch}
            notes["paths"] += [paths[row] for row in found.rows.tolist()]
            notes["left_out"] += [
                {"row": row, "path": paths[row], "reason": _printable(why)} for row, why in found.unreadable.items()
            ]
            columns = {name: None if column is None else column[found.rows] for name, column in self._columns.items()}
            first = int(found.rows[0]) if len(found.rows) else 0
            yield PartChunk(found.features, columns, first, partial(_describe, paths, found.rows))
            progress.advance(len(found.batch))


def _printable(text: object) -> str:
    """The text with "?" for what UTF-8 cannot hold: a file name may be any bytes."""
    return str(text).encode(errors="replace").decode()


def _describe(paths: Mapping[int, str], rows: NDArray[np.int64], row: int) -> str:
    return paths[int(rows[row])]


def complete(store: ImageParts, write: Callable[[Sequence[int]], None], sharing: Sharing) -> ExtractionReport:
    """Have `write` write this process's missing parts, wait for those of other processes, and publish the archive."""

    def write_missing() -> None:
        try:
            write(store.missing(sharing.parts(store.count)))
            sharing.wait(_all_finished(store))
            _publish(store)
        except BaseException as error:
            sharing.fail(error)
            raise

    store.complete(write_missing, alone=sharing.world == 1)
    report = finished_report(store)
    assert report is not None
    return report


def help_complete(store: ImageParts, write: Callable[[Sequence[int]], None], sharing: Sharing) -> ExtractionReport:
    """As `complete`, for the processes that leave the lock and the publishing to process 0."""
    if (report := finished_report(store)) is not None:
        return report
    make_directory(store.path)
    store.claim()
    try:
        write(store.missing(sharing.parts(store.count)))
        sharing.wait(lambda: store.finished)
    except BaseException as error:
        sharing.fail(error)
        raise
    report = finished_report(store)
    assert report is not None
    return report


def _all_finished(store: ImageParts) -> Callable[[], bool]:
    left = set(range(store.count))

    def all_finished() -> bool:
        left.difference_update([part for part in left if store.is_finished(part)])
        return not left

    return all_finished


def _publish(store: ImageParts) -> None:
    notes = [msgspec.convert(record.notes, _Notes) for record in store.records()]
    left_out = [item for part in notes for item in part.left_out]
    paths = [path for part in notes for path in part.paths]
    if not paths:
        raise ShazamError(f"{store.path}: none of {counted(len(left_out), 'image')} could be read: {left_out[0]}")
    sources = [part.source for part in notes]
    store.publish_archive({"images": IMAGES, "left_out": left_out, "sources": sources}, {IMAGES: _paths_table(paths)})


def finished_report(store: ImageParts) -> ExtractionReport | None:
    """The report of a finished extraction; None if it is not finished. Raises MismatchError if it was another one."""
    manifest = store.read_finished()
    if manifest is None:
        return None
    return ExtractionReport(store.path, manifest.rows, store.head.teachers, tuple(manifest.notes["left_out"]))


def _paths_table(paths: Sequence[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"row": np.arange(len(paths)), "path": pa.array(paths).dictionary_encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _codes(names: Sequence[str]) -> tuple[list[str], NDArray[np.int32] | None]:
    """The names in the order of their first appearance, and the index of each entry's, -1 for ""."""
    if not names:
        return [], None
    known: dict[str, int] = {}
    codes = [known.setdefault(name, len(known)) if name else -1 for name in names]
    return list(known), np.array(codes, dtype=np.int32)
