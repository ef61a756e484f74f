"""Named tensors in safetensors files, without pickle."""

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import ArchiveError
from .files import open_regular, write_durably


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors (name -> tensor) and the metadata (name -> text) of a safetensors file.

    Raises ArchiveError as `open_regular` does, and of kind "corrupt" for a truncated or damaged file.
    """
    open_regular(path).close()  # a pipe would block, a directory has other errors
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ArchiveError(f"{path}: truncated or corrupt: {error}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, complete or not at all."""
    write_durably(path, save({name: t.contiguous().cpu() for name, t in tensors.items()}, metadata))
