"""One writer at a time in a directory."""

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ...errors import ShazamError

logger = logging.getLogger("shazam_fast")

LOCK = ".lock"


class DirectoryLock:
    """A lock on a directory: only one process writes there, until the lock is released or the process ends.

    Creates the directory if it is missing, and removes it on release if it is still empty. The lock is held on the file
    `.lock` in it, which is removed on release; such a file left by a killed process does not lock. On a file system
    without locks a warning is logged.

    Args:
        path: the directory.

    Raises ShazamError when another process (named) holds the lock, or the directory cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as out, DirectoryLock(Path(out)):
    ...     DirectoryLock(Path(out))
    Traceback (most recent call last):
    ...
    shazam_fast.errors.ShazamError: ... is writing there; wait until it is done, or choose another --out
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._created = make_directory(path)
        self._descriptor = self._acquire()

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._descriptor is None:
            return
        (self._path / LOCK).unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None
        if self._created:
            with suppress(OSError):  # not empty
                self._path.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _acquire(self) -> int | None:
        file = self._path / LOCK
        while True:
            try:
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            except OSError as error:
                raise ShazamError(f"{self._path}: cannot be written to: {error}; choose another --out") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
                os.close(descriptor)
                raise ShazamError(
                    f"{self._path}: {holder} is writing there; wait until it is done, or choose another --out"
                ) from None
            except OSError as error:
                logger.warning("%s: no lock: %s; only one process may write there at a time", self._path, error)
            if self._is_current(descriptor):
                holder = f"process {os.getpid()} on {os.uname().nodename}"
                with suppress(OSError):  # a full disk; the name is for messages only
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, holder.encode(), 0)
                return descriptor
            os.close(descriptor)  # the file was removed by the process that held the lock until now

    def _is_current(self, descriptor: int) -> bool:
        try:
            status = os.stat(self._path / LOCK)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino)


def require_writable(path: Path) -> None:
    """Check, without creating anything, that a directory exists or can be created, and can be written to.

    Raises ShazamError when `path` is a file, lies below one, or may not be written.
    """
    try:
        place = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    except (OSError, ValueError) as error:
        raise ShazamError(f"{path}: cannot be written to: {error}; choose another --out") from None
    if not place.is_dir():
        what = "a directory expected, there is a file" if place == path.absolute() else f"{place} is a file"
        raise ShazamError(f"{path}: {what}; choose another --out")
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        raise ShazamError(f"{path}: no permission to write in {place}; choose another --out")


def make_directory(path: Path) -> bool:
    """Create a directory if it is missing; True if it is new. Raises ShazamError when it cannot be written to."""
    require_writable(path)
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShazamError(f"{path}: the directory cannot be created: {error}; choose another --out") from None
    return new
