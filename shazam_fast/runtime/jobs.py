"""Writing an archive that may be interrupted: the same job, started again, continues after its finished parts.

Beside the parts lies a journal: the archive's manifest as far as it goes, with the job that it belongs to. It is
written durably after every part and becomes the manifest by one rename, so at any moment there is either a journal that
says which parts are finished, or a complete archive.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ArchiveError, MismatchError, ShazamError


def require_same_job(path: Path, found: Mapping[str, Any], job: Mapping[str, object]) -> None:
    """Raise MismatchError naming what differs between the job that `found` is of and this one."""
    if "job" not in found:
        raise ShazamError(f"{path}: there is an archive already; delete it or choose another path")
    if different := [key for key, value in job.items() if found["job"].get(key) != value]:
        raise MismatchError(
            f"{path}: holds the work of another call: {', '.join(different)} differ. "
            "Repeat that call, or delete the directory, or choose another"
        )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ArchiveError when there is none."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{file}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ArchiveError(f"{file}: corrupt: a JSON object expected")
    return content


def require_part(file: Path, size: int, remedy: str) -> None:
    """Raise ArchiveError, with the remedy, unless a finished part is there with the bytes it was written with."""
    if not file.is_file() or file.stat().st_size != size:
        raise ArchiveError(f"{file}: a finished part is missing or has changed; {remedy}")


def lock_directory(path: Path) -> int:
    """A descriptor that keeps other processes from writing to the directory, until it is closed or we are killed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ShazamError(f"{path}: another process is writing there") from None
    except OSError:
        pass  # a file system without locks
    return descriptor
