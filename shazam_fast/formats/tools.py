"""Outputs of tools whose features cannot be mapped: which teachers, slides, labels and splits a directory holds.

eva         manifest.csv (origin, embeddings, target, split) and a .pt for each image, a list of tensors
THUNDER     {dataset}/{model}/{split}/embeddings.h5, a dataset for each patch, and labels.h5
LazySlide   {slide}.zarr, a SpatialData store: tables/{model}_tiles/X, positions in shapes/tiles/shapes.parquet
slide2vec   tile_embeddings/{slide}.npz; other directories of .npz likewise
FuseCPath   {slide}.txt, JSON
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError, NotInPlaceError, ShazamError
from ..runtime.tables import read_table
from .discovery import FILES, find_sources, select_teacher
from .hdf5 import opened
from .pieces import SPLITS, Piece, Source
from .unmapped import Arrays, Unmapped, describe, load_tensors, read_unmapped, reading, to_numpy, whole

EVA_MANIFEST = "manifest.csv"
EVA_COLUMNS = ("origin", "embeddings", "target", "split")
THUNDER_FILE = "embeddings.h5"
TABLE_SUFFIX = "_tiles"  # what LazySlide appends to a model's name
TEXT_SUFFIXES = (".txt", ".json")


@dataclass(frozen=True)
class Found:
    """The feature files at a path, mappable or not.

    `splits` names the split of each slide where the tool has one; `slides` is False where no slides are known, and what
    stands for them in `sources` is to be forgotten.
    """

    sources: Sequence[Source]
    splits: Mapping[str, str] = field(default_factory=dict)
    slides: bool = True


def find_features(path: Path, teacher: str | None = None) -> Found:
    """Everything `shazam_fast.open` finds at a path, and what it does not know or would refuse to map.

    `teacher` names what is there, or chooses among several. Raises ArchiveError when nothing looks like features.
    """
    find = _tool_of(path)
    found = find(path) if find else Found(find_sources(path, teacher))
    sources = select_teacher(list(found.sources), teacher) if find else found.sources
    return replace(found, sources=[replace(source, read=partial(_read, source)) for source in sources])


def _read(source: Source) -> Piece:
    try:
        return source.read()
    except NotInPlaceError:
        return read_unmapped(source.file, source.teacher)


def _tool_of(path: Path) -> Callable[[Path], Found] | None:
    """Who wrote a path, as far as `shazam_fast.open` does not know; None for all that it knows."""
    if path.is_file():
        return _find_files if path.suffix in (".npz", *TEXT_SUFFIXES) else None
    if (path / EVA_MANIFEST).is_file():
        return _find_eva
    if _thunder_files(path):
        return _find_thunder
    if path.suffix == ".zarr" or next(path.glob("*.zarr"), None):
        return _find_lazyslide
    suffixes = {entry.suffix for entry in _slide_folder(path).glob("*")}
    only_text = suffixes == {".txt"}  # other tools write logs and settings beside their folders
    return _find_files if only_text or (".npz" in suffixes and not suffixes & FILES.keys()) else None


def _slide_folder(path: Path) -> Path:
    inner = path / "tile_embeddings"
    return inner if inner.is_dir() else path


def _find_files(path: Path) -> Found:
    """A .npz or text file for each slide, or one file."""
    if path.is_file():
        return Found([Source(path.stem, "", path, partial(read_unmapped, path, path.stem))])
    folder = _slide_folder(path)
    files = sorted(folder.glob("*.npz")) or sorted(folder.glob("*.txt"))
    teacher = path.absolute().name
    return Found([Source(teacher, file.stem, file, partial(read_unmapped, file, teacher)) for file in files])


# eva
def _find_eva(path: Path) -> Found:
    table = read_table(path / EVA_MANIFEST).columns
    if missing := [name for name in EVA_COLUMNS if name not in table]:
        raise ArchiveError(f"{path / EVA_MANIFEST}: no column {missing[0]!r}; found {', '.join(table)}")
    origins, names, targets, splits = (table[name] for name in EVA_COLUMNS)
    if len(set(origins)) != len(origins):
        twice = next(origin for i, origin in enumerate(origins) if origin in origins[:i])
        raise ArchiveError(f"{path / EVA_MANIFEST}: image {twice!r} is listed twice")
    labels = _eva_labels(targets)
    teacher = path.absolute().name
    sources = [
        Source(teacher, origin, path / name, partial(_read_eva, path / name, label))
        for origin, name, label in zip(origins, names, labels, strict=True)
    ]
    return Found(sources, {origin: split for origin, split in zip(origins, splits, strict=True) if split})


def _eva_labels(targets: list[str]) -> Sequence[int | None]:
    """Class indices; None for all where targets are paths of masks or a regression's numbers."""
    try:
        values = [float(target) for target in targets]
    except ValueError:
        return [None] * len(targets)
    return [int(v) for v in values] if all(v.is_integer() and v >= 0 for v in values) else [None] * len(targets)


