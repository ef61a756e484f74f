"""HDF5 feature files of TRIDENT, CLAM, STAMP and AtlasPatch, opened where they are.

h5py finds the datasets and says where their rows lie; the features themselves are never read through it.

    TRIDENT     features, coords int64 [n, 2]; attributes of coords: patch_size_level0; of features: encoder
    CLAM        features, coords int32 [n, 2]; patches/{slide}.h5 beside: coords with patch_size and patch_level
    STAMP       feats (older: patch_embeddings), coords float32 [n, 2]; attributes: unit "um", tile_size_um, extractor
    AtlasPatch  features/{encoder} for all encoders, coords int32 [n, 5] of x, y, w, h, level

Published features may have a leading axis of 1 (UNI2-h), which is dropped.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError, NotInPlaceError, ShazamError
from .geometry import NOT_KNOWN, Geometry, geometry_of, unit_of
from .hdf5_attributes import read_attributes
from .hdf5_chunks import locate_rows, mapping_obstacle, read_matrix
from .pieces import DTypeName, Piece, Place

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


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The h5py.File at `path`; whatever h5py raises on it becomes an ArchiveError."""
    try:
        import h5py  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        raise ShazamError("h5py is needed to open .h5 files: pip install 'shazam_fast[hdf5]'") from None
    try:
        if not path.is_file():
            raise ArchiveError(f"{path}: no such file, or not a regular one", "missing")
        with _open(path) as file:
            yield file
    except H5PY_ERRORS as error:
        raise ArchiveError(f"{path}: HDF5 cannot read it, it is corrupt or still being written: {error}") from error


_access: list[
    Any
] = []  # the properties of files that h5py.File(path, "r") makes anew for every file, as long as opening


def _open(path: Path) -> Any:
    import h5py

    if _access:
        return h5py.File(h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, _access[0]))
    file = h5py.File(path, "r")
    _access.append(file.id.get_access_plist())
    return file


@dataclass(frozen=True)
class Probe:
    """What one file says of the teachers in it: AtlasPatch's encoders, or the name of the only one, "" if not given."""

    encoders: tuple[str, ...] = ()
    encoder: str = ""


def probe(path: Path) -> Probe:
    """Look at one file. Raises ArchiveError when it cannot be read."""
    import h5py

    with opened(path) as file:
        if _link_type(file, "features") == h5py.h5l.TYPE_HARD and isinstance(file["features"], h5py.Group):
            return Probe(encoders=_encoders(path, file))
        name = _name_of_features(file)
        return Probe(encoder=_encoder(path, file, file[name]) if has_member(file, name) else "")


def read_encoder(path: Path, encoder: str, encoders: tuple[str, ...]) -> Piece:
    """One teacher of an AtlasPatch file, which must have `encoders` and no others."""
    with opened(path) as file:
        if (found := _encoders(path, file)) != encoders:
            raise ArchiveError(
                f"{path}: its encoders are {', '.join(found)}, those of the first slide {', '.join(encoders)}; extract "
                "the missing ones, or leave the slide out with on_error='skip'"
            )
        return _read_features(path, file, f"features/{encoder}")


def read_coords_file(path: Path) -> tuple[int, Geometry]:
    """Rows and geometry of a file of coordinates without features, as CLAM has in patches/."""
    with opened(path) as file:
        coords = _dataset(path, file, "coords")
        return matrix_shape(path, coords)[0], _read_geometry(path, file, coords, None)


def _encoders(path: Path, file: Any) -> tuple[str, ...]:
    import h5py

    features = _member(path, file, "features")
    if not isinstance(features, h5py.Group) or not len(features):
        raise ArchiveError(f"{path}: not an AtlasPatch file: a group 'features' with a dataset per encoder expected")
    return tuple(sorted(features))


def _encoder(path: Path, file: Any, features: Any) -> str:
    """The teacher's name that the file gives: TRIDENT's attribute of the features, STAMP's of the file."""
    told = read_attributes(path, features, ("encoder",)).get("encoder", "")
    if not isinstance(told, str) or not told:
        told = read_attributes(path, file, ("extractor",)).get("extractor", "")
    return told if isinstance(told, str) else ""


def _name_of_features(file: Any) -> str:
    return next((name for name in FEATURE_DATASETS if has_member(file, name)), FEATURE_DATASETS[0])


def _read_features(path: Path, file: Any, name: str | None) -> Piece:
    name = name or _name_of_features(file)
    features = _dataset(path, file, name)
    rows, columns = matrix_shape(path, features)
    runs, stored = np.empty((0, 3), np.int64), features.dtype
    if rows:
        _check_mappable(path, features, stored)
        runs = locate_rows(path, features, stored)
    coords, place, geometry = read_positions(path, file, rows)
    dtype = DTYPES.get(stored.str, "float32")
    encoder = _encoder(path, file, features)
    return Piece(columns, dtype, runs, coords, geometry=geometry, encoder=encoder, coords_place=place)


