"""Scores on their way to disk: Parquet parts, each there complete or not at all, and a journal of those finished.

A part holds the scored patches among a fixed range of the archive's rows. The journal says which job it belongs to and
grows by one line a part; when all are there, the manifest takes its place.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..errors import ArchiveError, ShazamError
from ..runtime.files import UNFINISHED, file_checksum, rename_durably, write_durably
from ..runtime.jobs import lock_directory, require_part, require_same_job
from .engine import TILE_ROWS, RowScores
from .scores import FORMAT, JOURNAL, MANIFEST, VERSION

if TYPE_CHECKING:
    import pyarrow as pa

PART_BYTES = 8 << 20  # of scores in a part: half a second of work or more; a few times this are in memory

Record = dict[str, Any]


@dataclass(frozen=True)
class ScoreJob:
    """What is scored and how; `identity` tells it from any other job.

    `about` is for the manifest. Part k holds the patches of `split` (None: all) among the archive's rows
    [k * part_rows, (k + 1) * part_rows).
    """

    about: Mapping[str, Any]
    identity: Mapping[str, Any]
    archive_rows: int
    part_rows: int
    split: str | None
    fused: bool

    @property
    def parts(self) -> int:
        """How many parts there are, those included that hold no patch of the split."""
        return -(-self.archive_rows // self.part_rows)

    def rows_of(self, archive: FeatureArchive, part: int) -> NDArray[np.int64]:
        """The archive's rows that a part holds."""
        start = part * self.part_rows
        stop = min(start + self.part_rows, self.archive_rows)
        if self.split is None:
            return np.arange(start, stop)
        return archive.split(self.split, start, stop)


