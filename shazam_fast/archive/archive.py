"""FeatureArchive: the features of several teachers for the same patches, memory-mapped and aligned."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..annotation.columns import check_indices
from ..errors import ArchiveError, MismatchError, NonFiniteError
from ..formats.native import StoredColumn
from ..formats.pieces import COLUMNS, SPLITS, UNKNOWN, Contents, DTypeName, InMemory
from ..runtime.files import file_checksum
from ..runtime.progress import Progress
from .fingerprint import fingerprint
from .rows import as_rows, describe_row

VERIFY_BYTES = 256 << 20  # of features between two steps of the progress bar
BATCHES_AHEAD = 2  # that a stream gathers while one is worked on
ANNOUNCED_BYTES = 768 << 10  # at a time: longer runs the core leaves to the system
STREAM_ROWS = 512  # a batch: the buffers stay in the cache, worth a third of the rate from a fast disk


@dataclass(frozen=True)
class Batch:
    """Some patches of an archive: `rows` int64 [n], `features` float32 [n, sum of dims], `labels` int64 [n]."""

    rows: NDArray[np.int64]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]


class FeatureArchive:
    """Features of N teachers for the same patches, opened in place; made by `shazam_fast.open`.

    The teachers' features of a patch lie side by side, in the order of `teachers`. Nothing is read until it is asked
    for; per-patch columns are read whole on first use. An archive can be pickled and sent to other processes.

    Attributes:
        path: what was opened.
        teachers: name -> dim.
        dtype: of the stored features; "float32" where teachers are stored in several.
        n_rows: number of patches.
        classes: class names in label order.
        slides: slide names.
        groups: names of groups (patients).
        geometry: slide -> where its patches lie (unit, patch size, level, mpp, reader), "" where the archive names no
            slides; slides of which nothing is known are absent.
        left_out: slide -> why it was left out (`on_error="skip"`).
        fingerprint: changes with the content.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._stores = [_core.FeatureStore(b.columns, b.dtype, b.files, b.table) for b in contents.blocks]
        self._first_column = np.cumsum([0, *(b.columns for b in contents.blocks)]).tolist()
        self._threads = len(os.sched_getaffinity(0))
        self.path = contents.path
        self.teachers = dict(contents.teachers)
        dtypes = {b.dtype for b in contents.blocks}
        self.dtype: DTypeName = dtypes.pop() if len(dtypes) == 1 else "float32"
        self.n_rows = self._stores[0].rows
        self.classes = contents.classes
        self.slides = contents.slides
        self.groups = contents.groups
        self.geometry = contents.geometry
        self.left_out = contents.left_out

    def __len__(self) -> int:
        return self.n_rows

    def __reduce__(self) -> tuple[type["FeatureArchive"], tuple[Contents]]:
        return FeatureArchive, (self._contents,)

    def __repr__(self) -> str:
        teachers = ", ".join(f"{name}: {dim}" for name, dim in self.teachers.items())
        return f"FeatureArchive({str(self.path)!r}, {self.n_rows:,} patches, teachers={{{teachers}}}, {self.dtype})"

    @property
    def records(self) -> dict[str, dict[str, str]]:
        """Transform, pooling and weights' revision of each teacher, as far as the archive says so."""
        said = ((name, self._contents.records.get(name.partition(":")[0])) for name in self.teachers)
        return {name: dict(record) for name, record in said if record}

    @property
    def width(self) -> int:
        """Columns of all teachers together."""
        return sum(self.teachers.values())

    @property
    def files(self) -> tuple[str, ...]:
        """The files that the features lie in, teacher after teacher."""
        return tuple(dict.fromkeys(file for block in self._contents.blocks for file in block.files))

    @property
    def fingerprint(self) -> dict[str, str]:
        """Digests of "features", "labels", "splits", "groups", "slides" and "positions", taken anew at every call.

        They change with content, also when a file is written anew in place, and not with the path. Raises ArchiveError
        when a file is gone.
        """
        return fingerprint(self._contents)

    @property
    def row_bytes(self) -> int:
        """Bytes of one patch's features as stored."""
        return sum(store.columns * store.itemsize for store in self._stores)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class index of every patch, -1 unknown. [rows]. Raises ArchiveError when one is out of range."""
        return self.column("label", 0, self.n_rows)

    @cached_property
    def splits(self) -> NDArray[np.uint8]:
        """Split code of every patch: 0 train, 1 val, 2 test, 255 none. [rows]. Raises ArchiveError for another code."""
        splits = self.column("split", 0, self.n_rows)
        bad = np.flatnonzero(~np.isin(splits, list(SPLITS.values())))
        if bad.size:
            raise ArchiveError(f"{self.path}: split {splits[bad[0]]} in row {bad[0]}; codes are {SPLITS}")
        return splits

    @cached_property
    def slide_index(self) -> NDArray[np.int32]:
        """Index into `slides` of every patch, -1 unknown. [rows]."""
        return self.column("slide", 0, self.n_rows)

    @cached_property
    def group_index(self) -> NDArray[np.int32]:
        """Index into `groups` (patients) of every patch, -1 unknown. [rows]."""
        return self.column("group", 0, self.n_rows)

    @cached_property
    def coords(self) -> NDArray[np.int32] | NDArray[np.float32]:
        """x and y of every patch, -1 unknown, in the unit that `geometry` says. int32 or float32 [rows, 2]."""
        return self.column("coords", 0, self.n_rows)

    def split(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Row numbers of the split "train", "val", "test" or "none", of those in [start, stop).

        Raises MismatchError for another name.
        """
        if name not in SPLITS:
            raise MismatchError(f"no split is called {name!r}; splits are {', '.join(SPLITS)}")
        codes = self.splits if (start, stop) == (0, None) else self.column("split", start, stop or self.n_rows)
        return start + np.flatnonzero(codes == SPLITS[name])

    def with_splits(self, splits: NDArray[np.uint8]) -> "FeatureArchive":
        """The same archive with other split codes uint8 [n_rows]: 0 train, 1 val, 2 test, 255 none."""
        columns: dict[str, Callable[[], NDArray[Any]]] = {**self._contents.columns, "split": InMemory(splits)}
        return FeatureArchive(replace(self._contents, columns=columns))

    def columns_of(self, teacher: str) -> slice:
        """Where a teacher's features lie in the second axis of `gather`."""
        if teacher not in self.teachers:
            raise MismatchError(f"{self.path}: no teacher {teacher!r}; it has {', '.join(self.teachers)}")
        names = list(self.teachers)
        start = sum(self.teachers[name] for name in names[: names.index(teacher)])
        return slice(start, start + self.teachers[teacher])

    def column(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of "label", "split", "slide", "group" or "coords" as stored; reads no others if it can."""
        if not 0 <= start <= stop <= self.n_rows:
            raise MismatchError(f"{self.path}: rows {start} to {stop} of {self.n_rows} rows")
        stored = self._contents.columns.get(name)
        if stored is None:
            return np.full((stop - start, *COLUMNS[name][1]), UNKNOWN[name], dtype=COLUMNS[name][0])
        try:
            column = stored.read(start, stop) if isinstance(stored, StoredColumn) else stored()[start:stop]
        except OSError as error:
            raise ArchiveError(f"{self.path}: column {name!r} cannot be read: {error}") from error
        names = {"label": self.classes, "slide": self.slides, "group": self.groups}
        if name in names:
            check_indices(self.path, name, column, len(names[name]), start)
        elif name == "split" and not (known := np.isin(column, list(SPLITS.values()))).all():
            row = int(np.argmin(known))
            raise ArchiveError(f"{self.path}: split {column[row]} in row {start + row} is none of {dict(SPLITS)}")
        return column

    def gather(self, rows: ArrayLike, out: NDArray[Any] | None = None, threads: int | None = None) -> NDArray[Any]:
        """Features of the given rows, all teachers side by side. [n] -> [n, width].

        Args:
            rows: row numbers in any order, repeats allowed.
            out: where to write: float32, or `dtype` (bfloat16 as uint16). A new float32 array by default.
            threads: how many may work on it; as many as there are processors by default.

        Raises:
            MismatchError: `rows` is a mask or no list of whole numbers, or `out` does not fit.
            ArchiveError: a row does not exist, or a file is missing, truncated, or has shrunk.
        """
        index = as_rows(rows)
        if out is None:
            out = np.empty((len(index), self.width), dtype=np.float32)
        if out.shape != (len(index), self.width):
            raise MismatchError(f"out of shape {(len(index), self.width)} expected, found {out.shape}")
        with self._store_errors():
            for store, start in zip(self._stores, self._first_column, strict=False):
                store.gather(index, out[:, start : start + store.columns], threads or self._threads)
        return out

    def will_need(self, rows: NDArray[np.int64]) -> None:
        """Start reading the features of these rows from the disk, unless they are in memory, and return at once."""
        with self._store_errors():
            for store in self._stores:
                step = max(1, ANNOUNCED_BYTES // (store.columns * store.itemsize))
                for start in range(0, len(rows), step):
                    store.will_need(rows[start : start + step])

    def batches(self, rows: NDArray[np.int64] | None = None, batch_size: int = 4096) -> Iterator[Batch]:
        """The given rows (default: all, in order) as float32 batches; the last may be short."""
        rows = np.arange(self.n_rows) if rows is None else as_rows(rows)
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            yield Batch(chosen, self.gather(chosen), self.labels[chosen])

    def stream(
        self,
        rows: NDArray[np.int64] | None = None,
        batch_size: int = STREAM_ROWS,
        buffers: list[NDArray[np.float32]] | None = None,
    ) -> Iterator[Batch]:
        """`batches`, gathered ahead on a background thread, in a few buffers whatever the archive's size.

        A batch's features are valid until the next batch is asked for. `buffers`, at least two of [batch_size, width],
        are used where the caller wants the features in memory of its own, such as page-locked memory.
        """
        rows = np.arange(self.n_rows) if rows is None else as_rows(rows)
        bounds = np.append(np.arange(0, len(rows), batch_size), len(rows))
        size = min(batch_size, len(rows))
        if buffers is None:
            buffers = [np.empty((size, self.width), dtype=np.float32) for _ in range(BATCHES_AHEAD + 1)]
        sources = list(zip(self._stores, self._first_column, strict=False))
        with self._store_errors():
            prefetcher = _core.Prefetcher(sources, rows, bounds, buffers, self._threads)
            try:
                for start, stop in pairwise(bounds.tolist()):
                    filled = prefetcher.next()
                    assert filled is not None
                    buffer, count = filled
                    yield Batch(rows[start:stop], buffers[buffer][:count], self.labels[rows[start:stop]])
                    prefetcher.release(buffer)
            finally:
                prefetcher.close()

    def verify(self) -> None:
        """Check every part's checksum and that all features are finite.

        Raises ArchiveError naming the file, or NonFiniteError naming the teacher and the first row.
        """
        step = max(1, VERIFY_BYTES // self.row_bytes)
        total = sum(os.path.getsize(file) for file in self._contents.checksums) + self.n_rows * self.row_bytes
        with Progress(f"verifying {self.path.name}", total, "bytes") as progress, self._store_errors():
            for file, expected in self._contents.checksums.items():
                found = file_checksum(Path(file))
                if found != expected:
                    raise ArchiveError(
                        f"{file}: checksum mismatch: xxh3 {expected} expected, {found} found", "checksum"
                    )
                progress.advance(os.path.getsize(file))
            for start in range(0, self.n_rows, step):
                stop = min(start + step, self.n_rows)
                bad = [row for store in self._stores if (row := store.check_finite(start, stop)) >= 0]
                if bad:
                    self.require_finite([min(bad)], self.gather([min(bad)]))
                progress.advance((stop - start) * self.row_bytes)

    def require_finite(self, rows: Sequence[int] | NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Raise NonFiniteError, naming teacher, slide, file and row, for the first NaN or infinity in features."""
        finite = np.isfinite(features)
        if finite.all():
            return
        position, column = np.argwhere(~finite)[0]
        teacher = next(name for name in self.teachers if column < self.columns_of(name).stop)
        row = int(rows[position])
        raise NonFiniteError(
            f"{self.path}: teacher {teacher!r}, row {row} ({describe_row(self._contents, teacher, row)}): "
            f"the feature is {features[position, column]}; extract this patch again or leave it out"
        )

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except _core.StoreError as error:
            raise ArchiveError(str(error), error.kind) from None
