"""Convert features of any supported format to one native archive, in which a patch takes one read."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..annotation.annotations import Given
from ..annotation.splits import GroupedSplit
from ..errors import MismatchError, NonFiniteError
from ..formats.native import MANIFEST, Manifest
from ..runtime.checks import require_path
from ..runtime.documents import Count, Ratio, Record
from ..runtime.jobs.locks import require_writable
from ..runtime.progress import Progress
from .opening import OnError
from .parts import ArchiveHead, ArchiveParts, PartChunk, require_dtype
from .reader import Readable

PART_BYTES = 1 << 30
CHUNK_BYTES = 32 << 20  # of features at a time, as they are stored in the archive


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote, and what it cost in precision.

    Attributes:
        path: directory of the archive.
        n_rows: number of patches.
        bytes: size of all parts together.
        overflowed: number of values beyond the range of float16 (they are kept in a float32 archive).
        max_error: teacher -> largest relative rounding error |stored - given| / |given| of a patch's feature; 0 where
            nothing was rounded.
        rms_error: teacher -> root mean square of that error over all patches.
    """

    path: Path
    n_rows: int
    bytes: int
    overflowed: int
    max_error: Mapping[str, float]
    rms_error: Mapping[str, float]


class _Rounding:
    """The errors of rounding one part's features to float16, summed up in `notes` (JSON values kept with the part).

    "overflowed" counts values beyond float16; "error" has by teacher the largest and the sum of the squared relative
    errors of the part's rows.
    """

    def __init__(self, teachers: Sequence[str]) -> None:
        self.notes: dict[str, Any] = {"overflowed": 0, "error": {teacher: [0.0, 0.0] for teacher in teachers}}

    def add(self, teacher: str, features: NDArray[Any], dtype: str) -> None:
        """Count features [n, dim] that are about to be written as `dtype`."""
        if features.dtype == np.float16:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = features.astype(np.float16)
            if dtype == "float32":
                self.notes["overflowed"] += int((np.isinf(rounded) & np.isfinite(features)).sum())
                return
            difference = rounded - features
            moved = np.einsum("ij,ij->i", difference, difference, dtype=np.float64)
            length = np.einsum("ij,ij->i", features, features, dtype=np.float64)
        relative = moved[length > 0] / length[length > 0]  # squared
        largest, total = self.notes["error"][teacher]
        self.notes["error"][teacher] = [max(largest, relative.max(initial=0.0).item()), total + relative.sum().item()]


