"""The files of indexes in the user's cache folder, which nobody else may write to.

An index says where in other files bytes lie, so a folder or file that another user owns or can write to is not used.
"""

import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import xxhash

from .table import DamagedError

logger = logging.getLogger("shazam_fast")

VARIABLE = "SHAZAM_CACHE"  # environment variable: another cache folder, or OFF
OFF = "off"
MAGIC = b"shzindex"
LARGEST = 4 << 30  # bytes of an index; that of 100,000 slides with 200 runs each takes 0.3 GB
ABANDONED_SECONDS = 3600  # age of an unfinished file that a killed process left
UNFINISHED = ".unfinished"


def index_folder() -> Path | None:
    """The folder of all indexes, which need not exist; None where they are switched off (SHAZAM_CACHE=off)."""
    given = os.environ.get(VARIABLE)
    if given == OFF:
        return None
    if given:
        return Path(os.path.abspath(given)) / "index"
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("shazam_fast", appauthor=False)) / "index"


def file_of(folder: Path, root: bytes) -> Path:
    """The index of the directory `root`, an absolute path."""
    return folder / f"{xxhash.xxh3_128_hexdigest(root)}.index"


def read_body(file: Path) -> bytes:
    """The body of an index file. Raises DamagedError for one that is damaged or not only this user's, OSError."""
    if why := _reason_to_refuse(file.parent):
        raise DamagedError(why)
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise DamagedError("not a regular file that only its owner can write")
        if status.st_size > LARGEST:
            raise DamagedError(f"{status.st_size} bytes")
        content = stream.read(status.st_size)
    head = len(MAGIC) + 16
    body = content[head:]
    if content[: len(MAGIC)] != MAGIC or content[len(MAGIC) : head] != xxhash.xxh3_128_digest(body):
        raise DamagedError("its checksum differs")
    return body


def write_body(file: Path, body: bytes) -> None:
    """Write an index file atomically: others see the old one or the new one. The first failure is a warning."""
    folder = file.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if why := _reason_to_refuse(folder):
            return _say_once(folder, why)
        _remove_abandoned(folder)
        descriptor, unfinished = tempfile.mkstemp(UNFINISHED, file.name, folder)  # for its owner alone
        try:
            with open(descriptor, "wb") as stream:
                stream.writelines([MAGIC, xxhash.xxh3_128_digest(body), body])
            os.rename(unfinished, file)  # not synced: after a crash the checksum tells a damaged file
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished)
            raise
    except OSError as error:
        _say_once(folder, error.strerror or str(error))


def _reason_to_refuse(folder: Path) -> str:
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        return "no directory"
    if status.st_uid != os.geteuid():
        return "owned by another user"
    if status.st_mode & 0o077:
        return f"open to other users (mode {stat.S_IMODE(status.st_mode):o}, 700 expected)"
    return ""


def _remove_abandoned(folder: Path) -> None:
    for leftover in folder.glob(f"*{UNFINISHED}"):
        with suppress(OSError):
            if abs(os.stat(folder).st_mtime - leftover.stat().st_mtime) > ABANDONED_SECONDS:
                leftover.unlink()


_said: set[Path] = set()


def _say_once(folder: Path, why: str) -> None:
    if folder not in _said:
        _said.add(folder)
        logger.warning(
            "%s: cannot be used to remember what files hold (%s), so all are read at every opening; set %s to another "
            "folder, or to %s", folder, why, VARIABLE, OFF,
        )  # fmt: skip
