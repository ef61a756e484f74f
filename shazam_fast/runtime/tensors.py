"""Named tensors in safetensors files, without pickle."""

import os
import stat
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import ArchiveError
from .files import write_durably


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file.

    Raises ArchiveError; kind "missing", "permission", "system" (a directory, a pipe, a device) or "corrupt".
    """
    require_file(path)
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ArchiveError(f"{path}: truncated or corrupt: {error}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, complete or not at all."""
    write_durably(path, save({name: t.contiguous().cpu() for name, t in tensors.items()}, metadata))


def require_file(path: Path) -> None:
    """Raise ArchiveError unless `path` is a regular file that may be read; a pipe would block for ever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ArchiveError(f"{path}: file not found", "missing") from None
    except PermissionError:
        raise ArchiveError(f"{path}: no permission to read it", "permission") from None
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{path}: cannot be read: {error}", "system") from None
    if not stat.S_ISREG(mode):
        raise ArchiveError(f"{path}: not a regular file", "system")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise ArchiveError(f"{path}: no permission to read it", "permission")