def _check_mappable(path: Path, features: Any, dtype: np.dtype[Any]) -> None:
    obstacle = mapping_obstacle(features, dtype)
    if dtype.kind not in "fV":
        raise ArchiveError(
            f"{path}: dataset {features.name!r} is {dtype}; features are float16 or float32: save them so",
            "dtype",
        )
    if dtype.str not in DTYPES:
        order = "big-endian " if dtype.byteorder == ">" else ""
        obstacle = f"{order}{dtype.name}, neither float16 nor float32"
    if obstacle:
        raise NotInPlaceError(f"{path}: dataset {features.name!r} is {obstacle}; {CONVERT}")


def read_positions(
    path: Path, file: Any, rows: int, follow: bool = False
) -> tuple[NDArray[np.generic] | None, Place | None, Geometry]:
    """x, y [rows, 2] in the stored dtype, native byte order, their place, and what they mean.

    None, None and nothing known without coords; no place where they must be decoded.

    follow: whether a link to another file is followed.
    """
    if not has_member(file, "coords"):
        return None, None, NOT_KNOWN
    coords = file["coords"] if follow else _dataset(path, file, "coords")
    found, width = matrix_shape(path, coords)
    if found != rows:
        raise ArchiveError(f"{path}: {rows} rows of features but {found} of coords; extract the slide again")
    stored = coords.dtype
    if stored.kind not in "iuf":
        raise ArchiveError(f"{path}: coords are {stored}; numbers were expected")
    native = stored.newbyteorder("=")
    if rows == 0:
        return np.empty((0, 2), native), None, _read_geometry(path, file, coords, None)
    if width < 2:
        raise ArchiveError(f"{path}: coords have {width} column; x and y were expected")
    values, place = read_matrix(path, coords, stored)
    geometry = _read_geometry(path, file, coords, values if width == 5 else None)
    return np.ascontiguousarray(values[:, :2], dtype=native), place, geometry


SIZES = ("patch_size_level0", "patch_level", "patch_size", "downsample", "custom_downsample")


def _read_geometry(path: Path, file: Any, coords: Any, boxes: NDArray[np.generic] | None) -> Geometry:
    """What the attributes say of the patches, and AtlasPatch's `boxes` [rows, 5] of x, y, w, h, level."""
    try:
        told = read_attributes(path, coords, SIZES)
        if not told:  # AtlasPatch and STAMP say it of the whole file
            told = read_attributes(path, file, (*SIZES, "unit", "tile_size_um"))
        unit = unit_of(told["unit"]) if "unit" in told else None
        if unit == "micrometres":
            side_um = told.get("tile_size_um")
            return Geometry("micrometres", None if side_um is None else float(side_um[0]))
        geometry = replace(geometry_of(told), unit="pixels") if unit else geometry_of(told)
        if boxes is None:
            return geometry
        side, height, level = (int(v[0]) if (v == v[0]).all() else None for v in boxes[:, 2:].T)
        size = geometry.patch_size or (side if level == 0 and side == height else None)
        return Geometry("pixels", size, level)
    except (ValueError, TypeError) as error:
        raise ArchiveError(f"{path}: attributes of the coordinates: {error}") from None


def matrix_shape(path: Path, dataset: Any) -> tuple[int, int]:
    """(rows, columns) of a dataset [rows, columns] or [1, rows, columns], or [0] of an empty slide."""
    shape = dataset.shape
    if shape == (0,):
        return 0, 0
    if shape is not None and len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if shape is None or len(shape) != 2 or (shape[0] and not shape[1]):
        raise ArchiveError(f"{path}: {dataset.name!r} has the shape {dataset.shape}; one row per patch was expected")
    return shape[0], shape[1]


def _dataset(path: Path, file: Any, name: str) -> Any:
    """The h5py.Dataset called `name`, whose values lie in this file."""
    import h5py

    found = _member(path, file, name)
    if isinstance(found, h5py.Group):
        raise ArchiveError(f"{path}: {name!r} is a group, of {_names(found)}; a dataset was expected")
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
        link = _link_type(found, part)
        if link is None:
            raise ArchiveError(f"{path}: no dataset {name!r}; {found.name!r} has {_names(found)}")
        if link != h5py.h5l.TYPE_HARD:
            raise NotInPlaceError(f"{path}: {name!r} is a link to elsewhere; {CONVERT}")
        member = h5py.h5o.open(found.id, part.encode())
        found = h5py.Dataset(member, readonly=True) if isinstance(member, h5py.h5d.DatasetID) else found[part]
    return found


def has_member(group: Any, name: str) -> bool:
    """Whether `name` is in the group, even as a link to nothing."""
    return _link_type(group, name) is not None


def _link_type(group: Any, name: str) -> int | None:
    """h5py.h5l.TYPE_HARD, TYPE_SOFT or TYPE_EXTERNAL; None without such a member. Much faster than Group.get."""
    links, encoded = group.id.links, name.encode()
    return links.get_info(encoded).type if links.exists(encoded) else None


def _names(group: Any) -> str:
    """The first ten names in a group."""
    return ", ".join(map(repr, islice(group, 10))) + (", ..." if len(group) > 10 else "") or "nothing"
