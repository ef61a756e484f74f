"""Packing features, wherever and however they are stored, into one native archive: one read per patch in training."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NonFiniteError
from ..runtime.progress import Progress
from .annotations import Given
from .columns import first_refused
from .reader import Readable
from .resuming import ResumableWriter, read_finished
from .splits import GroupedSplit

logger = logging.getLogger("shazam_fast")


PART_BYTES = 1 << 30
CHUNK_BYTES = 32 << 20  # of features at a time, as they are stored in the archive


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote, and what it cost in precision.

    `bytes` is that of all parts. `overflowed` counts values beyond float16, which a float32 archive holds. Rounding to
    float16 moves a patch's features by |stored - given| / |given|: the largest and the root mean square of that over
    all patches, by teacher; 0 where nothing was rounded.
    """

    path: Path
    n_rows: int
    bytes: int
    overflowed: int
    max_error: Mapping[str, float]
    rms_error: Mapping[str, float]


class _Rounding:
    """What float16 costs, summed up in `notes`, a dictionary of JSON values that is kept with every finished part."""

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
    label_column: str | None = None,
) -> ConversionReport:
    """Pack features into one native archive, the teachers of a patch side by side.

    Reads all that `shazam_fast.open` opens in place, and what it cannot: compressed or column-chunked HDF5, LazySlide's
    zarr stores, .npz, the old format of torch.save, eva's manifest.csv, THUNDER's embeddings.h5, JSON text. Labels and
    splits that eva and THUNDER store are taken over. Memory stays at some hundred megabytes, plus the largest file that
    has to be read whole. Interrupted in any way, the same call continues after the parts that are finished and gives
    the same bytes; called again once it is done, it returns the report.

    Args:
        source: a path, or {teacher: path}.
        out: directory of the archive.
        dtype: "float16", or "float32" for features beyond 65504 or to keep every bit.
        labels, splits, groups, classes, teachers, slides, label_column: as in `shazam_fast.open`.

    Raises:
        NonFiniteError: a feature is NaN, infinite, or too large for float16; names teacher and row, leaves nothing.
        MismatchError: teachers whose slides or rows differ; or `out` holds the work of a call with other arguments, or
            of this one when the source was another.
        ArchiveError: a file is missing, damaged, or would have to be unpickled with code execution allowed.
        ShazamError: the disk is full, which leaves finished parts valid; or `out` holds something else.
    """
    readable = Readable(source, labels, splits, groups, classes, teachers, slides, label_column)
    job = {**readable.identity(), "teachers": readable.archive.teachers, "dtype": dtype}
    manifest = read_finished(Path(out), job)
    if manifest is None:
        _write(readable, Path(out), dtype, job)
        manifest = read_finished(Path(out), job)
    assert manifest is not None
    rows, errors = manifest["rows"], manifest["notes"]["error"]
    return ConversionReport(
        path=Path(out),
        n_rows=rows,
        bytes=sum(part["bytes"] for part in manifest["parts"]),
        overflowed=manifest["notes"]["overflowed"],
        max_error={teacher: math.sqrt(largest) for teacher, (largest, _) in errors.items()},
        rms_error={teacher: math.sqrt(total / rows) for teacher, (_, total) in errors.items()},
    )


def _write(readable: Readable, out: Path, dtype: str, job: Mapping[str, object]) -> None:
    archive = readable.archive
    rounding = _Rounding(list(archive.teachers))
    writer = ResumableWriter(
        out,
        archive.teachers,
        job=job,
        notes=rounding.notes,
        classes=archive.classes,
        dtype=dtype,
        part_bytes=PART_BYTES,
        geometry=archive.geometry,
    )
    with writer, Progress(f"converting to {out.name}", archive.n_rows, "patches", done=writer.n_rows) as progress:
        if writer.n_rows:
            logger.info("%s: continued after %d of %d patches", out, writer.n_rows, archive.n_rows)
        chunk = max(1, CHUNK_BYTES // (archive.width * np.dtype(dtype).itemsize))
        while (start := writer.n_rows) < archive.n_rows:
            stop = min(start + chunk, start + writer.rows_left, archive.n_rows)
            features = readable.features(start, stop)
            for teacher, block in features.items():
                rounding.add(teacher, block, dtype)
            try:
                writer.append(features, **readable.columns(start, stop))
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"{archive.path}{_name_slide(readable, start, features, dtype)}: {error}"
                ) from None
            progress.advance(stop - start)


def _name_slide(readable: Readable, start: int, features: Mapping[str, NDArray[Any]], dtype: str) -> str:
    """Words for the slide of the first patch that the writer refused, of the first teacher that has one."""
    slide = readable.archive.slide_index[start + first_refused(features, dtype)]
    return f", slide {readable.archive.slides[slide]!r}" if slide >= 0 else ""
