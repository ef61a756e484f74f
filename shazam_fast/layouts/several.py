"""Files that hold several teachers, or the three levels of one: a source for each, and the choice among them."""

from functools import partial
from pathlib import Path

from msgspec.structs import replace

from ..errors import ArchiveError, MismatchError
from ..formats import safetensors as safetensors_file
from ..formats import torch_zip
from ..formats.pieces import Piece, Source
from ..runtime.levels import LEVELS, name_level, split_level
from .discovery import kind_of


def select_teacher(path: Path, sources: list[Source], teacher: str | None) -> list[Source]:
    """The sources under a name from the user, which chooses a teacher, or renames the only one with all its levels.

    Args:
        path: what messages name.
        sources: all that were found.
        teacher: the name; None for all teachers under their own names.

    Raises MismatchError when there are several teachers, none of that name.
    """
    found = list(dict.fromkeys(source.teacher for source in sources))
    if teacher is None:
        return sources
    if {split_level(name) for name in found} == {(split_level(found[0])[0], level) for level in LEVELS}:
        return _select_levels(sources, teacher)
    if teacher in found:
        return [source for source in sources if source.teacher == teacher]
    if len(found) == 1:
        return [replace(source, teacher=teacher) for source in sources]
    raise MismatchError(f"{path}: teacher {teacher!r} not found; it holds {', '.join(found)}")


def _select_levels(sources: list[Source], teacher: str) -> list[Source]:
    """Of a teacher's three levels all, for the name "uni"; one alone for "uni:low", "uni:mid" or "uni:high"."""
    name, wanted = split_level(teacher)
    return [
        replace(source, teacher=name_level(name, level))
        for source in sources
        for level in [split_level(source.teacher)[1]]
        if name == teacher or level == wanted
    ]


def split_teachers(sources: list[Source]) -> list[Source]:
    """The sources of files of which each holds several teachers, or three levels of one; all others as they are.

    Args:
        sources: of one teacher, at least one; the first file tells what all hold.
    """
    kind = kind_of(sources[0].file.name)
    if kind == ".safetensors":
        return _split_matrices(sources)
    if kind != ".pt":
        return sources
    try:
        levels = torch_zip.list_levels(sources[0].file)
    except ArchiveError:  # a file that reading the piece will refuse with better words
        return sources
    return [
        replace(
            source,
            teacher=name_level(source.teacher, level),
            read=partial(_read_level, source.file, level),
            load=None,
        )
        for level in levels
        for source in sources
    ] or sources


def _split_matrices(sources: list[Source]) -> list[Source]:
    """Files with several matrices of other names than features hold as many teachers."""
    try:
        names = safetensors_file.list_teachers(sources[0].file)
    except ArchiveError:
        return sources
    return [
        replace(source, teacher=name, read=partial(safetensors_file.read_piece, source.file, name), load=None)
        for name in names
        for source in sources
    ] or sources


def _read_level(file: Path, level: str) -> Piece:
    return torch_zip.read_levels(file)[level]
