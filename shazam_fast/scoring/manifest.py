"""The manifest of scores on disk: which parts there are, and what they hold.

It is a Parquet file of no rows with the parts' columns, and the document in its metadata: any reader of Parquet takes
the directory as it is.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ..errors import ArchiveError
from ..formats.geometry import Geometry
from ..runtime.documents import (
    DOCUMENT_BYTES,
    Count,
    Json,
    Name,
    Ratio,
    Record,
    Text,
    decode_document,
    encode_document,
    read_document,
)
from ..runtime.files import read_whole
from ..runtime.jobs.foreign import CLAIM
from ..runtime.jobs.part_directory import Part

FORMAT = "shazam_fast scores"
VERSION = 1
MANIFEST = "_scores.parquet"
MANIFEST_0_1 = "_scores.json"  # of version 0.1
METADATA_KEY = b"shazam_fast"


class ScoresManifest(Record, frozen=True, kw_only=True):
    """What is known of scores beside their parts."""

    format: str = FORMAT
    version: int = VERSION
    rows: Count
    classes: Annotated[list[Text], msgspec.Meta(min_length=1)]
    teachers: Annotated[list[Name], msgspec.Meta(min_length=1)]
    missing_teachers: list[Name]
    forced: bool
    shares: bool = False
    influence: list[Name] = msgspec.field(default_factory=list)  # encoders that have a column of it
    weights: bool | None = None  # as version 0.1 called shares; its columns are called weight_<teacher>, embedding
    geometry: dict[str, Geometry] = msgspec.field(default_factory=dict)
    dtype: Literal["float32", "float16"] = "float32"  # of probabilities, shares and influence as stored
    rounding_error: Ratio = 0.0  # the largest that this made in any of them
    job: dict[str, Json] = msgspec.field(default_factory=dict)
    parts: list[Part] = msgspec.field(default_factory=list)


def read_manifest(path: Path) -> ScoresManifest:
    """The manifest of the scores in the directory `path`, of this version or 0.1.

    Raises ArchiveError; kind "missing" (nothing there, or the scoring was interrupted), "foreign" (an archive or a
    student), "corrupt", "checksum", "unsupported".
    """
    if (path / MANIFEST).exists():
        manifest = decode_document(_document(path / MANIFEST), ScoresManifest, path / MANIFEST, format=FORMAT)
    elif (path / MANIFEST_0_1).exists():
        manifest = read_document(path / MANIFEST_0_1, ScoresManifest, format=FORMAT)
    else:
        raise _missing(path)
    if manifest.rows != sum(part.rows for part in manifest.parts):
        raise ArchiveError(f"{path}: {manifest.rows} rows stated, the parts hold {sum(p.rows for p in manifest.parts)}")
    for what, names in (("class", manifest.classes), ("teacher", manifest.teachers)):
        if len(set(names)) < len(names):
            raise ArchiveError(f"{path}: a {what} is listed twice in {names}")
    return manifest


def manifest_parquet(manifest: ScoresManifest, part: Path) -> bytes:
    """The manifest as a Parquet file with the columns of `part`, one of its parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(part).with_metadata({METADATA_KEY: encode_document(manifest)})
    stream = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), stream)
    return bytes(stream.getvalue())


def _document(file: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = read_whole(file, DOCUMENT_BYTES)
    try:
        metadata = pq.read_schema(pa.BufferReader(content)).metadata or {}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArchiveError(f"{file}: corrupt: {error}") from None
    if METADATA_KEY not in metadata:
        raise ArchiveError(f"{file}: corrupt: its metadata holds no manifest")
    return bytes(metadata[METADATA_KEY])


def _missing(path: Path) -> ArchiveError:
    if (path / CLAIM).exists():
        return ArchiveError(f"{path}: the scoring was interrupted; run the same command again to finish it", "missing")
    for name, what in (("archive.json", "an archive of features"), ("student.json", "a student")):
        if (path / name).exists():
            return ArchiveError(f"{path}: holds {what}, not scores; expected a directory that score wrote", "foreign")
    return ArchiveError(f"{path}: no scores there: {MANIFEST} not found", "missing")
