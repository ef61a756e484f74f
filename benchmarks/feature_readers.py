"""Ways to read random rows of four teachers' float16 features, for `bench_features`."""

import gc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import shazam_fast as sf

TEACHERS = {"virchow": 1280, "uni": 1024, "phikon-v2": 1024, "gigapath": 1536}
WIDTH = sum(TEACHERS.values())
CHUNK = 512  # rows per chunk, as HDF5 and zarr users commonly store them

Features = Mapping[str, NDArray[np.float16]]
Read = Callable[[NDArray[np.int64]], Any]  # rows -> float32 [rows, WIDTH], or one array per teacher


def read_archive(files: Path, features: Features, batch: int) -> Read:
    archive, out = sf.open(files / "a.archive"), np.empty((batch, WIDTH), np.float32)
    return lambda index: archive.gather(index, out=out)


def read_npy(files: Path, features: Features, batch: int) -> Read:
    archive = sf.open({name: files / f"{name}.npy" for name in TEACHERS})
    out = np.empty((batch, WIDTH), np.float32)
    return lambda index: archive.gather(index, out=out)


def read_memory_maps(files: Path, features: Features, batch: int) -> Read:
    maps = [np.load(files / f"{name}.npy", mmap_mode="r") for name in TEACHERS]
    return lambda index: [m[index].astype(np.float32) for m in maps]


def read_h5py(files: Path, features: Features, batch: int) -> Read:
    h5py = pytest.importorskip("h5py")
    with h5py.File(files / "chunked.h5", "w") as file:
        for name, array in features.items():
            file.create_dataset(name, data=array, chunks=(CHUNK, array.shape[1]))
    file = h5py.File(files / "chunked.h5", "r")

    def read(index: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        order = np.argsort(index)  # h5py takes rows in ascending order
        back = np.argsort(order)
        return [file[name][index[order]][back].astype(np.float32) for name in TEACHERS]

    return read


def read_zarr(files: Path, features: Features, batch: int) -> Read:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(files / "chunked.zarr"), mode="w")
    for name, array in features.items():
        chunks = (CHUNK, array.shape[1])
        target = group.create_array(name, shape=array.shape, chunks=chunks, dtype=array.dtype, compressors=None)
        target[:] = array
    return lambda index: [group[name].oindex[index].astype(np.float32) for name in TEACHERS]


def read_safetensors(files: Path, features: Features, batch: int) -> Read:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    save_file(dict(features), files / "all.safetensors")
    opened = safe_open(files / "all.safetensors", framework="np")
    slices = [opened.get_slice(name) for name in TEACHERS]
    return lambda index: [np.concatenate([s[i : i + 1] for i in index.tolist()]).astype(np.float32) for s in slices]


READERS = {
    "memmap": read_memory_maps,
    "ours": read_archive,
    "ours npy": read_npy,
    "h5py": read_h5py,
    "zarr": read_zarr,
    "safetensors": read_safetensors,
}
SLOW = ("h5py", "zarr", "safetensors")


def bring_into_page_cache(*paths: Path) -> None:
    """What was written a while ago may have left it, some pages of it at least."""
    buffer = bytearray(16 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop_from_page_cache(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class Cold:
    """Readers whose files are out of the page cache: pages that a process has mapped would stay, so none is open."""

    def __init__(self, paths: list[Path], make: Callable[[], Any]) -> None:
        self._paths, self._make, self.reader = paths, make, None

    def reopen(self) -> None:
        self.reader = None
        gc.collect()
        drop_from_page_cache(*self._paths)
        self.reader = self._make()
