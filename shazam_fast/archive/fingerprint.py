"""Digests of an archive's content, by which a resumed job recognises its source whatever its path."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from ..errors import ArchiveError
from ..formats.geometry import describe_geometry
from ..formats.native import MANIFEST, StoredColumn
from ..formats.pieces import Contents, stamp_file
from ..runtime.files import file_checksum

STORED = b"as stored"  # digest input for columns stored in the parts, whose checksums cover them


def fingerprint(contents: Contents) -> dict[str, str]:
    """Digests of all that decides what is computed from an archive, by what they are of.

    "features" changes with the teachers, with the selection and order of patches, and when a file is rewritten, even in
    place. Files are recognised by size, time and inode; parts of a native archive by their checksums if none is newer
    than the manifest. The path of a file does not matter.

    Raises ArchiveError when a file is missing.
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
    """Text that changes when a file, or a directory such as a zarr store, is replaced by another of the same name."""
    if os.path.isdir(file):
        return "".join(_file(str(inner), {}) for inner in sorted(Path(file).rglob("*")) if inner.is_file())
    status = file_status(file)
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
    return file_status(os.path.join(directory, MANIFEST)).st_mtime_ns


def file_status(file: str) -> os.stat_result:
    """What the system knows of a file. Raises ArchiveError when it is gone."""
    try:
        return os.stat(file)
    except OSError as error:
        raise ArchiveError(f"{file}: cannot be read: {error}", "missing") from None


def require_unchanged(contents: Contents) -> None:
    """Raise ArchiveError when a native archive was written anew since it was opened.

    Its parts are opened when they are first read, and would give the new features under the old labels.
    """
    stamp = contents.stamp
    if stamp is None:
        return
    try:
        now = stamp_file(stamp.path)
    except OSError:  # gone or moved: parts that are open stay readable, others are missed by name
        return
    if now != stamp:
        raise ArchiveError(f"{contents.path}: written anew after it was opened; open it again", "changed")


def compare_checksums(contents: Contents) -> Iterator[int]:
    """Compare the files of a native archive with their checksums, one after another; yields the bytes of each.

    Raises ArchiveError naming the file that differs.
    """
    for file, expected in contents.checksums.items():
        found = file_checksum(Path(file))
        if found != expected:
            raise ArchiveError(f"{file}: checksum mismatch: xxh3 {expected} expected, {found} found", "checksum")
        yield file_status(file).st_size
