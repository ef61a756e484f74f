"""A native archive written part by part, in any order, by any number of processes, with interruptions.

The content of a part depends on its number alone, so the archive is the same, byte for byte, however it was written.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..annotation.columns import check_column
from ..annotation.features import first_refused, interleave
from ..errors import MismatchError, NonFiniteError, ShazamError
from ..formats.geometry import Geometry
from ..formats.native import FORMAT, MANIFEST, VERSION, Manifest, PartWriter, StoredTeacher, read_manifest
from ..runtime.documents import Json, encode_document
from ..runtime.files import unfinished_path, write_durably, writing
from ..runtime.jobs.foreign import require_same_job
from ..runtime.jobs.part_directory import Part, PartDirectory


@dataclass(frozen=True)
class PartChunk:
    """Some rows of a part.

    Attributes:
        features: {teacher: [n, dim]}.
        columns: {"label", "split", "slide", "group", "coords": [n] or [n, 2]} as they are stored; None for unknown.
        first_row: number of the first row, for messages: in the archive, or of the source where rows are left out.
        describe: row of the chunk -> words for its patch, for messages.
    """

    features: Mapping[str, NDArray[Any]]
    columns: Mapping[str, NDArray[Any] | None]
    first_row: int
    describe: Callable[[int], str]

    @property
    def n_rows(self) -> int:
        """Patches in the chunk."""
        return len(next(iter(self.features.values())))


@dataclass(frozen=True)
class ArchiveHead:
    """What a manifest holds besides its parts; for the fields see `shazam_fast.FeatureArchive`."""

    teachers: Mapping[str, int]
    dtype: str
    classes: Sequence[str] = ()
    slides: Sequence[str] = ()
    groups: Sequence[str] = ()
    geometry: Mapping[str, Geometry] | None = None

    def manifest(self, parts: Sequence[Part], job: Mapping[str, Json] | None, notes: Json) -> Manifest:
        """The manifest of these parts."""
        return Manifest(
            format=FORMAT,
            version=VERSION,
            teachers=[StoredTeacher(name=name, dim=dim) for name, dim in self.teachers.items()],
            dtype=np.dtype(self.dtype).name,  # type: ignore[arg-type]  # one of DTypeName, see require_dtype
            rows=sum(part.rows for part in parts),
            classes=list(self.classes),
            slides=list(self.slides),
            groups=list(self.groups),
            parts=list(parts),
            job=None if job is None else dict(job),
            notes=notes,
            geometry={slide: one for slide, one in (self.geometry or {}).items() if one != Geometry()},
        )


class ArchiveParts(PartDirectory):
    """The archive at `path`, to be written in `count` parts.

    Args:
        path: directory of the archive.
        job: what makes two jobs the same, see `PartDirectory`.
        count: number of parts.
        head: what the manifest holds besides the parts.
        others: names of other files that are written next to the parts.
    """

    def __init__(
        self, path: Path, job: Mapping[str, Json], count: int, head: ArchiveHead, others: Sequence[str] = ()
    ) -> None:
        super().__init__(path, job, count=count, suffix=".safetensors", manifest=MANIFEST, others=others)
        self.head = head

    def read_finished(self) -> Manifest | None:
        """The manifest if this job has finished the archive; None if it is not finished.

        Raises MismatchError, saying what differs, when another job has written it.
        """
        if not self.finished:
            return None
        manifest = read_manifest(self.path)
        if manifest.job is None:
            raise ShazamError(f"{self.path}: holds another archive already; choose another --out, or delete it")
        require_same_job(self.path, manifest.job, self.job)
        self.tidy_after_kill()
        return manifest

    def write(self, number: int, chunks: Iterable[PartChunk], notes: Json) -> None:
        """Write one part; `notes`, which taking the chunks may change, is kept with its record.

        Args:
            number: of the part, from 0.
            chunks: its rows in order, possibly none.
            notes: JSON values.

        Raises NonFiniteError naming patch and teacher; MismatchError for a label, position or index that its column
        cannot hold; ShazamError when the disk is full. None of them leaves the part.
        """
        dtype = np.dtype(self.head.dtype)
        with writing(self.part_path(number)):
            part = PartWriter(unfinished_path(self.part_path(number)))
            try:
                for chunk in chunks:
                    if chunk.n_rows:
                        self._check_columns(chunk)
                        part.append(self._interleave(chunk, dtype), chunk.columns)
                if not part.n_rows:
                    self.add(number, None, 0, notes)
                    return
                part.close(sum(self.head.teachers.values()), dtype)
                self.add(number, part.path, part.n_rows, notes)
            finally:
                part.abort()  # removes nothing once the part has its name

    def publish_archive(self, notes: Json, others: Mapping[str, bytes] | None = None) -> None:
        """Write the other files, then the manifest. All parts are finished and one holds a row."""
        parts = [record.part for record in self.records() if record.part is not None]
        with writing(self.path):
            for name, content in (others or {}).items():
                write_durably(self.path / name, content)
            self.publish(encode_document(self.head.manifest(parts, self.job, notes)))

    def _check_columns(self, chunk: PartChunk) -> None:
        for name, column in chunk.columns.items():
            try:
                check_column(name, column, chunk.n_rows, chunk.first_row)
            except MismatchError as error:
                raise MismatchError(f"{self.path}: {error}") from None

    def _interleave(self, chunk: PartChunk, dtype: np.dtype[Any]) -> NDArray[Any]:
        try:
            return interleave(chunk.features, self.head.teachers, dtype, chunk.first_row)
        except NonFiniteError as error:
            raise NonFiniteError(f"{chunk.describe(first_refused(chunk.features, dtype))}: {error}") from None


def require_dtype(dtype: str) -> None:
    """Raise ShazamError unless archives are written in `dtype`."""
    if dtype not in ("float16", "float32"):
        raise ShazamError(f"archives are written as 'float16' or 'float32', not {dtype!r}")
