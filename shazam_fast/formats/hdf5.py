"""HDF5 feature files of TRIDENT, CLAM, STAMP and AtlasPatch, opened where they are.

h5py finds the datasets and says where their rows lie; the features themselves are never read through it.

    TRIDENT     {mag}x_{px}px_{ov}px_overlap/features_{encoder}/{slide}.h5: features, coords int64 [n, 2]
    CLAM        h5_files/{slide}.h5: features, coords int32 [n, 2]
    STAMP       {extractor}-{hash}/{slide}.h5: feats (older: patch_embeddings), coords float32 [n, 2] in micrometres
    AtlasPatch  patches/{slide}.h5: features/{encoder} for all encoders, coords int32 [n, 5] of x, y, w, h, level

Published features may have a leading axis of 1 (UNI2-h), which is dropped.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError, NotInPlaceError, ShazamError
from .hdf5_chunks import locate_rows, mapping_obstacle, read_matrix
from .pieces import DTypeName, Piece, Source

FEATURE_DATASETS = ("features", "feats", "patch_embeddings")
DTYPES: dict[str, DTypeName] = {"<f2": "float16", "<f4": "float32"}
CONVERT = "it cannot be opened in place, but shazam_fast.convert can read it"
# What h5py raises on a file that is not HDF5, is truncated, locked by a writer, or corrupt.
H5PY_ERRORS = (OSError, KeyError, ValueError, RuntimeError, TypeError, OverflowError, MemoryError)


def read_piece(path: Path, dataset: str | None = None) -> Piece:
    """The features in the HDF5 file at `path`, located but not read, and their coords, read.

    dataset: its name, as in "features/uni_v1"; the first of FEATURE_DATASETS that is there unless given.

    An empty slide may be stored without a width, and as any dtype: it has 0 columns and passes as float32.
    Raises ArchiveError when the file cannot be read in place, saying why.
    """
    with opened(path) as file:
        return _read_features(path, file, dataset)


def find_trident(path: Path) -> list[Source]:
    """Slides of a TRIDENT job (or of the one job in `path`, or of one of its features_{encoder} directories).

    A teacher is called as its encoder. slide_features_{encoder} directories hold no patches and are left out.
    """
    return [
        Source(folder.absolute().name.removeprefix("features_"), slide, file, partial(read_piece, file))
        for folder in _encoder_folders(path)
        for slide, file in _slide_files(folder).items()
    ]


def find_hdf5_directory(path: Path, teacher: str) -> list[Source]:
    """Slides of one teacher, a .h5 file each, in `path` and its subfolders: CLAM, or one STAMP extractor."""
    folder = path / "h5_files"
    slides = _slide_files(folder if folder.is_dir() else path)
    return [Source(teacher, slide, file, partial(read_piece, file)) for slide, file in slides.items()]


def find_atlaspatch(path: Path) -> list[Source]:
    """Slides of an AtlasPatch output directory, of its `patches` directory, or of one of its files.

    The encoders of the first file are the teachers; a slide with others raises ArchiveError when it is read.
    """
    folder = path / "patches"
    slides = {path.stem: path} if path.is_file() else _slide_files(folder if folder.is_dir() else path)
    first = next(iter(slides.values()))
    with opened(first) as file:
        encoders = _encoders(first, file)
    return [
        Source(encoder, slide, file, partial(_read_encoder, file, encoder, encoders))
        for encoder in encoders
        for slide, file in slides.items()
    ]


# Directories
def _encoder_folders(path: Path) -> list[Path]:
    if path.absolute().name.startswith("features_"):
        return [path]
    if here := _features_folders(path):
        return here
    jobs = {folder: found for folder in _subfolders(path) if (found := _features_folders(folder))}
    if not jobs:
        raise ArchiveError(f"{path}: no directory features_{{encoder}} with patch features here or one level below")
    if len(jobs) > 1:
        raise ArchiveError(f"{path}: several TRIDENT jobs, open one of them: {', '.join(job.name for job in jobs)}")
    return next(iter(jobs.values()))


def _features_folders(path: Path) -> list[Path]:
    return [folder for folder in _subfolders(path) if folder.name.startswith("features_")]


def _subfolders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        _refuse_listing(error)


def _slide_files(folder: Path) -> dict[str, Path]:
    """Slide -> .h5 file, sorted, of all such files in `folder` and below; at least one."""
    slides: dict[str, Path] = {}
    seen = set()
    for place, subfolders, names in os.walk(folder, onerror=_refuse_listing, followlinks=True):
        seen.add(os.path.realpath(place))
        # links to class folders are followed, but not in circles
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not name.startswith(".") and os.path.realpath(os.path.join(place, name)) not in seen
        ]
        for name in names:
            slide, extension = os.path.splitext(name)
            if name.startswith("."):
                continue
            if name.endswith(".h5.lock"):  # TRIDENT has one beside each slide that it is at work on
                raise ArchiveError(
                    f"{os.path.join(place, name)}: the slide is still being written; wait until it is done, "
                    "or, if the extraction was killed, delete the lock and the slide and extract it again"
                )
            if extension != ".h5" or slide.endswith(".tmp"):
                continue
            file = Path(place, name)
            if slide in slides:
                raise ArchiveError(f"two files of slide {slide!r} for one teacher: {slides[slide]} and {file}")
            slides[slide] = file
    if not slides:
        raise ArchiveError(f"{folder}: no .h5 files here or below")
    return dict(sorted(slides.items()))


def _refuse_listing(error: OSError) -> NoReturn:
    raise ArchiveError(f"{error.filename}: cannot list the directory: {error.strerror}") from error


# Files
@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The h5py.File at `path`; whatever h5py raises on it becomes an ArchiveError."""
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError:
        raise ShazamError("h5py is needed to open .h5 files: pip install 'shazam_fast[hdf5]'") from None
    try:
        if not path.is_file():
            raise ArchiveError(f"{path}: no such file")
        with h5py.File(path, "r") as file:
            yield file
    except H5PY_ERRORS as error:
        raise ArchiveError(f"{path}: HDF5 cannot read it, it is corrupt or still being written: {error}") from error


