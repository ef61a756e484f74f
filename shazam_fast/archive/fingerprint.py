"""What makes two archives the same for a job: digests of content, not of the path as it was typed."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from ..errors import ArchiveError
from ..formats.geometry import describe_geometry
from ..formats.native import MANIFEST, StoredColumn
from ..formats.pieces import Contents

STORED = b"as stored"  # of columns that lie in the parts, whose checksums stand for them


def fingerprint(contents: Contents) -> dict[str, str]:
    """Digests of all that decides what is computed from an archive, by what they are of.

    "features" changes with the teachers, with the selection and order of patches, and when a file is written anew, even
    in place. Files are told apart by size, time and inode; parts of a native archive by their checksums while none is
    newer than the manifest. The same files under another path, or in another working directory, are the same.

    Raises ArchiveError when a file is gone.
    """
    names = {"labels": contents.classes, "groups": contents.groups, "slides": contents.slides}
    columns = {"labels": "label", "splits": "split", "groups": "group", "slides": "slide", "positions": "coords"}
    geometry = {"positions": describe_geometry(contents.geometry)}
    return {
        "features": _features(contents),
        **{what: _column(contents, column, [names.get(what), geometry.get(what)]) for what, column in columns.items()},
    }


def _features(contents: Contents) -> str:
    digest = xxhash.xxh3_128()
    digest.update(msgspec.json.encode(list(contents.teachers.items())))
    for block in contents.blocks:
        digest.update(f"{block.columns} {block.dtype} {len(block.files)}\n".encode())
        digest.update(np.ascontiguousarray(block.table).data)
        for file in block.files:
            digest.update(_file(file, contents.checksums).encode())
    return digest.hexdigest()


def _file(file: str, checksums: Mapping[str, str]) -> str:
    """What tells a file, or a directory such as a zarr store, from another of the same name."""
    if os.path.isdir(file):
        return "".join(_file(str(inner), {}) for inner in sorted(Path(file).rglob("*")) if inner.is_file())
    status = _stat(file)
    if file in checksums and status.st_mtime_ns <= _manifest_time(os.path.dirname(file)):
        return f"{status.st_size} {checksums[file]}\n"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}\n"


def _column(contents: Contents, column: str, names: Sequence[object]) -> str:
    stored = contents.columns.get(column)
    if stored is None:
        return "none"
    digest = xxhash.xxh3_128(msgspec.json.encode(names))
    if isinstance(stored, StoredColumn):
        digest.update(STORED)
    else:
        digest.update(np.ascontiguousarray(stored()).data)
    return digest.hexdigest()


def _manifest_time(directory: str) -> int:
    return _stat(os.path.join(directory, MANIFEST)).st_mtime_ns


def _stat(file: str) -> os.stat_result:
    try:
        return os.stat(file)
    except OSError as error:
        raise ArchiveError(f"{file}: cannot be read: {error}", "missing") from None
