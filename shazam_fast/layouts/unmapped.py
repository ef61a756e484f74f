"""Feature files that cannot be mapped: compressed, transposed, of another dtype, text; read in ranges or whole.

A file's rows get virtual offsets, as if they lay uncompressed in one file, so that alignment treats them like mapped
ones; `load` opens the rows themselves. Nothing is unpickled with code execution allowed.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError
from ..formats.geometry import NOT_KNOWN, Geometry
from ..formats.hdf5 import FEATURE_DATASETS, has_member, matrix_shape, opened, read_positions
from ..formats.pieces import ITEM_BYTES, DTypeName, Piece
from ..formats.torch_zip import FEATURES, LABELS
from ..runtime.files import open_regular
from ..runtime.summaries import counted
from .discovery import kind_of

POSITION = re.compile(r"\(\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*\)")  # FuseCPath's key of a patch
# What NumPy, torch, zarr, zipfile and json raise on files that are damaged or not theirs.
READ_ERRORS = (
    OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
Arrays = Mapping[str, NDArray[Any]]  # "features", and "coords" and "labels" where the file has them
PIXELS = Geometry("pixels")  # of positions that are level-0 pixels in all files of a tool


class Matrix(Protocol):
    """Features [rows, columns] of which ranges of rows can be read."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


class Unmapped(Piece, frozen=True, eq=False, kw_only=True):
    """A piece whose `runs` have virtual offsets; `load` gives its rows [rows, columns]."""

    load: Callable[[], Matrix]


def read_unmapped(file: Path, teacher: str) -> Unmapped:
    """The features of one file that `shazam_fast.open` does not map; `teacher` chooses among several in one HDF5 file.

    Raises ArchiveError when they cannot be read, or are not numbers.
    """
    kind = kind_of(file.name)
    if kind == ".h5":
        return _read_hdf5(file, teacher)
    open_regular(file).close()  # refuses pipes and devices
    return whole(file, READERS[kind], PIXELS if kind in (".txt", ".json") else NOT_KNOWN)


def describe(
    file: Path,
    features: tuple[tuple[int, ...], np.dtype[Any]],
    load: Callable[[], Matrix],
    coords: NDArray[np.generic] | None = None,
    labels: NDArray[np.int64] | None = None,
    geometry: Geometry = NOT_KNOWN,
) -> Unmapped:
    """The piece of features of the given shape [rows, columns] and dtype.

    Raises ArchiveError unless they are floating-point numbers, one row per patch.
    """
    shape, dtype = features
    if len(shape) != 2 or (shape[0] and not shape[1]) or dtype.kind != "f":
        raise ArchiveError(
            f"{file}: features are {dtype} {list(shape)}; floating-point numbers [rows, columns] expected"
        )
    rows, columns = shape
    stored: DTypeName = "float16" if dtype.itemsize == 2 else "float32"
    runs = np.array([[0, rows, columns * ITEM_BYTES[stored]]] if rows else [], dtype=np.int64).reshape(-1, 3)
    return Unmapped(columns, stored, runs, coords, labels, geometry=geometry, load=load)


def whole(file: Path, read: Callable[[Path], Arrays], geometry: Geometry = NOT_KNOWN) -> Unmapped:
    """The piece of a file that can only be read as a whole, which happens once here and once when its rows are due."""
    with reading(file):
        arrays = read(file)
        features = _drop_leading_axis(arrays["features"])
        coords, labels = arrays.get("coords"), arrays.get("labels")
    rows = len(features) if features.ndim else 0
    if coords is not None:
        if coords.ndim != 2 or len(coords) != rows or coords.shape[1] < 2 or coords.dtype.kind not in "iuf":
            raise ArchiveError(
                f"{file}: coords are {coords.dtype} {list(coords.shape)} for {counted(rows, 'row')} of features"
            )
        coords = coords[:, :2]
    if labels is not None and (labels.dtype.kind not in "iub" or labels.size == 1 != rows):
        labels = None  # targets of a regression, or the label of the whole slide
    elif labels is not None:
        if labels.shape != (rows,):
            raise ArchiveError(f"{file}: labels of shape {list(labels.shape)} for {counted(rows, 'row')} of features")
        labels = labels.astype(np.int64)
    shape = (features.shape, features.dtype)
    return describe(file, shape, partial(_load, read, file), coords, labels, geometry)


def _load(read: Callable[[Path], Arrays], file: Path) -> NDArray[Any]:
    return _drop_leading_axis(read(file)["features"])


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn what libraries raise on a file into an ArchiveError that names it."""
    try:
        yield
    except READ_ERRORS as error:
        raise ArchiveError(
            f"{file}: cannot be read: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error


# HDF5
class _SecondAxis:
    """Rows of a dataset [1, rows, columns]."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        values: NDArray[Any] = self._dataset[0, rows]
        return values


def _read_hdf5(file: Path, teacher: str) -> Unmapped:
    """Compressed, chunked by columns, of another dtype, or virtual; links are followed."""
    with opened(file) as content:
        name = _hdf5_name(file, content, teacher)
        dataset = content[name]
        rows, columns = matrix_shape(file, dataset)
        _require_written(file, dataset)
        coords, _, geometry = read_positions(file, content, rows, follow=True)
        load = partial(_open_hdf5, file, name)
        return describe(file, ((rows, columns), dataset.dtype), load, coords, geometry=geometry)


def _open_hdf5(file: Path, name: str) -> Matrix:
    import h5py  # type: ignore[import-untyped]

    dataset = h5py.File(file, "r")[name]  # keeps the file open as long as it lives
    return _SecondAxis(dataset) if dataset.ndim == 3 else dataset