def _read_encoder(path: Path, encoder: str, encoders: tuple[str, ...]) -> Piece:
    """One teacher of an AtlasPatch file, which must have `encoders` and no others."""
    with opened(path) as file:
        if (found := _encoders(path, file)) != encoders:
            raise ArchiveError(f"{path}: the encoders {found} differ from those of the first slide, {encoders}")
        return _read_features(path, file, f"features/{encoder}")


def _encoders(path: Path, file: Any) -> tuple[str, ...]:
    import h5py

    features = _member(path, file, "features")
    if not isinstance(features, h5py.Group) or not len(features):
        raise ArchiveError(f"{path}: not an AtlasPatch file: a group 'features' with a dataset per encoder expected")
    return tuple(sorted(features))


def _read_features(path: Path, file: Any, name: str | None) -> Piece:
    name = name or next((n for n in FEATURE_DATASETS if has_member(file, n)), FEATURE_DATASETS[0])
    features = _dataset(path, file, name)
    rows, columns = matrix_shape(path, features)
    runs = np.empty((0, 3), np.int64)
    if rows:
        _check_mappable(path, features)
        runs = locate_rows(path, features)
    coords = read_coords(path, file, rows) if has_member(file, "coords") else None
    return Piece(columns, DTYPES.get(features.dtype.str, "float32"), runs, coords)


def _check_mappable(path: Path, features: Any) -> None:
    obstacle = mapping_obstacle(features)
    if features.dtype.str not in DTYPES:
        order = "big-endian " if features.dtype.byteorder == ">" else ""
        obstacle = f"{order}{features.dtype.name}, neither float16 nor float32"
    if obstacle:
        raise NotInPlaceError(f"{path}: dataset {features.name!r} is {obstacle}; {CONVERT}")


def read_coords(path: Path, file: Any, rows: int) -> NDArray[np.generic]:
    """x, y [rows, 2] in the stored dtype, native byte order."""
    coords = _dataset(path, file, "coords")
    found, width = matrix_shape(path, coords)
    if found != rows:
        raise ArchiveError(f"{path}: {rows} rows of features but {found} of coords; extract the slide again")
    if coords.dtype.kind not in "iuf":
        raise ArchiveError(f"{path}: coords are {coords.dtype}; numbers were expected")
    native = coords.dtype.newbyteorder("=")
    if rows == 0:
        return np.empty((0, 2), native)
    if width < 2:
        raise ArchiveError(f"{path}: coords have {width} column; x and y were expected")
    return np.ascontiguousarray(read_matrix(path, coords)[:, :2], dtype=native)


def matrix_shape(path: Path, dataset: Any) -> tuple[int, int]:
    """(rows, columns) of a dataset [rows, columns] or [1, rows, columns], or [0] of an empty slide."""
    shape = dataset.shape
    if shape == (0,):
        return 0, 0
    if shape is not None and len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if shape is None or len(shape) != 2 or (shape[0] and not shape[1]):
        raise ArchiveError(f"{path}: {dataset.name!r} has the shape {dataset.shape}; one row a patch was expected")
    return shape[0], shape[1]


def _dataset(path: Path, file: Any, name: str) -> Any:
    """The h5py.Dataset called `name`, whose values lie in this file."""
    import h5py

    found = _member(path, file, name)
    if isinstance(found, h5py.Group):
        raise ArchiveError(f"{path}: {name!r} is a group, of {_names(found)}: open it as AtlasPatch, or name a dataset")
    if not isinstance(found, h5py.Dataset):
        raise ArchiveError(f"{path}: {name!r} is no dataset")
    properties = found.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise NotInPlaceError(f"{path}: the values of {name!r} lie in other files; {CONVERT}")
    return found


def _member(path: Path, file: Any, name: str) -> Any:
    """What `name` (with / between groups) stands for. Links are not followed: they may lead to any file."""
    import h5py

    found = file
    for part in name.split("/"):
        if not isinstance(found, h5py.Group):
            raise ArchiveError(f"{path}: no dataset {name!r}; {found.name!r} is a dataset")
        link = found.get(part, getlink=True)
        if link is None:
            raise ArchiveError(f"{path}: no dataset {name!r}; {found.name!r} has {_names(found)}")
        if not isinstance(link, h5py.HardLink):
            raise NotInPlaceError(f"{path}: {name!r} is a link to elsewhere; {CONVERT}")
        found = found[part]
    return found


def has_member(group: Any, name: str) -> bool:
    """Whether `name` is in the group, be it a link that leads nowhere."""
    return group.get(name, getlink=True) is not None


def _names(group: Any) -> str:
    """The first ten names in a group."""
    return ", ".join(map(repr, islice(group, 10))) + (", ..." if len(group) > 10 else "") or "nothing"
