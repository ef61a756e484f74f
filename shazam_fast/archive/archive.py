"""FeatureArchive: the features of several teachers for the same patches, memory-mapped and aligned."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..annotation.columns import check_column
from ..errors import ArchiveError, MismatchError
from ..formats.pieces import Contents, DTypeName, InMemory
from ..runtime.checks import require_count
from ..runtime.progress import Progress
from ..runtime.summaries import counted, name_some, summary_html
from .fingerprint import compare_checksums, file_status, fingerprint, require_unchanged
from .rows import Batch, PatchColumns, RowKey, as_rows, choose_rows, require_finite

VERIFY_BYTES = 256 << 20  # bytes of features between two steps of the progress bar
BATCHES_AHEAD = 2  # batches that `stream` gathers ahead of the one in use
PICKED_ROWS = 4096  # rows read at a time where only one teacher's columns are kept
STREAM_ROWS = 512  # rows per batch; the buffers then stay in the CPU's cache, which is a third faster


class FeatureArchive(PatchColumns):
    """Features of several teachers for the same patches, opened in place; made by `shazam_fast.open`.

    The teachers' features of a patch lie side by side, in the order of `teachers`. Nothing is read until it is asked
    for; per-patch columns are read whole on first use, and cannot be written to. An archive can be pickled.

    Attributes:
        path: the path that was opened.
        teachers: name -> dim (columns of its feature).
        dtype: "float16", "bfloat16" or "float32", the type of the stored features; "float32" where teachers differ.
        n_rows: number of patches, also `len(archive)`.
        width: columns of all teachers together.
        row_bytes: bytes of one patch's features as stored.
        classes, slides, groups: names of classes, slides and groups (patients), in the order of their indices.
        labels: int64 [n_rows], index into `classes`, -1 unknown.
        splits: uint8 [n_rows]: 0 train, 1 val, 2 test, 255 none.
        slide_index, group_index: int32 [n_rows], index into `slides` and `groups`, -1 unknown.
        coords: int32 or float32 [n_rows, 2], x and y in the unit that `geometry` names, -1 unknown.
        geometry: slide -> where its patches lie (unit, patch size, level, mpp, reader), "" where the archive names no
            slides; slides of which nothing is known are absent.
        left_out: slide -> why it was left out (`on_error="skip"`).
        records: teacher -> its transform, pooling and revision of weights, as far as the archive holds them.
        files: the files that hold the features.
        fingerprint: digests of the content.

    >>> import tempfile
    >>> from shazam_fast.archive.opening import open_archive
    >>> np.save(f"{(folder := tempfile.mkdtemp())}/s1.npy", np.ones((3, 8), np.float32))
    >>> archive = open_archive({"uni": folder})
    >>> archive.n_rows, archive.teachers, archive.gather([2, 0]).shape
    (3, {'uni': 8}, (2, 8))
    """

    def __init__(self, contents: Contents) -> None:
        listed = contents.stamp
        stamp = None if listed is None else (os.fsencode(listed.path), listed.time, listed.inode)
        self._stores = [
            _core.FeatureStore(b.columns, b.dtype, b.files, b.table, manifest=stamp, modified=b.modified)
            for b in contents.blocks
        ]
        super().__init__(contents, self._stores[0].rows)
        self._first_column = np.cumsum([0, *(b.columns for b in contents.blocks)]).tolist()
        self._threads = len(os.sched_getaffinity(0))
        self.path = contents.path
        self.teachers = dict(contents.teachers)
        first, *others = {b.dtype for b in contents.blocks}
        self.dtype: DTypeName = "float32" if others else first
        self.classes = contents.classes
        self.slides = contents.slides
        self.groups = contents.groups
        self.geometry = contents.geometry
        self.left_out = contents.left_out

    def __len__(self) -> int:
        return self.n_rows

    def __reduce__(self) -> tuple[type["FeatureArchive"], tuple[Contents]]:
        return FeatureArchive, (self._contents,)

    __iter__ = None  # patch by patch would be slow: see `batches` and `stream`

    def __getitem__(self, key: RowKey | str | tuple[RowKey, str]) -> NDArray[np.float32]:
        """`archive[rows]`: features [n, width]; `archive["uni"]`: one teacher's, [n_rows, dim]; `archive[rows, "uni"]`.

        Rows are one number (then [width]), a slice, row numbers or a mask of booleans. Read at once, as float32.
        Raises MismatchError for an unknown teacher, otherwise as `gather`.
        """
        chosen, teacher = key if isinstance(key, tuple) else (slice(None), key) if isinstance(key, str) else (key, None)
        rows = choose_rows(chosen, self.n_rows)
        columns = slice(None) if teacher is None else self.columns_of(teacher)
        parts = [self.gather(rows[i : i + PICKED_ROWS])[:, columns] for i in range(0, len(rows) or 1, PICKED_ROWS)]
        features = np.concatenate(parts)
        return features[0] if isinstance(chosen, int | np.integer) else features

    def __repr__(self) -> str:
        teachers = name_some(f"{name}: {dim}" for name, dim in self.teachers.items())
        patches = counted(self.n_rows, "patch")
        return f"FeatureArchive({str(self.path)!r}, {patches}, teachers={{{teachers}}}, {self.dtype})"

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {"path": self.path, "patches": f"{self.n_rows:,}", "dtype": self.dtype}
        facts |= {"slides": len(self.slides) or "", "groups": len(self.groups) or ""}
        facts |= {"classes": name_some(self.classes, 20), "left out": name_some(self.left_out)}
        return summary_html("FeatureArchive", facts, ("teacher", "columns"), self.teachers.items())

    @property
    def records(self) -> dict[str, dict[str, str]]:
        """Teacher -> its transform, pooling and revision of weights, as far as the archive holds them."""
        said = ((name, self._contents.records.get(name.partition(":")[0])) for name in self.teachers)
        return {name: dict(record) for name, record in said if record}

    @property
    def width(self) -> int:
        """Columns of all teachers together."""
        return sum(self.teachers.values())

    @property
    def files(self) -> tuple[str, ...]:
        """The files that hold the features, teacher after teacher."""
        return tuple(dict.fromkeys(file for block in self._contents.blocks for file in block.files))

    @property
    def fingerprint(self) -> dict[str, str]:
        """Digests of "features", "labels", "splits", "groups", "slides" and "positions", taken anew at every call.

        They change with the content, also when a file is rewritten in place, but not with the path. Raises ArchiveError
        when a file is missing.
        """
        require_unchanged(self._contents)
        return fingerprint(self._contents)

    @property
    def row_bytes(self) -> int:
        """Bytes of one patch's features as stored."""
        return sum(store.columns * store.itemsize for store in self._stores)

    def with_splits(self, splits: NDArray[np.uint8]) -> "FeatureArchive":
        """The same archive with other split codes uint8 [n_rows]: 0 train, 1 val, 2 test, 255 none.

        Raises MismatchError for another length or type.
        """
        check_column("split", splits, self.n_rows)
        column = InMemory(splits.astype(np.uint8))  # a copy: the caller's array may change
        return FeatureArchive(replace(self._contents, columns={**self._contents.columns, "split": column}))

    def columns_of(self, teacher: str) -> slice:
        """The columns of a teacher in what `gather` returns. Raises MismatchError for an unknown teacher."""
        if teacher not in self.teachers:
            raise MismatchError(f"{self.path}: no teacher {teacher!r}; it has {', '.join(self.teachers)}")
        names = list(self.teachers)
        start = sum(self.teachers[name] for name in names[: names.index(teacher)])
        return slice(start, start + self.teachers[teacher])

    def gather(self, rows: ArrayLike, out: NDArray[Any] | None = None, threads: int | None = None) -> NDArray[Any]:
        """Features of the given rows, all teachers side by side. [n] -> [n, width].

        Args:
            rows: [n] row numbers in any order, repeats allowed.
            out: array [n, width] to write to: float32, or `dtype` (bfloat16 as uint16). A new float32 array by default.
            threads: number of threads; one per core by default.

        Raises:
            MismatchError: `rows` is a mask or not a list of whole numbers, or `out` has another shape.
            ArchiveError: a row does not exist, or a file is missing, truncated, or has shrunk.
        """
        index = as_rows(rows)
        threads = self._threads if threads is None else require_count("threads", threads)
        if out is None:
            out = np.empty((len(index), self.width), dtype=np.float32)
        if out.shape != (len(index), self.width):
            raise MismatchError(f"out of shape {(len(index), self.width)} expected, found {out.shape}")
        with self._store_errors():
            for store, start in zip(self._stores, self._first_column, strict=False):
                store.gather(index, out[:, start : start + store.columns], threads)
        return out

    def read_ahead(self, rows: NDArray[np.int64]) -> None:
        """Read the features of rows int64 [n] from the disk, so that `gather` need not wait for it.

        Returns when all that lie in long runs were read; reading scattered rows has started.
        """
        with self._store_errors():
            for store in self._stores:
                store.read_ahead(rows)

    def gather_past_cache(self, rows: NDArray[np.int64], out: NDArray[Any]) -> bool:
        """Like `gather` for rows int64 [n] that the page cache lacks, which stays as it is; by one thread.

        Returns whether it did so: False, with nothing read, where all rows seem to be in the page cache.
        """
        sources = [(s, out[:, at : at + s.columns]) for s, at in zip(self._stores, self._first_column, strict=False)]
        with self._store_errors():
            left = [(store, part) for store, part in sources if not store.gather_past_cache(rows, part)]
            if len(left) == len(sources):
                return False
            for store, part in left:
                store.gather(rows, part)
        return True

    def batches(self, rows: NDArray[np.int64] | None = None, batch_size: int = 4096) -> Iterator[Batch]:
        """Yield batches of patches.

        Args:
            rows: int64 [n] row numbers; all, in order, by default.
            batch_size: patches per batch; the last may be shorter.

        Raises what `gather` raises.
        """
        require_count("batch_size", batch_size)
        rows = np.arange(self.n_rows) if rows is None else as_rows(rows)
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            yield Batch(chosen, self.gather(chosen), self.labels[chosen])

    def stream(
        self,
        rows: NDArray[np.int64] | None = None,
        batch_size: int = STREAM_ROWS,
        buffers: list[NDArray[Any]] | None = None,
        past_cache: bool = False,
    ) -> Iterator[Batch]:
        """Like `batches`, but gathered ahead by a background thread, in a few buffers that are used again.

        A batch's features are valid until the next batch is asked for: copy what must last longer.

        Args:
            rows, batch_size: as for `batches`.
            buffers: at least two arrays [batch_size, width] to gather into, such as page-locked memory, float32 or
                `dtype` as for `gather`, which the batches' features then are; made here, of float32, by default.
            past_cache: read what the page cache lacks past it, which then stays as it is: best for batches of 16 MB
                and more that lie in long runs, of features that memory cannot hold.

        Raises what `gather` raises.
        """
        require_count("batch_size", batch_size)
        rows = np.arange(self.n_rows) if rows is None else as_rows(rows)
        bounds = np.append(np.arange(0, len(rows), batch_size), len(rows))
        size = min(batch_size, len(rows))
        if buffers is None:
            buffers = [np.empty((size, self.width), dtype=np.float32) for _ in range(BATCHES_AHEAD + 1)]
        sources = list(zip(self._stores, self._first_column, strict=False))
        with self._store_errors():
            prefetcher = _core.Prefetcher(sources, rows, bounds, buffers, self._threads, past_cache)
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
        require_unchanged(self._contents)
        step = max(1, VERIFY_BYTES // self.row_bytes)
        total = self.n_rows * self.row_bytes + sum(file_status(file).st_size for file in self._contents.checksums)
        with Progress(f"verifying {self.path.name}", total, "bytes") as progress, self._store_errors():
            for n_bytes in compare_checksums(self._contents):
                progress.advance(n_bytes)
            for start in range(0, self.n_rows, step):
                stop = min(start + step, self.n_rows)
                bad = [row for store in self._stores if (row := store.check_finite(start, stop)) >= 0]
                if bad:
                    self.require_finite([min(bad)], self.gather([min(bad)]))
                progress.advance((stop - start) * self.row_bytes)

    def require_finite(self, rows: Sequence[int] | NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Raise NonFiniteError, naming teacher, slide, file and row, for the first NaN or infinity in features.

        Args:
            rows: [n] row numbers.
            features: float32 [n, width] of these rows, as `gather` returns them.
        """
        require_finite(self._contents, rows, features)

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except _core.StoreError as error:
            raise ArchiveError(str(error), error.kind) from None
