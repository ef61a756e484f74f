"""Directories with one file of features per slide, as most tools write them."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..errors import ArchiveError
from . import Piece, Source, npy, safetensors_file, torch_zip

READERS: dict[str, Callable[[Path], Piece]] = {
    ".npy": npy.read_piece,
    ".safetensors": safetensors_file.read_piece,
    ".pt": torch_zip.read_piece,
    ".pth": torch_zip.read_piece,
}
TEMPORARY = (".tmp", ".lock", ".unfinished")  # what tools call a file that is being written


def _walk(path: str, suffix: str) -> Iterator[tuple[str, str]]:
    """(stem, path) of the files below `path`; links to directories are not followed, as they may lead in circles."""
    pending = [path]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif entry.name.endswith(suffix):
                        yield entry.name.removesuffix(suffix), entry.path
        except OSError as error:
            raise ArchiveError(f"{error.filename}: cannot be listed: {error.strerror}") from None


def find_directory(path: Path, teacher: str, suffix: str) -> list[Source]:
    """One source per file that ends in `suffix`, anywhere below `path`, by slide; the file's stem is the slide.

    Hidden and temporary names are left out. Opens no file.
    """
    reader = READERS[suffix]
    files: dict[str, str] = {}
    for slide, file in _walk(os.fspath(path), suffix):
        if slide.endswith(TEMPORARY):
            continue
        if slide in files:
            raise ArchiveError(
                f"{path}: two files for slide {slide!r}: {files[slide]} and {file}; leave one, or open one of their "
                "directories"
            )
        files[slide] = file
    if not files:
        raise ArchiveError(f"{path}: no file ends in {suffix!r} there or below it")
    ordered = [(slide, Path(files[slide])) for slide in sorted(files)]
    return [Source(teacher, slide, file, partial(reader, file)) for slide, file in ordered]