def _hdf5_name(file: Path, content: Any, teacher: str) -> str:
    import h5py

    name = next((name for name in FEATURE_DATASETS if has_member(content, name)), None)
    if name is None:
        raise ArchiveError(f"{file}: none of {', '.join(FEATURE_DATASETS)} is in it")
    if not isinstance(content[name], h5py.Group):
        return name
    encoders = list(content[name])
    if teacher not in encoders and len(encoders) != 1:
        raise ArchiveError(f"{file}: no features of {teacher!r}; found {', '.join(encoders)}")
    return f"{name}/{teacher if teacher in encoders else encoders[0]}"


def _require_written(file: Path, dataset: Any) -> None:
    """HDF5 gives zeros for chunks that were never written and for virtual sources that are missing."""
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            if source.file_name != "." and not (file.parent / source.file_name).is_file():
                raise ArchiveError(
                    f"{file}: {dataset.name!r} takes its values from {source.file_name}, which is missing"
                )
    if dataset.chunks:
        chunks = int(np.prod([-(-n // step) for n, step in zip(dataset.shape, dataset.chunks, strict=True)]))
        if (written := dataset.id.get_num_chunks()) < chunks:
            raise ArchiveError(f"{file}: {written} of {chunks} chunks of {dataset.name!r} written: extract it again")


# Files that are read whole
def _read_json(file: Path) -> Arrays:
    """FuseCPath's text: a list of features, or one dictionary {"(x, y)": feature} per line."""
    lines = [
        json.loads(line, object_pairs_hook=_unique)
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    if len(lines) == 1 and isinstance(lines[0], list):
        return {"features": np.array(lines[0], dtype=np.float32)}
    if not all(isinstance(line, dict) for line in lines):
        raise ArchiveError(f"{file}: a JSON list of features, or a dictionary {{patch: feature}} per line, expected")
    pairs = [pair for line in lines for pair in line.items()]
    arrays = {"features": np.array([feature for _, feature in pairs], dtype=np.float32)}
    positions = [POSITION.fullmatch(patch) for patch, _ in pairs]
    if any(positions):
        if not all(positions):
            lone = next(patch for (patch, _), at in zip(pairs, positions, strict=True) if at is None)
            raise ArchiveError(f"{file}: key {lone!r:.50} is no position (x, y), as others are")
        arrays["coords"] = np.array([[int(at[1]), int(at[2])] for at in positions if at], dtype=np.int64)
    return arrays


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a patch is there twice")
    return found


def load_tensors(file: Path) -> Any:
    """What torch.save wrote, in its old format or its new one; anything but tensors in containers is refused."""
    import pickle

    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ArchiveError(
            f"{file}: corrupt, or holds more than tensors, such as a pickled NumPy array; refused, as reading it runs "
            "code. Load it where it was written and save the features with torch.save(torch.as_tensor(features), path)"
        ) from None


def to_numpy(tensor: Any) -> NDArray[Any]:
    """A tensor as an array; bfloat16, which NumPy lacks, as float32."""
    import torch

    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
    return array


def _read_torch(file: Path) -> Arrays:
    import torch

    match load_tensors(file):
        case torch.Tensor() as features:
            return {"features": to_numpy(features)}
        case [torch.Tensor() as features, torch.Tensor() as labels]:
            return {"features": to_numpy(features), "labels": to_numpy(labels)}
        case dict() as content:
            return _pick(file, {n: to_numpy(t) for n, t in content.items() if isinstance(t, torch.Tensor)})
        case content:
            raise ArchiveError(f"{file}: features, (features, labels) or a dictionary expected, found {type(content)}")


def _read_safetensors(file: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return _pick(file, load_file(file))
    except SafetensorError as error:
        raise ArchiveError(f"{file}: {error}") from None


def _read_npy(file: Path) -> Arrays:
    return {"features": np.load(file, mmap_mode="r", allow_pickle=False)}


def _read_npz(file: Path) -> Arrays:
    with np.load(file, allow_pickle=False) as content:
        return _pick(file, {name: content[name] for name in content.files})


def _pick(file: Path, arrays: Arrays) -> Arrays:
    """Features, coords and labels among named arrays; a lone array is features whatever its name."""
    features = next((name for name in FEATURES if name in arrays), next(iter(arrays), "")) if arrays else ""
    if features not in FEATURES and len(arrays) != 1:
        raise ArchiveError(f"{file}: an array called one of {', '.join(FEATURES)} expected, found {', '.join(arrays)}")
    picked = {"features": arrays[features]}
    picked |= {"coords": arrays["coords"]} if "coords" in arrays else {}
    labels = next((arrays[name] for name in LABELS if name in arrays), None)
    return picked if labels is None else {**picked, "labels": labels}


def _drop_leading_axis(features: NDArray[Any]) -> NDArray[Any]:
    return features[0] if features.ndim == 3 and len(features) == 1 else features


def read_npz(file: Path, names: Sequence[str]) -> Arrays:
    """Some arrays of a .npz file. Raises ArchiveError when it cannot be read, or one is missing."""
    open_regular(file).close()
    with reading(file), np.load(file, allow_pickle=False) as content:
        if missing := [name for name in names if name not in content.files]:
            raise ArchiveError(f"{file}: no array {missing[0]!r}; it holds {', '.join(content.files)}")
        return {name: content[name] for name in names}


READERS: Mapping[str, Callable[[Path], Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".json": _read_json,
    ".txt": _read_json,
}
