"""Scores as tables: parts read and checked, pandas, CSV."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ArchiveError, MismatchError, ShazamError
from ..runtime.files import file_checksum, unfinished_path
from ..runtime.jobs.part_directory import Part
from .manifest import ScoresManifest

if TYPE_CHECKING:
    import pyarrow as pa


class PartReader:
    """Reads parts of scores; a part on disk is compared with its checksum when it is first read.

    Args:
        manifest: of the scores.
        path: directory of the scores; None for parts in memory.
    """

    def __init__(self, manifest: ScoresManifest, path: Path | None) -> None:
        self._path = path
        self._names_0_1 = _names_of_0_1(manifest)
        self._checked: set[str] = set()  # files of parts

    def read(self, part: "pa.Table | Part", columns: Sequence[str] | None = None) -> "pa.Table":
        """A part with these columns, by default all; float32 where float16 is stored.

        Raises MismatchError when there is no such column; ArchiveError, kind "missing" or "checksum", when the part is
        missing or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not isinstance(part, Part):
            return _widened(part.select(_choose(columns, part.column_names)))
        file = self._check(part)
        try:
            stored = {self._names_0_1.get(name, name): name for name in pq.read_schema(file).names}
            wanted = _choose(columns, list(stored))
            table = pq.read_table(file, columns=[stored[name] for name in wanted], partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(f"{file}: cannot be read: {error}; score into another directory") from None
        return _widened(table.rename_columns(wanted))

    def _check(self, part: Part) -> Path:
        """The part's file, compared with its checksum unless it was before."""
        assert self._path is not None
        file = self._path / part.file
        if part.file in self._checked:
            return file
        try:
            size, checksum = file.stat().st_size, file_checksum(file)
        except OSError as error:
            raise ArchiveError(f"{file}: missing: {error}; score into another directory", "missing") from None
        if (size, checksum) != (part.bytes, part.xxh3):
            raise ArchiveError(
                f"{file}: checksum mismatch: {part.bytes} bytes with xxh3 {part.xxh3} were written, {size} bytes with "
                f"{checksum} found; the file was damaged or replaced; score into another directory",
                "checksum",
            )
        self._checked.add(part.file)
        return file


def require_pandas(what: str) -> None:
    """Raise ShazamError where pandas is not installed.

    Args:
        what: what needs it, for the message.
    """
    try:
        import pandas  # noqa: F401
    except ImportError:
        raise ShazamError(f"{what} needs pandas: pip install pandas") from None


def write_csv(tables: "Iterator[pa.Table]", path: Path, given: bool) -> None:
    """Write tables of the same columns, one below the other, as one CSV file; complete or not at all.

    Args:
        tables: at least one.
        path: the file.
        given: whether the caller named the columns; if not, columns of lists are left out.

    Raises ShazamError when it cannot be written; MismatchError for a column of lists that was named.
    """
    import pyarrow as pa
    from pyarrow import csv

    unfinished, writer = unfinished_path(path), None
    try:
        for table in tables:
            plain = table.select([field.name for field in table.schema if not pa.types.is_fixed_size_list(field.type)])
            if given and plain.num_columns < table.num_columns:
                raise MismatchError(
                    "a CSV table cannot hold the column 'fused', which has a list per patch; leave it out"
                )
            plain = pa.table({name: _decoded(plain[name]) for name in plain.column_names})
            writer = writer or csv.CSVWriter(str(unfinished), plain.schema)
            writer.write_table(plain)
        assert writer is not None
        writer.close()
        unfinished.replace(path)
    except OSError as error:
        raise ShazamError(f"{path}: cannot be written: {error}; choose another file") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _decoded(column: "pa.ChunkedArray") -> "pa.ChunkedArray":
    import pyarrow as pa

    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _widened(table: "pa.Table") -> "pa.Table":
    """Columns of float16 as float32, which all of Arrow's functions take."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if pa.types.is_float16(field.type):
            chunks = [pa.array(chunk.to_numpy().astype(np.float32)) for chunk in table[place].chunks]
            table = table.set_column(place, field.name, pa.chunked_array(chunks, pa.float32()))
    return table


def _choose(columns: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    if absent := [name for name in columns or () if name not in names]:
        raise MismatchError(f"the scores have no column {absent[0]!r}; they have {', '.join(names)}")
    return list(names if columns is None else columns)


def _names_of_0_1(manifest: ScoresManifest) -> dict[str, str]:
    """Columns as version 0.1 called them -> as they are called now."""
    if manifest.weights is None:
        return {}
    return {"embedding": "fused", **{f"weight_{name}": f"share_{name}" for name in manifest.teachers}}
