"""What tools store beside the features: coordinates, geometry, and marks of slides that are done."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ..errors import ArchiveError, NotInPlaceError
from ..formats import hdf5, npy, torch_zip
from ..formats.geometry import Geometry
from ..formats.pieces import ITEM_BYTES, Piece, Source
from ..formats.tensors import INTEGERS, read_values
from ..runtime.files import open_regular
from ..runtime.summaries import counted
from ..tables.slide_names import name_slides
from .discovery import File, kind_of
from .unmapped import read_npz

RecordType = TypeVar("RecordType")

MAX_META_BYTES = 16 << 20  # of a slide's JSON
# What torch.save's zip format adds to one tensor: bytes and times the file's name, each at least and at most.
ADDED, NAMES_ADDED = (512, 1408), (6, 16)


def _add(source: Source, add: Callable[[Piece], Piece], *beside: Path | None) -> Source:
    """The source with something added to its piece, however it is read.

    beside: the files that it is taken from, None for one that is not there.
    """
    load = None if source.load is None else partial(_then, source.load, add)
    files = tuple(os.fspath(file) for file in beside if file is not None)
    return replace(source, read=partial(_then, source.read, add), load=load, beside=files)


def _then(read: Callable[[], Piece], add: Callable[[Piece], Piece]) -> Piece:
    return add(read())


def _names_in(folder: Path) -> frozenset[str]:
    """Names in a directory, none if there is no such."""
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


# CLAM
def add_clam(sources: Sequence[Source], home: Path) -> list[Source]:
    """Slides of h5_files with the geometry in patches/, refused where pt_files says that they are not done.

    CLAM appends batches to h5_files/{slide}.h5 and writes pt_files/{slide}.pt at the end: the same features again, so
    both must have as many rows.
    """
    names = _names_in(home / "pt_files")
    copies = {os.path.splitext(name)[0]: home / "pt_files" / name for name in names if kind_of(name) == ".pt"}
    marked = (home / "pt_files").is_dir()
    coords = {os.path.splitext(n)[0]: folder / n for folder in (home.parent / "patches", home / "patches")
              for n in _names_in(folder) if kind_of(n) == ".h5"}  # fmt: skip
    found = []
    for source in sources:
        stem = source.file.stem
        if marked and stem not in copies:
            found.append(replace(source, read=partial(_refuse_undone, source.file, home / "pt_files"), asks=None))
        else:
            beside = copies.get(stem), coords.get(stem)
            found.append(_add(source, partial(_complete_clam, source.file, *beside), *beside))
    for stem in sorted(copies.keys() - {source.file.stem for source in sources}):
        file = home / "h5_files" / f"{stem}.h5"
        found.append(Source(sources[0].teacher, stem, os.fspath(file), partial(_refuse_lost, file)))
    return found


def _refuse_undone(file: Path, marks: Path) -> Piece:
    raise ArchiveError(
        f"{file}: {marks.name}/{file.stem}.pt is missing, so CLAM has not finished this slide; run CLAM again, or "
        f"delete {marks} if you removed its files yourself"
    )


def _refuse_lost(file: Path) -> Piece:
    raise ArchiveError(f"{file}: not there, though pt_files holds {file.stem}.pt; extract the slide again", "missing")


def _complete_clam(file: Path, copy: Path | None, coords: Path | None, piece: Piece) -> Piece:
    if copy is not None:
        _require_same_rows(file, copy, piece)
    if coords is None:
        return piece
    n_rows, geometry = hdf5.read_coords_file(coords)
    if n_rows != piece.n_rows:
        raise ArchiveError(
            f"{file}: {counted(piece.n_rows, 'row')}, but {coords} has {n_rows}: extract the slide again"
        )
    return replace(piece, geometry=piece.geometry if piece.geometry.unit else geometry)


def _require_same_rows(file: Path, copy: Path, piece: Piece) -> None:
    """Raise ArchiveError when the copy of a slide's features in pt_files has another number of rows.

    Its size tells the number where a row is larger than the doubt about what torch.save adds; else its header is read.
    """
    row_bytes = piece.columns * ITEM_BYTES[piece.dtype]
    size, name = os.stat(copy).st_size, len(os.fsencode(copy.name))
    least, most = (added + times * name for added, times in zip(ADDED, NAMES_ADDED, strict=True))
    if most - least <= row_bytes and least <= size - piece.n_rows * row_bytes < most:
        return
    try:
        n_rows = torch_zip.read_piece(copy).n_rows
    except NotInPlaceError:  # the format before torch 1.6, which adds less than any zip file and names no size
        if row_bytes < ADDED[0]:
            return
        n_rows = size // row_bytes
    if n_rows != piece.n_rows:
        raise ArchiveError(
            f"{file}: {counted(piece.n_rows, 'row')}, but {copy} has {n_rows} for the same slide: extract the slide "
            "again"
        )


# slide2vec
class _Meta(msgspec.Struct):
    """What is taken from the .meta.json beside an embedding."""

    encoder_name: str = ""
    tile_size_lv0: float | None = None
    backend: str | None = None


class _Slide(msgspec.Struct):
    base_spacing_um: float | None = None


class _Tiling(msgspec.Struct):
    tile_size_lv0: float | None = None
    read_level: int | None = None


class _Coordinates(_Tiling):
    """What is taken from the .coordinates.meta.json beside the coordinates; older ones are not nested."""

    base_spacing_um: float | None = None
    slide: _Slide = msgspec.field(default_factory=_Slide)
    tiling: _Tiling = msgspec.field(default_factory=_Tiling)


def find_slide2vec(
    home: Path,
    files: Sequence[tuple[str, File]],
    teacher: str,
    make: Callable[[str, str, File, str], Source],
) -> list[Source]:
    """Slides of tile_embeddings; `files` is (class folder or "", file). A class folder is a part of the slide."""
    kinds = {file.kind for _, file in files}
    if {".pt", ".npz"} <= kinds:
        raise ArchiveError(f"{home / 'tile_embeddings'}: files of two kinds (.pt and .npz); leave one of them there")
    kind = ".pt" if ".pt" in kinds else ".npz" if ".npz" in kinds else next(iter(sorted(kinds)))
    chosen = [(inner, file) for inner, file in files if file.kind == kind]
    if not chosen:
        raise ArchiveError(f"{home / 'tile_embeddings'}: no file of embeddings (.pt or .npz)", "missing")
    names = list(dict.fromkeys(file.name for _, file in chosen))
    slides = dict(zip(names, name_slides(names), strict=True))
    first = _read_json(_meta_of(chosen[0][1].path), _Meta)
    teacher = first.encoder_name or teacher
    found = []
    for inner, file in chosen:
        tiles = home / "tiles" / inner / f"{file.stem}.coordinates.npz"
        source = make(teacher, slides[file.name], file, inner)
        found.append(_add(source, partial(_add_tiles, file.path, tiles)))
    return sorted(found, key=lambda source: (source.slide, source.part))


def _meta_of(file: Path) -> Path:
    return file.with_suffix(".meta.json")


def _add_tiles(file: Path, tiles: Path, piece: Piece) -> Piece:
    meta = _read_json(_meta_of(file), _Meta)
    known = _read_json(tiles.with_suffix(".meta.json"), _Coordinates)
    coords = piece.coords
    if coords is None and tiles.is_file():
        coords = _read_tiles(file, tiles, piece.n_rows)
    if coords is None:
        return replace(piece, encoder=meta.encoder_name)
    try:
        geometry = Geometry(
            "pixels",
            meta.tile_size_lv0 or known.tile_size_lv0 or known.tiling.tile_size_lv0,
            known.tiling.read_level if known.read_level is None else known.read_level,
            known.base_spacing_um or known.slide.base_spacing_um,
            meta.backend,
        )
    except ValueError as error:
        raise ArchiveError(f"{_meta_of(file)}: {error}") from None
    return replace(piece, coords=coords, geometry=geometry, encoder=meta.encoder_name)


def _read_tiles(file: Path, tiles: Path, n_rows: int) -> NDArray[np.generic]:
    arrays = read_npz(tiles, ("x", "y"))
    x, y = arrays["x"], arrays["y"]
    if x.shape != (n_rows,) or y.shape != (n_rows,) or x.dtype.kind not in "iuf" or y.dtype.kind not in "iuf":
        raise ArchiveError(
            f"{tiles}: x and y for {counted(n_rows, 'row')} of {file} expected, found {x.shape} and {y.shape}"
        )
    return np.stack([x, y], axis=1)


def _read_json(path: Path, record: type[RecordType]) -> RecordType:
    """The record in a small JSON file; an empty one if there is no file."""
    if not path.exists():
        return record()
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(min(size, MAX_META_BYTES)) if size <= MAX_META_BYTES else b""
    try:
        return msgspec.json.decode(content, type=record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ArchiveError(f"{path}: cannot be read: {error}") from None


# torchmil
def add_torchmil(sources: Sequence[Source], home: Path) -> list[Source]:
    """Slides of features_{encoder} with the positions in coords/ and the labels in patch_labels/, where these lie."""
    places = (home, home.parent, home.parent.parent)
    coords, labels = ({os.path.splitext(f.name)[0]: f for f in _npy_in(places, n)} for n in ("coords", "patch_labels"))
    if not coords and not labels:
        return list(sources)
    stems = [source.file.stem for source in sources]
    return [
        replace(_add(source, partial(_add_arrays, source.file, coords.get(stem), labels.get(stem))), asks=None)
        for source, stem in zip(sources, stems, strict=True)
    ]


def _npy_in(places: Sequence[Path], name: str) -> list[Path]:
    """The .npy files in the first folder of that name."""
    folders = (place / name for place in places)
    found = ([folder / file for file in _names_in(folder) if kind_of(file) == ".npy"] for folder in folders)
    return next((files for files in found if files), [])


def _add_arrays(file: Path, coords: Path | None, labels: Path | None, piece: Piece) -> Piece:
    if coords is not None and piece.coords is None:
        piece = replace(piece, coords=_read_array(file, coords, (piece.n_rows, 2)))
    if labels is not None and piece.labels is None:
        values = _read_array(file, labels, (piece.n_rows,))
        if values.dtype.name not in INTEGERS:
            raise ArchiveError(f"{labels}: class indices expected, found {values.dtype}")
        piece = replace(piece, labels=values.astype(np.int64))
    return piece


def _read_array(file: Path, path: Path, shape: tuple[int, ...]) -> NDArray[np.generic]:
    try:
        tensor = npy.read_tensor(path)
    except NotInPlaceError as error:
        raise ArchiveError(str(error).partition(":")[0] + ": numbers of a usual dtype in C order expected") from None
    if tensor.shape not in (shape, (*shape, 1)):
        raise ArchiveError(f"{path}: shape {list(shape)} expected for the rows of {file}, found {list(tensor.shape)}")
    return read_values(path, tensor).reshape(shape)
