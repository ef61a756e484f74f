"""Named tensors in safetensors files, without pickle."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import ArchiveError
from .files import file_checksum, open_regular, write_durably


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


def read_described(path: Path, xxh3: str | None, card: str) -> dict[str, Tensor]:
    """The tensors of a file that a document beside it describes.

    Args:
        path: the file.
        xxh3: the checksum that the document states; None if it states none.
        card: name of the document.

    Raises ArchiveError as `read_tensors` does, and of kind "checksum" when the document does not describe the file.
    """
    tensors, _ = read_tensors(path)
    if file_checksum(path) != xxh3:
        raise ArchiveError(
            f"{path}: checksum mismatch: it does not belong to {card} beside it; copy all files again", "checksum"
        )
    return tensors


def require_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], path: Path, card: str) -> None:
    """Raise ArchiveError unless tensors have the shapes wanted; there may be more of them.

    Args:
        tensors: the tensors of `path`, by name.
        wanted: shapes by name.
        path, card: the file and the name of the document that describes it, for messages.
    """
    for name, shape in wanted.items():
        found = list(tensors[name].shape) if name in tensors else None
        if found != list(shape):
            there = "there is none" if found is None else f"{found} found"
            raise ArchiveError(f"{path}: tensors do not fit {card}: {name!r} {list(shape)} expected, {there}")


def fill_module(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, card: str) -> None:
    """Load tensors into a module. Raises ArchiveError when names or shapes do not fit.

    Args:
        module: has the shape that `card` describes.
        tensors: the tensors of `path`, by name.
        path, card: the file and the name of the document that describes it, for messages.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArchiveError(f"{path}: tensors do not fit {card}: {error}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, complete or not at all."""
    write_durably(path, save({name: t.contiguous().cpu() for name, t in tensors.items()}, metadata))
