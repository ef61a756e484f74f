"""Directories with one file of features per slide, as most tools write them."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from ..errors import ArchiveError, MismatchError
from . import hdf5, npy, torch_zip
from . import safetensors as safetensors_file
from .hdf5 import find_atlaspatch, find_hdf5_directory, find_trident
from .pieces import Piece, Source

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


FILES: Mapping[str, Callable[[Path], Piece]] = {**READERS, ".h5": hdf5.read_piece}


def find_sources(path: Path, teacher: str | None = None) -> list[Source]:
    """The feature files at a path; `teacher` names what they hold unless the layout itself does.

    Raises ArchiveError when nothing there looks like features.
    """
    if path.is_file():
        return _split_levels(_find_file(path, teacher or path.stem))
    if not path.is_dir():
        raise ArchiveError(f"{path}: no such file or directory")
    find = _layout_naming_teachers(path)
    return select_teacher(find(path), teacher) if find else _find_one_teacher(path, teacher or path.name)


def _layout_naming_teachers(path: Path) -> Callable[[Path], list[Source]] | None:
    """TRIDENT (a job, or the directory above its only one) or AtlasPatch, if the directory is one of theirs."""
    names = {entry.name for entry in path.iterdir()}
    jobs = (path / name for name in names if name.endswith("_overlap"))
    if any(name.startswith("features_") for name in (path.name, *names)):
        return find_trident
    if any(next(job.glob("features_*"), None) for job in jobs):
        return find_trident
    return find_atlaspatch if "patches" in (path.name, *names) else None


def _find_one_teacher(path: Path, teacher: str) -> list[Source]:
    """A directory with one file a slide, in the folders that CLAM and slide2vec make or as it is."""
    if (path / "h5_files").is_dir():  # CLAM's pt_files beside it hold the same features without coordinates
        return find_hdf5_directory(path, teacher)
    for folder in (path / "pt_files", path / "tile_embeddings"):
        path = folder if folder.is_dir() else path
    suffixes = {suffix for _, _, files in os.walk(path) for file in files if (suffix := Path(file).suffix) in FILES}
    if len(suffixes) != 1:
        found = f"files of several kinds ({', '.join(sorted(suffixes))})" if suffixes else "none of its files"
        raise ArchiveError(
            f"{path}: {found} could be features; a native archive or files in one of {', '.join(FILES)} expected"
        )
    suffix = suffixes.pop()
    if suffix == ".h5":
        return find_hdf5_directory(path, teacher)
    return _split_levels(find_directory(path, teacher, suffix))


def _find_file(path: Path, teacher: str) -> list[Source]:
    if path.suffix not in FILES:
        raise ArchiveError(f"{path}: features are read from {', '.join(FILES)}, not from {path.suffix or 'this'}")
    return [Source(teacher, "", path, partial(FILES[path.suffix], path))]


def _split_levels(sources: list[Source]) -> list[Source]:
    """Files of Shazam's encoders hold three levels of one teacher: three teachers then, all others as they are."""
    if sources[0].file.suffix not in (".pt", ".pth"):
        return sources
    try:
        levels = list(torch_zip.read_levels(sources[0].file))
    except ArchiveError:  # another content, or a file that reading the piece will refuse with better words
        return sources
    return [
        Source(f"{source.teacher}-{level}", source.slide, source.file, partial(_read_level, source.file, level))
        for level in levels
        for source in sources
    ]


def _read_level(file: Path, level: str) -> Piece:
    return torch_zip.read_levels(file)[level]


def select_teacher(sources: list[Source], teacher: str | None) -> list[Source]:
    """Sources of a layout that names its teachers: a name from the user chooses one, or renames the only one."""
    found = {source.teacher for source in sources}
    if teacher is None or teacher in found:
        return [source for source in sources if teacher in (None, source.teacher)]
    if len(found) > 1:
        raise MismatchError(f"{sources[0].file.parent.parent}: teacher {teacher!r} not found among {sorted(found)}")
    return [Source(teacher, source.slide, source.file, source.read) for source in sources]
