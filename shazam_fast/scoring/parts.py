"""Writing scores: Parquet parts in a `PartDirectory`.

A part holds the scored patches among a fixed range of the archive's rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..runtime.documents import Json
from ..runtime.files import writing
from ..runtime.jobs.foreign import require_same_job
from ..runtime.jobs.part_directory import PartDirectory
from .engine import TILE_ROWS
from .inference import RowScores
from .manifest import MANIFEST, ScoresManifest, manifest_parquet, read_manifest

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from ..student.student import Student

PART_BYTES = 8 << 20  # of scores in a part: half a second of work or more; a few times this are in memory

UNKNOWN_POSITION = -1  # x and y of a patch whose position the archive does not know


class Work(NamedTuple):
    """A student, the archive that it scores, and the device that computes."""

    student: "Student"
    archive: FeatureArchive
    device: "torch.device"


@dataclass(frozen=True)
class ScoreJob:
    """What is scored and how.

    Args:
        manifest: the manifest before anything is scored.
        job: what makes two jobs the same.
        archive_rows: rows of the archive.
        part_rows: rows of the archive per part: part k holds the patches of `split` among the rows
            [k * part_rows, (k + 1) * part_rows).
        split: "train", "val", "test" or "none"; None: all patches.
        fused: whether fused features are written.
    """

    manifest: ScoresManifest
    job: Mapping[str, Json]
    archive_rows: int
    part_rows: int
    split: str | None
    fused: bool

    @property
    def influence(self) -> bool:
        """Whether influence is written."""
        return bool(self.manifest.influence)

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which probabilities, shares and influence are stored."""
        return np.dtype(self.manifest.dtype)

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


def choose_part_rows(value_bytes: int) -> int:
    """Rows of a part of about PART_BYTES; whole tiles. `value_bytes`: of a row, beside its number, names, position."""
    row_bytes = value_bytes + 32
    return max(1, PART_BYTES // row_bytes // TILE_ROWS) * TILE_ROWS


def make_table(archive: FeatureArchive, job: ScoreJob, rows: NDArray[np.int64], scores: RowScores) -> "pa.Table":
    """The scores of some rows of one part, in the columns that users see."""
    import pyarrow as pa

    def stored(values: NDArray[np.float32]) -> "pa.Array":
        return pa.array(np.ascontiguousarray(values, dtype=job.dtype))

    start, stop = int(rows[0]), int(rows[-1]) + 1
    coords = archive.column("coords", start, stop)[rows - start]
    unknown = (coords == UNKNOWN_POSITION).all(axis=1)
    columns = {
        "row": pa.array(rows),
        "slide": _slide_names(archive, archive.column("slide", start, stop)[rows - start]),
        "x": pa.array(coords[:, 0], mask=unknown),
        "y": pa.array(coords[:, 1], mask=unknown),
        "prediction": _names(scores.probabilities.argmax(axis=1), job.manifest.classes),
    }
    for index, name in enumerate(job.manifest.classes):
        columns[f"probability_{name}"] = stored(scores.probabilities[:, index])
    if scores.shares is not None:
        for index, name in enumerate(job.manifest.teachers):
            columns[f"share_{name}"] = stored(scores.shares[:, index])
    if scores.influence is not None:
        for index, name in enumerate(job.manifest.influence):
            columns[f"influence_{name}"] = stored(scores.influence[:, index])
    if scores.fused is not None:
        columns["fused"] = pa.FixedSizeListArray.from_arrays(pa.array(scores.fused.ravel()), scores.fused.shape[1])
    return pa.table(columns)


def rounding_error(job: ScoreJob, scores: RowScores) -> float:
    """How far a value of the scores is changed at most by the dtype in which it is stored."""
    if job.dtype == np.float32:
        return 0.0
    given = (scores.probabilities, scores.shares, scores.influence)
    return max(float(np.abs(values - values.astype(job.dtype)).max()) for values in given if values is not None)


class ScoreParts(PartDirectory):
    """The directory that a job's parts go into.

    Args:
        path: the directory.
        job: what is scored, and how.
    """

    def __init__(self, path: Path, job: ScoreJob) -> None:
        super().__init__(path, job.job, count=job.parts, suffix=".parquet", manifest=MANIFEST)
        self.scored = job

    def read_finished(self) -> ScoresManifest | None:
        """The manifest if this job is finished; None if it is not.

        Raises MismatchError, saying what differs, when the directory holds the scores of another job.
        """
        if not self.finished:
            return None
        manifest = read_manifest(self.path)
        require_same_job(self.path, manifest.job, self.job)
        self.tidy_after_kill()
        return manifest

    def write(self, number: int, archive: FeatureArchive, rows: NDArray[np.int64], scores: RowScores | None) -> int:
        """Write the scores of `rows`, all that a part holds, and return their number; `scores` is None for no rows."""
        if scores is None:
            with writing(self.path):
                self.add(number, None, 0)
            return 0
        content = parquet_bytes(make_table(archive, self.scored, rows, scores))
        self.write_part(number, content, len(rows), rounding_error(self.scored, scores) or None)
        return len(rows)

    def publish_scores(self) -> None:
        """Write the manifest of all parts."""
        records = self.records()
        parts = [record.part for record in records if record.part is not None]
        manifest = msgspec.structs.replace(
            self.scored.manifest,
            rows=sum(part.rows for part in parts),
            parts=parts,
            rounding_error=max(float(record.notes or 0.0) for record in records),
            job=self.job,
        )
        with writing(self.path):
            self.publish(manifest_parquet(manifest, self.path / parts[0].file))


def parquet_bytes(table: "pa.Table") -> memoryview:
    """The table as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    stream = pa.BufferOutputStream()
    # Only names are dictionary-encoded; probabilities and shares would become at most a tenth smaller.
    pq.write_table(table, stream, compression="zstd", compression_level=1, use_dictionary=names)
    return memoryview(stream.getvalue())


def _slide_names(archive: FeatureArchive, codes: NDArray[np.integer]) -> "pa.DictionaryArray":
    """Names of the slides; the dictionary of a part holds only slides that occur in it."""
    occurring, local = np.unique(codes, return_inverse=True)
    unknown = int((occurring < 0).any())  # -1 comes first
    return _names(local - unknown, [archive.slides[code] for code in occurring[unknown:]])


def _names(codes: NDArray[np.integer], names: list[str]) -> "pa.DictionaryArray":
    import pyarrow as pa

    indices = pa.array(np.where(codes < 0, 0, codes).astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, type=pa.string()))
