"""Atomic, durable file writes; opening of regular files; checksums."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from ..errors import ArchiveError, ShazamError

UNFINISHED = ".unfinished"  # suffix of files that are still being written


def unfinished_path(path: Path) -> Path:
    """Where this process writes a file until it is complete. Other processes take other names."""
    return path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}{UNFINISHED}")


def write_durably(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash at any moment it is complete, or as it was before (sync, rename, sync).

    Raises OSError, for example when the disk is full; the temporary file is removed then.
    """
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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of writing (a full disk) into a ShazamError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ShazamError(
            f"{path}: could not be written: {error}. Finished parts are kept; run the same command again to continue"
        ) from error


def file_checksum(path: Path) -> str:
    """xxh3 (64 bit, hexadecimal) of a whole file, as `xxhsum -H3` prints it."""
    digest = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as file:
        while block := file.read(16 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_regular(path: Path) -> io.FileIO:
    """Open a regular file (or a link to one) for unbuffered reading.

    Raises ArchiveError; kind "missing", "permission" or "system" (a directory, a pipe, a device, or what the operating
    system refuses).

    >>> import tempfile
    >>> open_regular(Path(tempfile.mkdtemp()))
    Traceback (most recent call last):
    ...
    shazam_fast.errors.ArchiveError: ... a regular file expected, found a directory, pipe or device
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe does not block
    except FileNotFoundError:
        raise ArchiveError(f"{path}: file not found", "missing") from None
    except PermissionError:
        raise ArchiveError(f"{path}: no permission to read it", "permission") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise ArchiveError(f"{path}: cannot be opened: {getattr(error, 'strerror', error)}", "system") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArchiveError(f"{path}: a regular file expected, found a directory, pipe or device", "system")
    return io.FileIO(descriptor)


def read_whole(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises ArchiveError as `open_regular` does, and of kind "corrupt" when the file is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ArchiveError(f"{path}: {size} bytes, at most {limit} expected", "corrupt")
        try:
            return io.BufferedReader(file).read(size)
        except OSError as error:
            raise ArchiveError(f"{path}: cannot be read: {error}", "system") from None
