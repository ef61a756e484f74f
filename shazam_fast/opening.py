"""Opening features where they lie: which layout a path has, and the archive that comes of it."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from .alignment import join
from .annotations import Given, annotate
from .archive import FeatureArchive
from .errors import ArchiveError, MismatchError
from .layouts import Piece, Source, hdf5, torch_zip
from .layouts.directories import READERS, find_directory
from .layouts.hdf5 import find_atlaspatch, find_hdf5_directory, find_trident
from .layouts.native import is_native, read_contents
from .splits import GroupedSplit

FILES: Mapping[str, Callable[[Path], Piece]] = {**READERS, ".h5": hdf5.read_piece}
ArchiveLike = str | Path | Mapping[str, str | Path] | FeatureArchive


def open_archive(
    path: ArchiveLike,
    *,
    teachers: Sequence[str] | None = None,
    slides: Sequence[str] | None = None,
    labels: Given = None,
    splits: Given | GroupedSplit = None,
    groups: Given = None,
    classes: Sequence[str] | None = None,
) -> FeatureArchive:
    """Open features in place, whichever tool wrote them; headers are read, features are not.

    Args:
        path: a native archive; a TRIDENT job, CLAM, STAMP, AtlasPatch or slide2vec directory; a .h5, .pt, .npy or
            .safetensors file, or a directory with one such file a slide; or {teacher: path}, one path a teacher.
            A FeatureArchive is passed through.
        teachers: which teachers to take, in this order; all by default.
        slides: which slides to take; all by default.
        labels: a CSV (slide, or slide with x and y, and label), {slide: label}, one label a patch, or "folder" for
            the name of the folder that a slide's file is in.
        splits: a CSV (slide and split, or CLAM's splits_*.csv), {slide: split}, one split a patch, or a `GroupedSplit`.
        groups: patients, which must stay in one split: a CSV, {slide: patient} or one name a patch; taken from
            the labels' CSV where it has such a column.
        classes: class names in label order; sorted names by default.

    Raises:
        ArchiveError: a file is missing, truncated, corrupt, or cannot be read in place (says what to do).
        MismatchError: teachers whose slides or rows differ (names both files, the first difference and the counts),
            labels that fit no slide, a split that cuts a group.
    """
    given = {"labels": labels, "splits": splits, "groups": groups, "classes": classes}
    if isinstance(path, FeatureArchive):
        if teachers is not None or slides is not None or any(value is not None for value in given.values()):
            raise MismatchError("an archive that is open already cannot be given labels, splits or a selection")
        return path
    if not isinstance(path, Mapping) and is_native(Path(path)):
        contents = read_contents(Path(path))
        if teachers is not None or slides is not None:
            raise MismatchError(f"{path}: a native archive is opened whole; teachers= and slides= select among files")
    else:
        name, sources = _find(path)
        contents = join(name, choose_teachers(name, sources, teachers), slides)
    return FeatureArchive(annotate(contents, labels, splits, groups, classes))


def _find(path: str | Path | Mapping[str, str | Path]) -> tuple[Path, list[Source]]:
    if isinstance(path, Mapping):
        if not path:
            raise ArchiveError("{teacher: path} names no teacher")
        sources = [source for teacher, place in path.items() for source in find_sources(Path(place), teacher)]
        return Path(next(iter(path.values()))), sources
    return Path(path), find_sources(Path(path))


def choose_teachers(path: Path, sources: Sequence[Source], teachers: Sequence[str] | None) -> Sequence[Source]:
    """The sources of these teachers, in their order; all where None. Raises MismatchError when there is none of one."""
    if teachers is None:
        return sources
    found = {source.teacher for source in sources}
    if absent := [teacher for teacher in teachers if teacher not in found]:
        raise MismatchError(f"{path}: no teacher {absent[0]!r}; found {', '.join(sorted(found))}")
    return sorted((s for s in sources if s.teacher in teachers), key=lambda s: teachers.index(s.teacher))


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
