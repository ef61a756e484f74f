"""One writer at a time in a directory."""

import fcntl
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import ShazamError

logger = logging.getLogger("shazam_fast")

LOCK = ".lock"


class DirectoryLock:
    """Keeps other processes from writing to a directory until it is released or this process ends.

    The lock is held on the file `.lock` in the directory, which is removed on release; one that a killed process left
    locks nothing. Where the file system has no locks, a warning says so once.

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
        self._descriptor = self._acquire()

    def release(self) -> None:
        """Let others write; nothing happens the second time."""
        if self._descriptor is None:
            return
        (self._path / LOCK).unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

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
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
                return descriptor
            os.close(descriptor)  # the file was removed by the process that held the lock until now

    def _is_current(self, descriptor: int) -> bool:
        try:
            status = os.stat(self._path / LOCK)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino)
