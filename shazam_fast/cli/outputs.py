"""Single files that a command writes beside what it prints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ShazamError
from ..runtime.files import write_durably
from ..runtime.locks import make_directory, require_writable


def require_file_place(path: Path, option: str) -> None:
    """Check, before anything is computed, that a file can be written there.

    Args:
        path: the file; its directory need not exist yet.
        option: the option that names it, for messages.

    Raises ShazamError when `path` is a directory, or its directory cannot be made or written to.
    """
    if path.is_dir():
        raise ShazamError(f"{option} {path}: a file expected, there is a directory; give the name of a file in it")
    require_writable(path.absolute().parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON; the directory is made where it is missing."""
    make_directory(path.absolute().parent)
    write_durably(path, json.dumps(values, indent=1, allow_nan=False).encode())
