"""Where the rows of an HDF5 dataset lie in its file, so that they can be read without the HDF5 library.

A contiguous dataset is one run of rows. A chunked one keeps a table of chunks, each a block of rows padded to full
size; chunks that were appended one after another usually lie one after another, and merge into few runs.
"""

import os
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError
from .pieces import Place

# Before this release the library reported the places of chunks without the user block in front of the file.
USER_BLOCK_COUNTED = (1, 14, 4)


def mapping_obstacle(dataset: Any, dtype: np.dtype[Any]) -> str | None:
    """What keeps the rows of `dataset` ([rows, columns], or with a leading axis of 1) from being read in place.

    dtype: that of the dataset, which h5py is slow to tell; likewise below.

    None when nothing does; otherwise words that continue "the dataset is ...".
    """
    import h5py  # type: ignore[import-untyped]

    properties = dataset.id.get_create_plist()
    if properties.get_nfilters():
        filters = ", ".join(properties.get_filter(i)[3].decode() for i in range(properties.get_nfilters()))
        return f"compressed or filtered ({filters})"
    layout = properties.get_layout()
    if layout == h5py.h5d.COMPACT:
        return "stored inside the header (compact)"
    if layout == h5py.h5d.CHUNKED:
        chunks = properties.get_chunk()
        if chunks[-1] < (columns := dataset.shape[-1]):
            return f"cut into chunks of {chunks}, which split the {columns} columns"
        if h5py.version.hdf5_version_tuple < USER_BLOCK_COUNTED and dataset.file.userblock_size:
            return f"behind a user block, which HDF5 {h5py.version.hdf5_version} does not count"
    # bfloat16 and 12-bit integers, say, are handed out as the next larger NumPy type
    if not dataset.id.get_type().equal(_type_of(dtype)):
        return f"stored in another form than {dtype}"
    return None


@cache
def _type_of(dtype: np.dtype[Any]) -> Any:
    import h5py

    return h5py.h5t.py_create(dtype)


def locate_rows(path: Path, dataset: Any, dtype: np.dtype[Any]) -> NDArray[np.int64]:
    """Runs of evenly spaced rows of a `dataset` that has rows and no obstacle, in order.

    Returns int64 [n, 3]: byte offset in the file at `path`, rows, row stride in bytes. Raises ArchiveError when rows
    were never written or do not lie within the file.
    """
    rows, columns = dataset.shape[-2:]
    size = os.stat(path).st_size
    chunks, item = dataset.chunks, dtype.itemsize
    if chunks:
        offsets = _chunk_offsets(path, dataset, size, chunks, prod(chunks) * item)
        return _merge(offsets, rows, chunks[-2], chunks[-1] * item)

    offset, stride = dataset.id.get_offset(), columns * item
    if offset is None:
        raise _never_written(path, dataset, 0)
    if offset + rows * stride > size:
        raise _truncated(path, dataset, offset + rows * stride, size)
    return np.array([[offset, rows, stride]], dtype=np.int64)


def read_matrix(path: Path, dataset: Any, dtype: np.dtype[Any]) -> tuple[NDArray[np.generic], Place | None]:
    """The values [rows, columns] of a small `dataset` that has rows, and their place.

    They are read in place, or, where they cannot be, through h5py; the place is None then. In place is faster: of
    chunks of one row, h5py reads 200,000 per second.
    """
    rows, columns = dataset.shape[-2:]
    if not mapping_obstacle(dataset, dtype):
        place = Place(locate_rows(path, dataset, dtype), columns, dtype.str)
        return place.read(path), place
    if dataset.chunks:  # h5py gives zeros for chunks that are missing
        chunks = prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        if (written := dataset.id.get_num_chunks()) != chunks:
            raise ArchiveError(f"{path}: {written} of {chunks} chunks of {dataset.name!r} written: extract it again")
    values: NDArray[np.generic] = dataset[...].reshape(rows, columns)
    return values, None


