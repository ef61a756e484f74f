"""Outputs of tools whose features cannot be mapped: which teachers, slides, labels and splits a directory holds.

eva         manifest.csv (origin, embeddings, target, split, maybe wsi_id) and a .pt per image, a list of tensors
THUNDER     {dataset}/{model}/{split}/embeddings.h5, a dataset per patch, and labels.h5
LazySlide   {slide}.zarr, a SpatialData store: tables/{model}_{tiles}/X, positions in shapes/{tiles}/shapes.parquet
tiatoolbox  {slide}.zarr with the arrays features and coordinates
"""

import os
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ..errors import ArchiveError, MismatchError, NotInPlaceError, ShazamError
from ..formats.geometry import NOT_KNOWN, Geometry
from ..formats.hdf5 import opened
from ..formats.pieces import SPLITS, Piece, Source
from ..runtime.summaries import counted
from ..tables.reader import read_table
from ..tables.slide_names import name_slides
from .discovery import Listing
from .unmapped import Arrays, Unmapped, describe, load_tensors, reading, to_numpy, whole

EVA_MANIFEST = "manifest.csv"
EVA_COLUMNS = ("origin", "embeddings", "target", "split")
EVA_SLIDE = "wsi_id"
THUNDER_FILE = "embeddings.h5"
THUNDER_LABELS = "labels.h5"
TABLE_SUFFIX = "_tiles"  # what LazySlide appends to a model's name, and maybe more: the key of the tiles


def find_tool(listing: Listing) -> list[Source]:
    """The sources of eva, THUNDER or LazySlide; nothing in a directory of none of them."""
    if (listing.root / EVA_MANIFEST).is_file():
        return _find_eva(listing.root)
    if any(file.name == THUNDER_FILE for file in listing.files):
        return _find_thunder(listing)
    return find_stores(listing.root, sorted(listing.stores)) if listing.stores else []


def _source(teacher: str, slide: str, file: Path, load: partial[Unmapped], tool: str, part: str = "") -> Source:
    return Source(teacher, slide, os.fspath(file), partial(_refuse_mapping, file, tool), part, load)


def _refuse_mapping(file: Path, tool: str) -> Piece:
    raise NotInPlaceError(
        f"{file}: embeddings of {tool} cannot be opened in place, but shazam_fast.convert can read them"
    )


# eva
def _find_eva(path: Path) -> list[Source]:
    table = read_table(path / EVA_MANIFEST).columns
    if missing := [name for name in EVA_COLUMNS if name not in table]:
        raise ArchiveError(f"{path / EVA_MANIFEST}: no column {missing[0]!r}; found {', '.join(table)}")
    origins, names, targets, splits = (table[name] for name in EVA_COLUMNS)
    if len(set(origins)) != len(origins):
        twice = next(origin for i, origin in enumerate(origins) if origin in origins[:i])
        raise ArchiveError(f"{path / EVA_MANIFEST}: image {twice!r} is listed twice")
    slides = table.get(EVA_SLIDE, origins)
    parts = origins if EVA_SLIDE in table else [""] * len(origins)
    _require_whole_slides(path / EVA_MANIFEST, slides, splits)
    teacher = path.absolute().name
    return [
        _source(teacher, slide, path / name, partial(_read_eva, path / name, label, split), "eva", part)
        for slide, part, name, label, split in sorted(
            zip(slides, parts, names, _eva_labels(targets), splits, strict=True), key=lambda row: row[:2]
        )
    ]


