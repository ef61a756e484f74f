"""Comparisons on disk: a directory with one Parquet file of cells per split, which a killed comparison continues."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError
from ..runtime.checks import require_path
from ..runtime.documents import Count, Json, Name, Record, Text, encode_document, read_document
from ..runtime.files import file_checksum, writing
from ..runtime.jobs.foreign import CLAIM, require_kind, require_same_job
from ..runtime.jobs.part_directory import Part, PartDirectory
from ..scoring.metrics import compute_metrics
from ..scoring.parts import parquet_bytes
from .result import Cell, Comparison, Setup, describe, summarise

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "shazam_fast comparison"
VERSION = 1
MANIFEST = "comparison.json"


class ComparisonManifest(Record, frozen=True, kw_only=True):
    """A finished comparison: what `Comparison.to_dict` gives, and what is needed to read its cells again."""

    format: str = FORMAT
    version: int = VERSION
    classes: list[Text]
    teachers: list[Name]
    n_rows: Count
    n_groups: Count = 0
    repeats: Count
    seed: Count
    study: str = ""
    references: dict[str, list[str]]
    methods: Json = None
    against: Json = None
    failed: Json = None
    notes: list[Text] = msgspec.field(default_factory=list)
    conclusion: Text = ""
    job: dict[str, Json] = msgspec.field(default_factory=dict)
    parts: list[Part] = msgspec.field(default_factory=list)

    def setup(self) -> Setup:
        """What was compared."""
        return Setup(
            tuple(self.classes), tuple(self.teachers), self.n_rows, self.repeats, self.seed, self.references,
            self.study, tuple(self.notes),
        )  # fmt: skip


class CellDirectory(PartDirectory):
    """The directory of a comparison: part k holds the cells of split k.

    Args:
        path: the directory.
        job: what makes two comparisons the same.
        setup: what is compared.
    """

    def __init__(self, path: Path, job: Mapping[str, Json], setup: Setup) -> None:
        super().__init__(path, job, count=setup.repeats, suffix=".parquet", manifest=MANIFEST)
        self._setup = setup

    def read_finished(self) -> Comparison | None:
        """The comparison if it is finished; None if not. Raises MismatchError when another one is there."""
        if not self.finished:
            return None
        manifest = read_document(self.path / MANIFEST, ComparisonManifest, format=FORMAT)
        require_same_job(self.path, manifest.job, self.job)
        self.tidy_after_kill()
        return _open(self.path, manifest)

    def write(self, repeat: int, cells: Sequence[Cell]) -> None:
        """Write the cells of a split. Raises ShazamError when the disk is full."""
        self.write_part(repeat, parquet_bytes(cells_table(cells, len(self._setup.classes))), len(cells))

    def finish(self) -> Comparison:
        """Summarise the cells of all splits and write the manifest.

        Raises MismatchError when no method could run on every split; ArchiveError when a part is missing or damaged.
        """
        parts = [record.part for record in self.records() if record.part is not None]
        found = summarise(self._setup, _read_parts(self.path, parts, self._setup.classes), str(self.path))
        references = {reference: list(others) for reference, others in self._setup.references.items()}
        manifest = ComparisonManifest(
            **found.to_dict(), seed=self._setup.seed, references=references, job=self.job, parts=parts
        )
        with writing(self.path):
            self.publish(encode_document(manifest))
        return found


def open_comparison(path: str | Path) -> Comparison:
    """Open a comparison that `compare` wrote to a directory; intervals are computed anew from its predictions.

    Args:
        path: the directory.

    Returns the comparison.

    Raises ArchiveError; kind "missing" (nothing there, or the comparison was interrupted), "foreign", "corrupt",
    "checksum", "unsupported".

    >>> import numpy as np, tempfile, shazam_fast as sf
    >>> labels = np.arange(80) % 2
    >>> features = {t: np.random.default_rng(0).normal(size=(80, 4)) + labels[:, None] for t in ("uni", "gigapath")}
    >>> folder = tempfile.mkdtemp()
    >>> path = sf.write_archive(f"{folder}/patches", features, labels=labels)
    >>> found = sf.compare(path, ["best_single_balanced", "lr_concat_balanced"], repeats=2, out=f"{folder}/compared")
    >>> open_comparison(f"{folder}/compared").balanced_accuracy == found.balanced_accuracy
    True
    """
    folder = require_path("path", path)
    require_kind(folder, "comparison")
    if not (folder / MANIFEST).exists() and (folder / CLAIM).exists():
        raise ArchiveError(
            f"{folder}: the comparison was interrupted; run the same command again to finish it", "missing"
        )
    return _open(folder, read_document(folder / MANIFEST, ComparisonManifest, format=FORMAT))


def _open(path: Path, manifest: ComparisonManifest) -> Comparison:
    setup = manifest.setup()
    return summarise(setup, _read_parts(path, manifest.parts, setup.classes), str(path))


def cells_table(cells: Sequence[Cell], C: int) -> "pa.Table":
    """The cells as rows: what `describe` says, and lists of the test part's rows, labels, groups and probabilities."""
    import pyarrow as pa

    table = pa.Table.from_pylist([describe(cell) for cell in cells], schema=_schema())
    for name in ("rows", "labels", "groups"):
        table = table.append_column(name, _lists([getattr(cell, name) for cell in cells]))
    flat = [np.zeros(0, np.float32) if c.probabilities is None else c.probabilities.ravel() for c in cells]
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(flat)), C)
    counts = [len(one) // C for one in flat]
    return table.append_column("probabilities", pa.ListArray.from_arrays(_offsets(counts), values))


def _schema() -> "pa.Schema":
    import pyarrow as pa

    numbers = ("balanced_accuracy", "weighted_f1", "accuracy", "auroc", "calibration_error")
    return pa.schema([
        ("repeat", pa.int32()), ("seed", pa.int32()), ("method", pa.string()), ("teachers", pa.list_(pa.string())),
        *((name, pa.float64()) for name in numbers), ("n_test", pa.int64()), ("fit_seconds", pa.float64()),
        ("score_seconds", pa.float64()), ("reason", pa.string()),
    ])  # fmt: skip


def _offsets(counts: Sequence[int]) -> "pa.Array":
    import pyarrow as pa

    return pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


def _lists(columns: Sequence[NDArray[np.int64]]) -> "pa.ListArray":
    import pyarrow as pa

    return pa.ListArray.from_arrays(_offsets([len(c) for c in columns]), pa.array(np.concatenate(columns)))


def _read_parts(path: Path, parts: Sequence[Part], classes: tuple[str, ...]) -> list[Cell]:
    return [cell for part in parts for cell in _read_part(path / part.file, part, classes)]


def _read_part(file: Path, part: Part, classes: tuple[str, ...]) -> list[Cell]:
    import pyarrow.parquet as pq

    try:
        if file_checksum(file) != part.xxh3:
            raise ArchiveError(
                f"{file}: checksum mismatch: damaged; delete the directory and compare again", "checksum"
            )
        return [cell_of(row, classes) for row in pq.read_table(file).to_batches() for row in _rows(row)]
    except FileNotFoundError:
        raise ArchiveError(f"{file}: file not found; delete the directory and compare again", "missing") from None
    except OSError as error:
        raise ArchiveError(f"{file}: cannot be read: {error}", "system") from None


def _rows(batch: "pa.RecordBatch") -> list[dict[str, Any]]:
    """The rows of a batch, lists of numbers as arrays."""
    arrays = ("rows", "labels", "groups", "probabilities")
    plain = batch.select([name for name in batch.schema.names if name not in arrays]).to_pylist()
    for index, row in enumerate(plain):
        for name in arrays:
            values = batch.column(name)[index].values
            row[name] = (values.flatten() if name == "probabilities" else values).to_numpy(zero_copy_only=False)
    return list(plain)


def cell_of(row: Mapping[str, Any], classes: tuple[str, ...]) -> Cell:
    """The cell of a row, its metrics computed anew from its predictions."""
    keep = ("repeat", "seed", "method", "rows", "labels", "groups", "fit_seconds", "score_seconds", "reason")
    make = partial(Cell, **{name: row[name] for name in keep}, teachers=tuple(row["teachers"]))
    if row["reason"]:
        return make(probabilities=None, metrics=None)
    probabilities = row["probabilities"].reshape(-1, len(classes))
    return make(probabilities=probabilities, metrics=compute_metrics(probabilities, row["labels"], classes))