def _chunk_offsets(path: Path, dataset: Any, size: int, chunks: tuple[int, ...], chunk_bytes: int) -> NDArray[np.int64]:
    """Byte offset [chunks] of every chunk, by row: all are there, and none outside the file of `size` bytes."""
    rows, step = dataset.shape[-2], chunks[-2]
    listed = _list_chunks(dataset.id, limit=size // chunk_bytes + 1)
    table = np.array([(c.byte_offset, c.size, *reversed(c.chunk_offset)) for c in listed], dtype=np.int64)
    table = table.reshape(-1, 2 + len(chunks))  # byte offset, bytes, column, row, 0 along a leading axis
    table = table[np.argsort(table[:, 3], kind="stable")]
    in_place = table[:, 3] == np.arange(len(table)) * step
    complete = len(table) if in_place.all() else int(in_place.argmin())
    if complete * step < rows:
        raise _never_written(path, dataset, complete * step)
    offsets = table[:, 0]
    end = int(offsets.max()) + chunk_bytes
    if end > size:
        raise _truncated(path, dataset, end, size)
    ordered = np.sort(offsets)
    overlap = ordered[1:] - ordered[:-1] < chunk_bytes
    displaced = table[:, 2].any() or table[:, 4:].any() or len(table) > -(-rows // step)
    if overlap.any() or displaced or (table[:, 1] != chunk_bytes).any():
        raise ArchiveError(f"{path}: corrupt: chunks of {dataset.name!r} overlap, or have an impossible place or size")
    return offsets


def _list_chunks(dataset_id: Any, limit: int) -> list[Any]:
    """The chunk table as h5py's StoreInfo records, no more than `limit`: a corrupt one may run in a circle."""
    listed: list[Any] = []

    def keep(chunk: Any) -> bool | None:
        listed.append(chunk)
        return True if len(listed) == limit else None  # anything but None ends the iteration

    if hasattr(dataset_id, "chunk_iter"):
        dataset_id.chunk_iter(keep)
    else:  # HDF5 before 1.12.3: each call walks the table from its start
        listed = [dataset_id.get_chunk_info(i) for i in range(min(limit, dataset_id.get_num_chunks()))]
    return listed


def _merge(offsets: NDArray[np.int64], rows: int, chunk_rows: int, stride: int) -> NDArray[np.int64]:
    """Runs [n, 3] of the chunks at `offsets` [chunks]; the last chunk is clipped to `rows` in all."""
    gaps = offsets[1:] - offsets[:-1]
    if chunk_rows == 1 and len(gaps) > 1 and gaps[0] >= stride and (gaps == gaps[0]).all():  # as most small files
        return np.array([[offsets[0], rows, gaps[0]]])
    joined = gaps == chunk_rows * stride  # [chunks - 1], with the next chunk
    if chunk_rows == 1:
        # rows at any even distance are one run; where two distances meet, the row between belongs to the first
        alike = gaps[1:] == gaps[:-1]
        even = alike & (gaps[1:] > stride)
        joined[1:] |= even
        joined[:-1] |= even
        joined[1:] &= alike | ~joined[:-1]
    starts = np.flatnonzero(np.concatenate(([True], ~joined)))
    runs = np.empty((len(starts), 3), np.int64)
    runs[:, 0] = offsets[starts]
    chunks = np.concatenate((starts[1:], [len(offsets)])) - starts
    runs[:, 1] = chunks * chunk_rows
    runs[:, 2] = np.where(chunks > 1, np.concatenate((gaps, [0]))[starts] // chunk_rows, stride)
    runs[-1, 1] -= len(offsets) * chunk_rows - rows
    return runs


def _never_written(path: Path, dataset: Any, row: int) -> ArchiveError:
    return ArchiveError(
        f"{path}: row {row} of {dataset.name!r} was never written, or the file is corrupt: extract the slide again"
    )


def _truncated(path: Path, dataset: Any, end: int, size: int) -> ArchiveError:
    return ArchiveError(
        f"{path}: truncated or corrupt: {dataset.name!r} needs {end} bytes of file, {size} are there: extract it again"
    )
