"""Files that are there complete or not at all, and their checksums."""

import os
import stat
from pathlib import Path

import xxhash

from ..errors import ArchiveError

UNFINISHED = ".unfinished"  # suffix of files that are still being written


def unfinished_path(path: Path) -> Path:
    """Where this process writes a file until it is complete. Other processes take other names."""
    return path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}{UNFINISHED}")


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that it is there complete, or not at all, whatever happens: sync, rename, sync."""
    unfinished = unfinished_path(path)
    try:
        write_synced(unfinished, content)
        rename_durably(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_synced(path: Path, content: bytes | memoryview) -> None:
    """Write a file and sync it to the disk; an existing one is replaced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_durably(old: Path, new: Path) -> None:
    """Rename a file within its directory and sync the directory."""
    old.rename(new)
    directory = os.open(new.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def file_checksum(path: Path) -> str:
    """xxh3 (64 bit, hexadecimal) of a whole file, as `xxhsum -H3` prints it."""
    digest = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as file:
        while block := file.read(16 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_whole(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises ArchiveError; kind "missing", "permission", "system" (no regular file: a directory, a pipe, a device), or
    "corrupt" (too large).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe does not block
    except FileNotFoundError:
        raise ArchiveError(f"{path}: file not found", "missing") from None
    except PermissionError:
        raise ArchiveError(f"{path}: no permission to read it", "permission") from None
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{path}: cannot be read: {error}", "system") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveError(f"{path}: not a regular file", "system")
        if status.st_size > limit:
            raise ArchiveError(f"{path}: {status.st_size} bytes, at most {limit} expected", "corrupt")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error}", "system") from None
    finally:
        os.close(descriptor)
