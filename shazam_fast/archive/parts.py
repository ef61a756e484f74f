"""An archive whose parts are written on their own: in any order, by any number of processes, interrupted at any moment.

Beside every finished part lies its record, `part-NNNNN.json`, written after it; a part without one is written again.
When all records are there, the manifest is made of them, and they go. What a part holds depends on nothing but its
number, so the archive comes out the same, byte for byte, whoever wrote which part and however often it was begun.
"""

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError, NonFiniteError, ShazamError
from ..formats.geometry import Geometry
from ..formats.native import MANIFEST, PartWriter, manifest_content
from ..runtime.files import UNFINISHED, rename_durably, write_durably
from ..runtime.jobs import read_json, require_part, require_same_job
from .columns import first_refused, interleave
from .resuming import JOURNAL
from .writer import claim_directory, remove_leftovers

IMAGES = "images.parquet"  # row and path of every image in the archive


@dataclass(frozen=True)
class PartChunk:
    """Some rows of a part: {teacher: [n, dim]}, the narrow columns as they are stored, the images' paths.

    `left_out` lists what the part should have held but does not: JSON values, kept in the manifest.
    """

    features: Mapping[str, NDArray[Any]]
    columns: Mapping[str, NDArray[Any] | None]
    paths: Sequence[str]
    left_out: Sequence[Mapping[str, object]] = ()


@dataclass(frozen=True)
class PartSource:
    """What a part is made of: a digest that changes when one of its images does, and the image that changed last."""

    digest: str
    newest: str


@dataclass(frozen=True)
class PartStore:
    """The archive at `path` while it is written, in `parts` parts.

    `job` tells this work from any other, in JSON values; `sources` has one entry per part. `geometry` is that of the
    slides.
    """

    path: Path
    teachers: Mapping[str, int]
    dtype: str
    parts: int
    job: Mapping[str, object]
    classes: Sequence[str]
    slides: Sequence[str]
    groups: Sequence[str]
    sources: Sequence[PartSource]
    geometry: Mapping[str, Geometry]

    def claim(self) -> None:
        """Create the directory and say whose it is, or check that it is this job's.

        Raises MismatchError when another job was interrupted there; ShazamError when other files are there.
        """
        claim_directory(self.path, (JOURNAL, IMAGES))
        journal = self.path / JOURNAL
        if not journal.exists():
            unfinished = journal.with_name(f"{os.uname().nodename}-{os.getpid()}{UNFINISHED}")
            unfinished.write_text(json.dumps({"job": self.job}, indent=1))  # other processes may do the same now
            rename_durably(unfinished, journal)
        require_same_job(self.path, read_json(journal), self.job)

    def missing(self) -> list[int]:
        """Numbers of the parts that are not finished. Raises ArchiveError when one that was has changed."""
        return [index for index in range(self.parts) if self._record(index) is None]

    def require_unchanged(self, index: int, digest: str) -> None:
        """Raise MismatchError when the images of a part have changed since it was written with this digest."""
        if digest != self.sources[index].digest:
            raise MismatchError(
                f"{self.path}: images have changed since part {index} was written of them (the last one: "
                f"{self.sources[index].newest}); restore them, or delete the directory and extract again"
            )

    def finished(self, index: int) -> bool:
        """Whether a part is there, for another process to see."""
        return self._record_path(index).exists()

    def write(self, index: int, chunks: Iterable[PartChunk]) -> None:
        """Write one part; it is there when its record is.

        Raises NonFiniteError naming image and teacher; ShazamError when the disk is full. Neither leaves the part.
        """
        dtype = np.dtype(self.dtype)
        paths: list[str] = []
        left_out: list[Mapping[str, object]] = []
        try:
            part = PartWriter(self._part_path(index))
            try:
                for chunk in chunks:
                    left_out += chunk.left_out
                    if chunk.paths:
                        part.append(self._interleave(index, chunk, dtype, part.n_rows), chunk.columns)
                        paths += chunk.paths
                entry = part.close(sum(self.teachers.values()), dtype) if part.n_rows else None
            finally:
                part.abort()  # removes nothing once it is closed
            record = {"part": entry, "paths": paths, "left_out": left_out, "source": self.sources[index].digest}
            write_durably(self._record_path(index), json.dumps(record).encode())
        except OSError as error:
            raise ShazamError(f"{self._part_path(index)}: the part could not be written: {error}") from error

    def publish(self) -> None:
        """Make the manifest of all parts, once they are finished. Raises ShazamError when no row is in any."""
        records = [record for i in range(self.parts) if (record := self._record(i)) is not None]
        assert len(records) == self.parts
        parts = [record["part"] for record in records if record["part"] is not None]
        left_out = [item for record in records for item in record["left_out"]]
        if not parts:
            raise ShazamError(f"{self.path}: none of the {len(left_out)} images could be read: {left_out[0]}")
        notes = {"images": IMAGES, "left_out": left_out, "sources": [source.digest for source in self.sources]}
        manifest = manifest_content(
            self.teachers, np.dtype(self.dtype), self.classes, self.slides, self.groups, parts,
            {"job": self.job, "notes": notes}, self.geometry,
        )  # fmt: skip
        try:
            write_durably(self.path / IMAGES, _paths_table([p for record in records for p in record["paths"]]))
            write_durably(self.path / JOURNAL, manifest)
            rename_durably(self.path / JOURNAL, self.path / MANIFEST)
        except OSError as error:
            raise ShazamError(f"{self.path}: the archive could not be finished: {error}") from error
        remove_leftovers(self.path, {part["file"] for part in parts})

    def discard_if_empty(self) -> None:
        """Remove the directory if no part of the archive is finished."""
        if any(self.path.glob("part-*.json")):
            return
        remove_leftovers(self.path)
        (self.path / JOURNAL).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: another process has begun a part
            self.path.rmdir()

    def _interleave(self, index: int, chunk: PartChunk, dtype: np.dtype[Any], row: int) -> NDArray[Any]:
        try:
            return interleave(chunk.features, self.teachers, dtype, row)
        except NonFiniteError as error:
            path = chunk.paths[first_refused(chunk.features, dtype)]
            raise NonFiniteError(f"{path}, in part {index}: {error}") from None

    def _record(self, index: int) -> dict[str, Any] | None:
        path = self._record_path(index)
        if not path.exists():
            return None
        record = read_json(path)
        self.require_unchanged(index, record["source"])
        if record["part"] is not None:
            require_part(self._part_path(index), record["part"]["bytes"], f"delete {path} to write it again")
        return record

    def _part_path(self, index: int) -> Path:
        return self.path / f"part-{index:05d}.safetensors"

    def _record_path(self, index: int) -> Path:
        return self.path / f"part-{index:05d}.json"


def _paths_table(paths: Sequence[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    printable = [path.encode(errors="replace").decode() for path in paths]  # file names may be no text
    table = pa.table({"row": np.arange(len(paths)), "path": pa.array(printable).dictionary_encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