def _read_eva(file: Path, label: int | None) -> Unmapped:
    def read(file: Path) -> Arrays:
        content = load_tensors(file)
        tensors = content if isinstance(content, list) else [content]
        features = np.stack([to_numpy(tensor) for tensor in tensors])
        return {"features": features} | ({} if label is None else {"labels": np.full(len(features), label)})

    return whole(file, read)


# THUNDER
def _thunder_files(path: Path) -> list[Path]:
    """One for each split: at a split, a model or a data set of several models."""
    found = (sorted(path.absolute().glob(pattern + THUNDER_FILE)) for pattern in ("", "*/", "*/*/"))
    return next((files for files in found if files), [])


def _find_thunder(path: Path) -> Found:
    files = _thunder_files(path)
    splits = {file.parent.name: file.parent.name for file in files if file.parent.name in SPLITS}
    sources = [Source(f.parent.parent.name, f.parent.name, f, partial(_read_thunder, f)) for f in files]
    return Found(sources, splits, slides=False)


class _Stack:
    """Datasets "0", "1", ... of one feature each, as the rows of a matrix."""

    def __init__(self, file: Path) -> None:
        import h5py  # type: ignore[import-untyped]

        self._content = h5py.File(file, "r")
        self.n_rows = len(self._content)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return np.stack([self._content[str(row)][()] for row in range(*rows.indices(self.n_rows))])


def _read_thunder(file: Path) -> Unmapped:
    with opened(file):
        features = _Stack(file)
        first = features[:1]  # [1, columns]
    labels = None
    if (beside := file.parent / "labels.h5").is_file():
        with opened(beside):
            stored = _Stack(beside)
            labels = stored[:].reshape(-1).astype(np.int64)
        if stored.n_rows != features.n_rows:
            raise ArchiveError(f"{beside}: {stored.n_rows} labels for {features.n_rows} patches in {file.name}")
    shape = (features.n_rows, *first.shape[1:])
    return describe(file, (shape, first.dtype), partial(_Stack, file), labels=labels)


# LazySlide
def _find_lazyslide(path: Path) -> Found:
    stores = [path] if path.suffix == ".zarr" else sorted(path.glob("*.zarr"))
    tables = [table for store in stores for table in sorted(store.glob(f"tables/*{TABLE_SUFFIX}"))]
    if not tables:
        raise ArchiveError(f"{path}: no table *{TABLE_SUFFIX} as LazySlide writes them in {len(stores)} zarr stores")
    return Found(
        [
            Source(
                table.name.removesuffix(TABLE_SUFFIX), table.parents[1].stem, table / "X", partial(_read_table, table)
            )
            for table in tables
        ]
    )


def _read_table(table: Path) -> Unmapped:
    features = table / "X"
    with reading(features):
        array = _open_zarr(features)
        if array.nchunks_initialized < array.nchunks:  # zarr reads chunks that are missing as zeros
            raise ArchiveError(
                f"{features}: {array.nchunks_initialized} of {array.nchunks} chunks are there: copy it again"
            )
        coords = _tile_positions(table)
    return describe(features, (array.shape, array.dtype), partial(_open_zarr, features), coords)


def _tile_positions(table: Path) -> NDArray[np.generic] | None:
    """x, y [rows, 2] of the table's tiles, None where the store does not say."""
    import pyarrow.parquet as pq

    shapes = table.parents[1] / "shapes" / TABLE_SUFFIX.removeprefix("_") / "shapes.parquet"
    if not shapes.is_file() or not {"tile_id", "x", "y"} <= set(pq.read_schema(shapes).names):
        return None
    tile, x, y = (column.to_numpy() for column in pq.read_table(shapes, columns=["tile_id", "x", "y"]).columns)
    wanted = _open_zarr(table / "obs" / "tile_id")[:]
    order = np.argsort(tile, kind="stable")
    found = order[np.searchsorted(tile[order], wanted).clip(max=len(tile) - 1)]
    if not np.array_equal(tile[found], wanted):
        raise ArchiveError(f"{table}: its tiles are not all in {shapes}")
    return np.stack([x[found], y[found]], axis=1)


def _open_zarr(path: Path) -> Any:
    try:
        import zarr  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ShazamError(f"{path}: zarr is needed to read it: pip install zarr") from None
    return zarr.open_array(path, mode="r")
