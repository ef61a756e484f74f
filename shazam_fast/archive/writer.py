"""Writing native archives, chunk by chunk; an archive can be opened once it is complete."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..annotation.columns import check_classes, check_column, check_lengths, encode_splits, label_indices, names_of
from ..annotation.features import as_features, check_features, interleave, width_of
from ..annotation.given import as_coords, check_teachers, encode_columns
from ..errors import MismatchError, ShazamError
from ..formats.geometry import Geometry
from ..formats.native import PartWriter
from ..formats.pieces import UNKNOWN
from ..runtime.checks import require_path
from ..runtime.documents import encode_document
from ..runtime.files import unfinished_path
from ..runtime.jobs.locks import DirectoryLock, require_writable
from ..runtime.jobs.part_directory import Part
from ..runtime.progress import Progress
from ..tables.slide_names import show
from .parts import ArchiveHead, ArchiveParts, require_dtype

COPY_BYTES = 64 << 20  # bytes of features converted at a time


class ArchiveWriter:
    """Writes a native archive chunk by chunk; memory stays at one chunk whatever the archive's size.

    Args:
        path: directory to create. An archive that is already there is never overwritten.
        teachers: name -> dim, in the order in which the features lie side by side.
        classes: class names in label order; may be empty when there are no labels.
        dtype: "float16" or "float32" on disk.
        part_bytes: largest size of a part's features in bytes.
        geometry: slide -> where its patches lie, where known; "" for patches without a slide name.

    Use it as a context manager: leaving it normally finishes the archive, an exception removes what was written.

    Raises ShazamError when another process is writing there, other files are there, or nothing can be written.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "archive"
    >>> with ArchiveWriter(out, {"uni": 4}, classes=["normal", "tumour"]) as writer:
    ...     writer.append({"uni": np.ones((2, 4))}, labels=["tumour", "normal"])
    >>> writer.n_rows
    2
    """

    def __init__(
        self,
        path: str | Path,
        teachers: Mapping[str, int],
        *,
        classes: Sequence[str] = (),
        dtype: str = "float16",
        part_bytes: int = 1 << 30,
        geometry: Mapping[str, Geometry] | None = None,
    ) -> None:
        require_dtype(dtype)
        self.path = require_path("path", path)
        self.teachers = check_teachers(teachers)
        self.classes = check_classes(classes)
        self.geometry = dict(geometry or {})  # may grow until the archive is closed
        self.n_rows = 0
        self._width = sum(self.teachers.values())
        self._dtype = np.dtype(dtype)
        self._part_rows = max(1, part_bytes // (self._width * self._dtype.itemsize))
        self._names: dict[str, dict[str, int]] = {"slide": {}, "group": {}}
        self._spelt: dict[str, dict[str, str]] = {"slide": {}, "group": {}}  # as they were given
        self._part: PartWriter | None = None
        self._claim()

    def append(
        self,
        features: Mapping[str, NDArray[Any]],
        *,
        labels: ArrayLike | None = None,
        splits: ArrayLike | None = None,
        slides: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        coords: ArrayLike | None = None,
    ) -> None:
        """Add n patches.

        Args:
            features: {teacher: [n, dim]}, of every teacher.
            labels: [n] class indices (-1 unknown) or class names.
            splits: [n] of "train", "val", "test", "none", or their codes 0, 1, 2, 255.
            slides, groups: [n] names, "" unknown.
            coords: int [n, 2], x and y at level 0 in the unit of `geometry`, -1 unknown.

        Raises:
            MismatchError: counts or widths that differ; the message names the teacher.
            NonFiniteError: NaN, infinity, a masked value, one that overflows the archive's dtype, or a row that it
                turns into zeros.
            ShazamError: the disk is full, or nothing can be written.
        """
        features = {name: as_features(name, block) for name, block in features.items()}
        rows = check_features(features, self.teachers)
        columns = {
            "label": None if labels is None else label_indices(labels, self.classes),
            "coords": None if coords is None else as_coords(coords),
            "slide": self._encode_names("slide", slides),
            "group": self._encode_names("group", groups),
            "split": None if splits is None else encode_splits(splits),
        }
        for name, column in columns.items():
            check_column(name, column, rows, self.n_rows)
        try:
            self._write(features, columns, rows)
        except OSError as error:
            raise ShazamError(f"{self.path}: writing stopped after {self.n_rows} rows: {error}") from error

    def close(self) -> None:
        """Finish the archive: write the last part, then the manifest.

        Raises ShazamError when that fails; MismatchError when `geometry` names a slide of which there is no patch.
        """
        if self.n_rows == 0:
            raise ShazamError(f"{self.path}: an archive needs at least one row, none was appended")
        slides = list(self._names["slide"])
        if absent := [slide for slide in self.geometry if slide and slide not in self._names["slide"]]:
            raise MismatchError(f"{self.path}: geometry: no patch is of slide {absent[0]!r}; slides are {show(slides)}")
        try:
            self._close_part()
            self._directory.count = len(self._parts)
            self._directory.publish(encode_document(self._head().manifest(self._parts, None, None)))
        except OSError as error:
            raise ShazamError(f"{self.path}: the archive could not be finished: {error}") from error
        self._lock.release()

    def abort(self) -> None:
        """Remove everything that this writer has written so far."""
        if self._part is not None:
            self._part.abort()
            self._part = None
        self._directory.discard()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise

    def _claim(self) -> None:
        self._parts: list[Part] = []
        self._directory = ArchiveParts(self.path, {"command": "write_archive"}, 0, self._head())
        self._lock = DirectoryLock(self.path)
        try:
            self._directory.claim()
            self._directory.remove_parts()  # of a writer that was killed
        except BaseException:
            self._lock.release()
            raise

    def _head(self) -> ArchiveHead:
        slides, groups = (list(self._names[kind]) for kind in ("slide", "group"))
        return ArchiveHead(self.teachers, self._dtype.name, self.classes, slides, groups, self.geometry)

    def _encode_names(self, kind: str, names: ArrayLike | None) -> NDArray[np.int32] | None:
        if names is None:
            return None
        texts = names_of(names, f"{kind}s", self._spelt[kind])
        unique, inverse = np.unique(texts, return_inverse=True)
        known = self._names[kind]
        codes = [known.setdefault(str(name), len(known)) if name else UNKNOWN[kind] for name in unique]
        return np.array(codes, dtype=np.int32)[inverse.reshape(-1)]

    def _write(
        self, features: Mapping[str, NDArray[Any]], columns: Mapping[str, NDArray[Any] | None], rows: int
    ) -> None:
        """Write rows that were checked, some megabytes at a time; parts that are full are closed."""
        step = max(1, COPY_BYTES // (self._width * self._dtype.itemsize))
        start = 0
        while start < rows:
            if self._part is None:
                self._part = PartWriter(unfinished_path(self._directory.part_path(len(self._parts))))
            stop = min(rows, start + step, start + self._part_rows - self._part.n_rows)
            chunk = {name: block[start:stop] for name, block in features.items()}
            self._part.append(
                interleave(chunk, self.teachers, self._dtype, self.n_rows),
                {name: None if column is None else column[start:stop] for name, column in columns.items()},
            )
            self.n_rows += stop - start
            if self._part.n_rows == self._part_rows:
                self._close_part()
            start = stop

    def _close_part(self) -> None:
        if self._part is None:
            return
        self._part.close(self._width, self._dtype)
        record = self._directory.add(len(self._parts), self._part.path, self._part.n_rows)
        assert record.part is not None
        self._parts.append(record.part)
        self._part = None


# Over 40 lines: every option is documented here.
def write_archive(
    path: str | Path,
    features: Mapping[str, NDArray[Any]] | Iterable[Mapping[str, NDArray[Any]]],
    *,
    labels: ArrayLike | None = None,
    splits: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    slides: ArrayLike | None = None,
    coords: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    dtype: str = "float16",
    geometry: Mapping[str, Geometry] | None = None,
) -> Path:
    """Write a native archive and return its path.

    Args:
        path: directory to create.
        features: {teacher: [n, dim]} (arrays, memory maps, torch tensors, lists), or an iterator of such mappings, one
            per chunk.
        labels: [n] class indices (-1 unknown) or class names.
        splits: [n] of "train", "val", "test", "none", or their codes 0, 1, 2, 255.
        groups: [n] names of what must stay in one split (patients).
        slides: [n] slide names.
        coords: int [n, 2], x and y at level 0 in the unit of `geometry` (pixels unless it says otherwise), -1 unknown;
            or a DataFrame with the columns x and y.
        classes: names in label order; the labels' names in natural order ("2" before "10") by default.
        dtype: "float16" or "float32" on disk.
        geometry: slide -> where its patches lie, as far as that is known; "" for patches of no named slide.

    Raises:
        MismatchError: arrays whose lengths or widths do not fit.
        NonFiniteError: NaN, infinity, a masked value, overflow, or a row that becomes all zero; names the teacher and
            the first row.
        ShazamError: a teacher without a name; the directory holds files already, or the disk is full.
            Nothing is left behind.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "archive"
    >>> path = write_archive(out, {"uni": np.ones((2, 4))}, labels=["tumour", "normal"])
    >>> sorted(file.name for file in path.iterdir())
    ['archive.json', 'part-00000.safetensors']
    """
    path = require_path("path", path)
    classes, columns = encode_columns(labels, splits, groups, slides, coords, classes)
    total = len(next(iter(features.values()))) if isinstance(features, Mapping) and features else None
    if isinstance(features, Mapping):
        chunks = _slices({name: as_features(name, block) for name, block in features.items()})
    else:
        chunks = ({name: as_features(name, block) for name, block in chunk.items()} for chunk in features)
    require_writable(path)
    first = next(chunks, None)
    if not first:
        raise ShazamError(f"{path}: an archive needs at least one teacher and one row, there is none")
    teachers = {name: width_of(name, array) for name, array in first.items()}
    with (
        ArchiveWriter(path, teachers, classes=classes, dtype=dtype, geometry=geometry) as writer,
        Progress(f"writing {path.name}", total, "rows") as progress,
    ):
        for chunk in chain([first], chunks):
            start, rows = writer.n_rows, check_features(chunk, teachers)
            check_lengths(path, columns, start + rows, at_least=True)
            writer.append(chunk, **{name: column[start : start + rows] for name, column in columns.items()})
            progress.advance(rows)
        check_lengths(path, columns, writer.n_rows, at_least=False)
    return path


def _slices(features: Mapping[str, NDArray[Any]]) -> Iterator[Mapping[str, NDArray[Any]]]:
    teachers = {name: width_of(name, array) for name, array in features.items()}
    rows = check_features(features, teachers) if features else 0
    step = max(1, COPY_BYTES // (2 * max(1, sum(teachers.values()))))
    for start in range(0, rows, step):
        yield {name: array[start : start + step] for name, array in features.items()}