def _sum_notes(notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The notes of all parts as one."""
    errors = {teacher: [part["error"][teacher] for part in notes] for teacher in notes[0]["error"]}
    return {
        "overflowed": sum(part["overflowed"] for part in notes),
        "error": {t: [max(largest for largest, _ in e), math.fsum(total for _, total in e)] for t, e in errors.items()},
    }


# Over 40 lines: every option is documented here.
def convert(
    source: str | Path | Mapping[str, str | Path],
    out: str | Path,
    *,
    dtype: str = "float16",
    labels: Given = None,
    splits: Given | GroupedSplit = None,
    groups: Given = None,
    classes: Sequence[str] | None = None,
    teachers: Sequence[str] | None = None,
    slides: Sequence[str] | None = None,
    on_error: OnError = "raise",
    label_column: str | None = None,
) -> ConversionReport:
    """Convert features to one native archive, with all teachers' features of a patch side by side.

    Reads everything that `shazam_fast.open` reads, and formats that cannot be memory-mapped: compressed or
    column-chunked HDF5, LazySlide's zarr stores, .npz, the old format of torch.save, eva's manifest.csv, THUNDER's
    embeddings.h5, JSON text. Labels and splits that eva and THUNDER store are kept. Memory use is some hundred
    megabytes, plus the largest file that has to be read whole. After an interruption, call it again to resume: finished
    parts are kept, and the result is the same as that of an uninterrupted call. Once finished, a further call returns
    the report.

    Args:
        source: a path, or {teacher: path}.
        out: directory of the archive.
        dtype: "float16", or "float32" to keep every bit or where features exceed 65504.
        labels, splits, groups, classes, teachers, slides, on_error, label_column: as in `shazam_fast.open`.

    Returns a report of what was written and of rounding errors.

    Raises:
        NonFiniteError: a feature is NaN, infinite or too large for float16, or all of a patch are too small for it;
            names teacher and row. Nothing is kept.
        MismatchError: slides or rows of the teachers differ; a position is not whole, or does not fit 32 bits; or `out`
            was written with other arguments or from another source.
        ArchiveError: a file is missing or damaged, or reading it could execute code (pickle).
        ShazamError: the disk is full (finished parts are kept); or `out` holds other files.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.savez_compressed(folder / "uni.npz", features=np.ones((3, 8), np.float32))
    >>> convert(folder / "uni.npz", folder / "uni.archive").n_rows
    3
    """
    require_dtype(dtype)
    out = require_path("out", out)
    _require_outside(out, source)
    if not (out / MANIFEST).exists():
        require_writable(out)
    readable = Readable(source, labels, splits, groups, classes, teachers, slides, on_error, label_column)
    conversion = _Conversion(readable, out, dtype)
    manifest = conversion.parts.read_finished() or conversion.run()
    notes = msgspec.convert(manifest.notes, _Notes)
    return ConversionReport(
        path=out,
        n_rows=manifest.rows,
        bytes=sum(part.bytes for part in manifest.parts),
        overflowed=notes.overflowed,
        max_error={teacher: math.sqrt(largest) for teacher, (largest, _) in notes.error.items()},
        rms_error={teacher: math.sqrt(total / manifest.rows) for teacher, (_, total) in notes.error.items()},
    )


class _Notes(Record, frozen=True, kw_only=True):
    overflowed: Count
    error: dict[str, tuple[Ratio, Ratio]]


class _Conversion:
    """A source and the archive that it is packed into."""

    def __init__(self, readable: Readable, out: Path, dtype: str) -> None:
        archive = readable.archive
        row_bytes = archive.width * np.dtype(dtype).itemsize
        self._readable, self._dtype = readable, dtype
        self._part_rows = max(1, PART_BYTES // row_bytes)
        self._chunk_rows = max(1, CHUNK_BYTES // row_bytes)
        self._slides, slide_codes = _used_names(archive.slides, archive.slide_index)
        self._groups, group_codes = _used_names(archive.groups, archive.group_index)
        self._codes = {"slide": slide_codes, "group": group_codes}
        head = ArchiveHead(archive.teachers, dtype, archive.classes, self._slides, self._groups, archive.geometry)
        job = {**archive.fingerprint, "dtype": dtype, "rows of a part": self._part_rows}
        self.parts = ArchiveParts(out, job, -(-archive.n_rows // self._part_rows), head)

    def run(self) -> Manifest:
        """Write the parts that are missing, and the manifest."""
        self.parts.complete(self._write_missing)
        manifest = self.parts.read_finished()
        assert manifest is not None
        return manifest

    def _write_missing(self) -> None:
        parts, n_rows = self.parts, self._readable.archive.n_rows
        missing = parts.missing(range(parts.count))
        todo = sum(len(self._rows(part)) for part in missing)
        with Progress(f"converting to {parts.path.name}", n_rows, "patches", n_rows - todo) as progress:
            try:
                for part in missing:
                    self._write(part, progress)
            except NonFiniteError:  # the same call would meet it again
                parts.discard()
                raise
        parts.publish_archive(_sum_notes([record.notes for record in parts.records()]))

    def _rows(self, part: int) -> range:
        return range(part * self._part_rows, min((part + 1) * self._part_rows, self._readable.archive.n_rows))

    def _write(self, part: int, progress: Progress) -> None:
        rounding = _Rounding(list(self._readable.archive.teachers))
        self.parts.write(part, self._chunks(self._rows(part), rounding, progress), rounding.notes)

    def _chunks(self, rows: range, rounding: _Rounding, progress: Progress) -> Iterator[PartChunk]:
        for start in range(rows.start, rows.stop, self._chunk_rows):
            stop = min(start + self._chunk_rows, rows.stop)
            features = self._readable.features(start, stop)
            for teacher, block in features.items():
                rounding.add(teacher, block, self._dtype)
            columns = self._readable.columns(start, stop)
            columns |= {name: codes[start:stop] for name, codes in self._codes.items()}
            yield PartChunk(features, columns, start, partial(self._describe, start))
            progress.advance(stop - start)

    def _describe(self, start: int, row: int) -> str:
        archive = self._readable.archive
        slide = archive.slide_index[start + row]
        return f"{archive.path}" + (f", slide {archive.slides[slide]!r}" if slide >= 0 else "")


def _used_names(names: Sequence[str], index: NDArray[np.integer]) -> tuple[list[str], NDArray[np.int32]]:
    """The names that rows have, in the order of `names`, and every row's index among them (or -1)."""
    used = np.unique(index[index >= 0])
    codes = np.full(len(names) + 1, -1, dtype=np.int32)  # the last one is picked by -1
    codes[used] = np.arange(len(used))
    return [names[code] for code in used.tolist()], codes[index]


def _require_outside(out: Path, source: str | Path | Mapping[str, str | Path]) -> None:
    """Raise MismatchError when the archive would lie among its own source's files, which could not be opened again."""
    for place in source.values() if isinstance(source, Mapping) else [source]:
        folder = Path(os.path.realpath(require_path("features", place)))
        if folder.is_dir() and Path(os.path.realpath(out)).is_relative_to(folder):
            raise MismatchError(f"{out}: lies inside its own source {place}; choose another --out")
