"""Scores: what a student says of patches, in memory or in Parquet parts on disk that are read when asked for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError, MismatchError

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "shazam_fast scores"
VERSION = 1
MANIFEST = "_scores.json"  # the underscore makes Parquet readers of a directory pass it over
JOURNAL = "_unfinished.jsonl"


class Scores:
    """What a student says of n patches; made by `shazam_fast.score` and `shazam_fast.open_scores`.

    The parts are Arrow tables in memory or Parquet files. Columns: `row` int64 of the archive, `slide`, `x`, `y`,
    `prediction`, `probability_<class>` and `share_<teacher>` float32, and `fused`, float32 lists of length D, if
    it was asked for. A teacher's share is its exact part in the patch's fused feature; residual students have none.

    The properties read one column of all patches into memory on first use; `tables` goes part by part.
    """

    def __init__(self, about: Mapping[str, Any], parts: Sequence["pa.Table | Path"], path: Path | None = None) -> None:
        self.path = path
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.teachers: tuple[str, ...] = tuple(about["teachers"])
        self.missing_teachers: tuple[str, ...] = tuple(about["missing_teachers"])
        self._rows: int = about["rows"]
        self._has_shares: bool = about["shares"]
        self._parts = parts

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        place = "in memory" if self.path is None else repr(str(self.path))
        return f"Scores({place}, {self._rows:,} patches, classes={list(self.classes)}, teachers={list(self.teachers)})"

    def tables(self, columns: Sequence[str] | None = None) -> Iterator["pa.Table"]:
        """An Arrow table of every part in turn, with these columns; all by default.

        Raises MismatchError when there is no such column, ArchiveError when a part is missing or corrupt.
        """
        return (_read_part(part, columns) for part in self._parts)

    def read(self, columns: Sequence[str] | None = None) -> "pa.Table":
        """All patches as one Arrow table; `.to_pandas()` makes a data frame of it."""
        import pyarrow as pa

        return pa.concat_tables(list(self.tables(columns))).unify_dictionaries()

    def of_slide(self, name: str) -> "pa.Table":
        """All columns of one slide's patches. Raises MismatchError when no patch is of that slide."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = []
        for part, slides in zip(self._parts, self._slides_of_parts, strict=True):
            if name in slides:
                table = _read_part(part, None)
                found.append(table.filter(pc.equal(table["slide"].cast(pa.string()), name)))
        if not found:
            raise MismatchError(f"{self!r}: no patch of slide {name!r}; slides are {list(self.slides)[:5]}")
        return pa.concat_tables(found).unify_dictionaries()

    @property
    def slides(self) -> tuple[str, ...]:
        """Names of the slides that patches are of, in the order of the parts."""
        return tuple(dict.fromkeys(name for names in self._slides_of_parts for name in names))

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Row in the archive of every patch. [n]."""
        return self._numbers(["row"])[:, 0]

    @cached_property
    def coords(self) -> NDArray[Any]:
        """x and y of every patch, -1 unknown. [n, 2]."""
        return self._numbers(["x", "y"])

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """The most probable class of every patch, an index into `classes`. [n]."""
        return np.concatenate([self._codes(table["prediction"]) for table in self.tables(["prediction"])])

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """float32 [n, C]."""
        return self._numbers([f"probability_{name}" for name in self.classes])

    @cached_property
    def shares(self) -> NDArray[np.float32] | None:
        """Exact share of each teacher in the patch's fused feature, float32 [n, N], rows summing to 1.

        None for residual students, which have no such shares.
        """
        return self._numbers([f"share_{name}" for name in self.teachers]) if self._has_shares else None

    @cached_property
    def fused(self) -> NDArray[np.float32]:
        """The fused feature of every patch, float32 [n, D]. Raises MismatchError unless it was asked for."""
        import pyarrow.compute as pc

        chunks = [table["fused"] for table in self.tables(["fused"])]
        return np.concatenate([pc.list_flatten(c).to_numpy().reshape(len(c), -1) for c in chunks])

    @cached_property
    def _slides_of_parts(self) -> list[list[str]]:
        found = [table["slide"].unique().to_pylist() for table in self.tables(["slide"])]
        return [[name for name in names if name is not None] for names in found]

    def _numbers(self, columns: list[str]) -> NDArray[Any]:
        parts = [np.stack([table[c].to_numpy() for c in columns], axis=1) for table in self.tables(columns)]
        return np.concatenate(parts)

    def _codes(self, column: "pa.ChunkedArray") -> NDArray[np.int64]:
        code = {name: index for index, name in enumerate(self.classes)}
        chunks = [
            np.array([code[name] for name in chunk.dictionary.to_pylist()], np.int64)[chunk.indices.to_numpy()]
            for chunk in column.chunks
        ]
        return np.concatenate(chunks) if chunks else np.empty(0, np.int64)


def open_scores(path: str | Path) -> Scores:
    """Open what `score` wrote into a directory; nothing but the manifest is read.

    Raises ArchiveError when there is none, the scoring was interrupted, or a part is missing or was replaced.
    """
    path = Path(path)
    if (path / JOURNAL).exists() and not (path / MANIFEST).exists():
        raise ArchiveError(f"{path}: the scoring was interrupted; the same call of score finishes it")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise ValueError(f"{manifest['format']!r} version {manifest['version']!r}, expected {FORMAT!r} {VERSION}")
        parts = [(path / part["file"], part["bytes"]) for part in manifest["parts"]]
        scores = Scores(manifest, [file for file, _ in parts], path)
    except FileNotFoundError:
        raise ArchiveError(f"{path}: no scores there: {MANIFEST} not found") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(f"{path / MANIFEST}: corrupt: {error!r}") from None
    for file, size in parts:
        if not file.is_file() or file.stat().st_size != size:
            raise ArchiveError(f"{file}: missing, or not the {size} bytes that were written")
    return scores


def _read_part(part: "pa.Table | Path", columns: Sequence[str] | None) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(part).names if isinstance(part, Path) else part.column_names
        if absent := [name for name in columns or () if name not in names]:
            raise MismatchError(f"the scores have no column {absent[0]!r}; they have {', '.join(names)}")
        wanted = names if columns is None else list(columns)
        return pq.read_table(part, columns=wanted, partitioning=None) if isinstance(part, Path) else part.select(wanted)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArchiveError(f"{part}: missing or corrupt: {error}; score into another directory") from None