def _require_whole_slides(manifest: Path, slides: Sequence[str], splits: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for row, (slide, split) in enumerate(zip(slides, splits, strict=True), start=2):
        if split and first.setdefault(slide, split) != split:
            raise MismatchError(
                f"{manifest}, row {row}: slide {slide!r} is in the splits {first[slide]!r} and {split!r}; "
                "its patches must be in one"
            )


def _eva_labels(targets: list[str]) -> Sequence[int | None]:
    """Class indices; None for all where targets are paths of masks or a regression's numbers."""
    try:
        values = [float(target) for target in targets]
    except ValueError:
        return [None] * len(targets)
    return [int(v) for v in values] if all(v.is_integer() and v >= 0 for v in values) else [None] * len(targets)


def _read_eva(file: Path, label: int | None, split: str) -> Unmapped:
    piece = whole(file, partial(_load_eva, label))
    return replace(piece, splits=_codes(file, split, piece.n_rows))


def _load_eva(label: int | None, file: Path) -> Arrays:
    content = load_tensors(file)
    tensors = content if isinstance(content, list) else [content]
    features = np.stack([to_numpy(tensor) for tensor in tensors])
    return {"features": features} | ({} if label is None else {"labels": np.full(len(features), label)})


def _codes(file: Path, split: str, n_rows: int) -> NDArray[np.uint8] | None:
    """The split of all rows of a file; None for "". Raises MismatchError for an unknown name."""
    if not split:
        return None
    if split not in SPLITS:
        raise MismatchError(f"{file}: unknown split {split!r}; splits are {', '.join(SPLITS)}")
    return np.full(n_rows, SPLITS[split], dtype=np.uint8)


# THUNDER
def _find_thunder(listing: Listing) -> list[Source]:
    """One file per split: at a split, a model or a data set of several models."""
    files = [file for file in listing.files if file.name == THUNDER_FILE]
    for file in listing.files:
        if file.kind == ".h5" and file.name not in (THUNDER_FILE, THUNDER_LABELS):
            listing.pass_over(file.place, "not called as THUNDER calls its files")
    found = []
    for file in files:
        split, model = (folder.name for folder in file.path.absolute().parents[:2])
        found.append(_source(model, "", file.path, partial(_read_thunder, file.path, split), "THUNDER", split))
    return found


class _Stack:
    """Datasets "0", "1", ... of one feature each, as the rows of a matrix."""

    def __init__(self, file: Path) -> None:
        import h5py  # type: ignore[import-untyped]

        self._content = h5py.File(file, "r")
        self.n_rows = len(self._content)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return np.stack([self._content[str(row)][()] for row in range(*rows.indices(self.n_rows))])


def _read_thunder(file: Path, split: str) -> Unmapped:
    with opened(file):
        features = _Stack(file)
        first = features[:1]  # [1, columns]
    labels = None
    if (beside := file.parent / THUNDER_LABELS).is_file():
        with opened(beside):
            stored = _Stack(beside)
            values = stored[:].reshape(stored.n_rows, -1)
            labels = values.astype(np.int64)[:, 0]
        if stored.n_rows != features.n_rows:
            raise ArchiveError(
                f"{beside}: {counted(stored.n_rows, 'label')} for {counted(features.n_rows, 'patch')} in {file.name}"
            )
        if values.shape[1] != 1 or (values[:, 0] != labels).any():
            raise ArchiveError(f"{beside}: one whole number per patch expected, found {values.dtype} {values.shape}")
    shape = (features.n_rows, *first.shape[1:])
    piece = describe(file, (shape, first.dtype), partial(_Stack, file), labels=labels)
    return replace(piece, splits=_codes(file, split, piece.n_rows) if split in SPLITS else None)


# LazySlide
def find_stores(root: Path, stores: Sequence[Path]) -> list[Source]:
    """The tables of tiles in LazySlide's stores, one store per slide.

    A model with tables of several keys of tiles is several teachers, called as their tables.
    """
    slides = dict(zip(stores, name_slides(stores, root), strict=True))
    if plain := [store for store in stores if (store / "features").is_dir()]:
        teacher = root.absolute().name.removesuffix(".zarr")
        return [
            _source(
                teacher,
                "" if root == store else slides[store],
                store / "features",
                partial(_read_plain, store),
                "tiatoolbox",
            )
            for store in plain
        ]
    tables = [(store, table, *split) for store in stores for table in _tables(store) if (split := _split_name(table))]
    if not tables:
        raise ArchiveError(f"{root}: no table *{TABLE_SUFFIX} as LazySlide writes them in {len(stores)} zarr stores")
    keys: dict[str, set[str]] = {}
    for _, _, model, key in tables:
        keys.setdefault(model, set()).add(key)
    found = []
    for store, table, model, key in tables:
        teacher = model if len(keys[model]) == 1 else table.name
        slide = "" if root == store else slides[store]
        found.append(_source(teacher, slide, table / "X", partial(_read_table, store, table, key), "LazySlide"))
    return found


def _read_plain(store: Path) -> Unmapped:
    features = store / "features"
    with reading(features):
        array = _open_whole(features)
        coords = _open_whole(store / "coordinates")[:] if (store / "coordinates").is_dir() else None
        if coords is not None and (coords.ndim != 2 or len(coords) != array.shape[0] or coords.shape[1] < 2):
            raise ArchiveError(
                f"{store}: coordinates of shape {coords.shape} for {counted(array.shape[0], 'row')} of features"
            )
        coords = None if coords is None else coords[:, :2]
    return describe(features, (array.shape, array.dtype), partial(_open_zarr, features), coords)


def _tables(store: Path) -> list[Path]:
    return sorted(path for path in store.glob("tables/*") if (path / "X").is_dir())


def _split_name(table: Path) -> tuple[str, str] | None:
    """Model and key of the tiles in a table's name; None for a table of something else than tiles."""
    shapes = sorted((path.name for path in table.parents[1].glob("shapes/*")), key=len, reverse=True)
    for key in [*shapes, TABLE_SUFFIX.removeprefix("_")]:
        if table.name.endswith(f"_{key}") and key not in ("tissues", "annotations"):
            return table.name.removesuffix(f"_{key}"), key
    model, suffix, rest = table.name.partition(TABLE_SUFFIX)
    return (model, (suffix + rest)[1:]) if suffix else None


def _read_table(store: Path, table: Path, key: str) -> Unmapped:
    features = table / "X"
    with reading(features):
        array = _open_whole(features)
        coords, geometry = _tile_positions(store / "shapes" / key / "shapes.parquet", table, array.shape[0])
    return describe(features, (array.shape, array.dtype), partial(_open_zarr, features), coords, geometry=geometry)


def _tile_positions(shapes: Path, table: Path, n_rows: int) -> tuple[NDArray[np.generic] | None, Geometry]:
    """Corners [rows, 2] of a table's tiles, and their size; (None, nothing known) where the store has no shapes."""
    import pyarrow.parquet as pq

    if not shapes.is_file():
        return None, NOT_KNOWN
    columns = pq.read_table(shapes)
    tile = columns["tile_id"].to_numpy() if "tile_id" in columns.column_names else np.arange(columns.num_rows)
    boxes = _bounds(columns["geometry"].to_pylist()) if "geometry" in columns.column_names else None
    if {"x", "y"} <= set(columns.column_names):
        corners = np.stack([columns["x"].to_numpy(), columns["y"].to_numpy()], axis=1)
    elif boxes is not None:
        corners = _whole(boxes[:, :2])
    else:
        raise ArchiveError(f"{shapes}: neither x and y nor polygons of the tiles; write the tiles again")
    ids = table / "obs" / "tile_id"
    wanted = _open_zarr(ids)[:] if ids.exists() else np.arange(n_rows)
    if len(tile) == 0 or (not ids.exists() and len(tile) != n_rows):
        raise ArchiveError(f"{shapes}: {len(tile)} tiles for {counted(n_rows, 'row')} of {table}")
    order = np.argsort(tile, kind="stable")
    found = order[np.searchsorted(tile[order], wanted).clip(max=len(tile) - 1)]
    if not np.array_equal(tile[found], wanted):
        raise ArchiveError(f"{table}: its tiles are not all in {shapes}")
    sides = np.unique(np.rint(boxes[:, 2:] - boxes[:, :2])) if boxes is not None else np.array([])
    return corners[found], Geometry("pixels", float(sides[0]) if len(sides) == 1 and sides[0] > 0 else None)


def _bounds(polygons: Sequence[object]) -> NDArray[np.float64] | None:
    """Minimum and maximum x and y [n, 4] of polygons in WKB; None where one is not."""
    boxes = np.empty((len(polygons), 4))
    for row, content in enumerate(polygons):
        if not isinstance(content, bytes) or len(content) < 13:
            return None
        order = "<" if content[0] == 1 else ">"
        kind, rings, points = struct.unpack_from(f"{order}3I", content, 1)
        if kind != 3 or rings < 1 or 13 + 16 * points > len(content) or points < 3:
            return None
        ring = np.frombuffer(content, f"{order}f8", 2 * points, 13).reshape(-1, 2)
        boxes[row] = [*ring.min(axis=0), *ring.max(axis=0)]
    return boxes


def _whole(corners: NDArray[np.float64]) -> NDArray[np.generic]:
    """Corners as integers where they are whole."""
    rounded = np.rint(corners)
    return rounded.astype(np.int64) if np.array_equal(rounded, corners) else corners


def _open_whole(path: Path) -> Any:
    array = _open_zarr(path)
    if array.nchunks_initialized < array.nchunks:  # zarr reads chunks that are missing as zeros
        raise ArchiveError(f"{path}: {array.nchunks_initialized} of {array.nchunks} chunks are there: copy it again")
    return array


def _open_zarr(path: Path) -> Any:
    try:
        import zarr  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ShazamError(f"{path}: zarr is needed to read it: pip install zarr") from None
    return zarr.open_array(path, mode="r")