def choose_part_rows(classes: int, teachers: int, fused_dim: int) -> int:
    """Rows of a part of about PART_BYTES; whole tiles."""
    row_bytes = 4 * (classes + teachers + fused_dim) + 32
    return max(1, PART_BYTES // row_bytes // TILE_ROWS) * TILE_ROWS


def make_table(archive: FeatureArchive, job: ScoreJob, rows: NDArray[np.int64], scores: RowScores) -> "pa.Table":
    """The scores of some rows of one part, in the columns that users see."""
    import pyarrow as pa

    start, stop = int(rows[0]), int(rows[-1]) + 1
    coords = archive.column("coords", start, stop)[rows - start]
    columns = {
        "row": pa.array(rows),
        "slide": _slide_names(archive, archive.column("slide", start, stop)[rows - start]),
        "x": pa.array(coords[:, 0]),
        "y": pa.array(coords[:, 1]),
        "prediction": _names(scores.probabilities.argmax(axis=1), job.about["classes"]),
    }
    for index, name in enumerate(job.about["classes"]):
        columns[f"probability_{name}"] = pa.array(scores.probabilities[:, index])
    if scores.shares is not None:
        for index, name in enumerate(job.about["teachers"]):
            columns[f"share_{name}"] = pa.array(scores.shares[:, index])
    if scores.fused is not None:
        columns["fused"] = pa.FixedSizeListArray.from_arrays(pa.array(scores.fused.ravel()), scores.fused.shape[1])
    return pa.table(columns)


def write_part(
    folder: Path, part: int, archive: FeatureArchive, job: ScoreJob, rows: NDArray[np.int64], scores: RowScores
) -> Record:
    """Write a part durably and say what a manifest says of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = make_table(archive, job, rows, scores)
    file = folder / f"part-{part:05d}.parquet"
    unfinished = file.with_suffix(UNFINISHED)
    names = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    with unfinished.open("wb") as stream:
        # Only names are worth compressing: a tenth of what probabilities and shares take is all there is to gain.
        pq.write_table(table, stream, compression="zstd", compression_level=1, use_dictionary=names)
        stream.flush()
        os.fsync(stream.fileno())
    record = {
        "part": part,
        "file": file.name,
        "rows": table.num_rows,
        "bytes": unfinished.stat().st_size,
        "xxh3": file_checksum(unfinished),
    }
    rename_durably(unfinished, file)
    return record


class PartStore:
    """The directory that a job's parts go into; use it as a context manager.

    Raises MismatchError when it holds another job's scores, ShazamError when it holds other files, another process is
    writing there, or nothing can be written.
    """

    def __init__(self, path: Path, job: ScoreJob) -> None:
        self.path = path
        self._job = job
        self._records: dict[int, Record] = {}

    @property
    def finished(self) -> bool:
        """Whether the manifest is there."""
        return (self.path / MANIFEST).exists()

    @property
    def n_rows(self) -> int:
        """Patches in the parts that are there."""
        return sum(record["rows"] for record in self._records.values())

    def missing(self) -> Iterator[int]:
        """The parts that are not there yet, in order."""
        return (part for part in range(self._job.parts) if part not in self._records)

    def add(self, record: Record) -> None:
        """Note that a part is there, or that it holds no patch."""
        with (self.path / JOURNAL).open("ab") as journal:
            journal.write(json.dumps(record).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._records[record["part"]] = record

    def finish(self) -> None:
        """Replace the journal by the manifest."""
        parts = [self._records[part] for part in sorted(self._records) if self._records[part]["rows"]]
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "rows": self.n_rows,
            **self._job.about,
            "job": self._job.identity,
            "parts": parts,
        }
        write_durably(self.path / MANIFEST, json.dumps(manifest, indent=1).encode())
        (self.path / JOURNAL).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShazamError(f"{self.path}: cannot create the directory for the scores: {error}") from None
        self._lock = lock_directory(self.path)
        try:
            self._claim()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)
        if isinstance(error, OSError):
            raise ShazamError(
                f"{self.path}: the scores could not be written: {error}. "
                "The parts that are finished stay; the same call continues after them"
            ) from error

    def _claim(self) -> None:
        manifest, journal = self.path / MANIFEST, self.path / JOURNAL
        if manifest.exists():
            require_same_job(self.path, _read_json(manifest, manifest.read_bytes()), self._job.identity)
            journal.unlink(missing_ok=True)
            return
        if journal.exists():
            self._continue(journal)
        elif foreign := sorted(p.name for p in self.path.iterdir() if p.suffix != UNFINISHED):
            raise ShazamError(
                f"{self.path}: the directory holds other files ({', '.join(foreign[:3])}); choose another"
            )
        else:
            write_durably(journal, json.dumps({"format": FORMAT, "job": self._job.identity}).encode() + b"\n")
        kept = {record.get("file") for record in self._records.values()}
        for file in [*self.path.glob("part-*"), *self.path.glob(f"*{UNFINISHED}")]:
            if file.name not in kept:
                file.unlink()

    def _continue(self, journal: Path) -> None:
        content = journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # behind it, what a kill or a full disk left of a line
        header, *lines = whole.splitlines() or [b""]
        require_same_job(self.path, _read_json(journal, header), self._job.identity)
        for record in (_read_json(journal, line) for line in lines):
            self._records[record["part"]] = record
            if record["rows"]:
                require_part(self.path / record.get("file", ""), record["bytes"], f"delete {self.path}, start anew")
        if len(whole) < len(content):
            os.truncate(journal, len(whole))


def _read_json(file: Path, content: bytes) -> Record:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ArchiveError(f"{file}: corrupt: {error}") from None
    if not isinstance(found, dict):
        raise ArchiveError(f"{file}: corrupt: a JSON object expected")
    return found


def _slide_names(archive: FeatureArchive, codes: NDArray[np.integer]) -> "pa.DictionaryArray":
    """Of a cohort's slides, a part lists those alone that occur in it."""
    occurring, local = np.unique(codes, return_inverse=True)
    unknown = int((occurring < 0).any())  # -1 comes first
    return _names(local - unknown, [archive.slides[code] for code in occurring[unknown:]])


def _names(codes: NDArray[np.integer], names: list[str]) -> "pa.DictionaryArray":
    import pyarrow as pa

    indices = pa.array(np.where(codes < 0, 0, codes).astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, type=pa.string()))
