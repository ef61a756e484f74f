"""Join every teacher's files to one archive, slide after slide."""

import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ..annotation.columns import encode_labels
from ..errors import ArchiveError, MismatchError, NotInPlaceError
from ..formats.geometry import NOT_KNOWN, Geometry, merge_geometry
from ..formats.index.trees import Trees
from ..formats.pieces import UNKNOWN, Contents, CoordsColumn, FileState, InMemory, Piece, Source, StoredCoords
from ..runtime.progress import Progress
from ..runtime.summaries import counted
from ..tables.slide_names import choose_slides, match_slides
from .alignment import FIELDS, NO_COLUMNS, NOTHING, Joined, join_slide
from .matrices import Loads, Matrix

logger = logging.getLogger("shazam_fast")

Key = tuple[str, str]  # slide and part
PROGRESS_STEP = 64  # slides between two steps of the progress bar, which take as long as joining one


# Over 40 lines: every option is documented here.
def join(
    path: Path,
    sources: Sequence[Source],
    slides: Sequence[str] | None = None,
    *,
    classes: Sequence[str] = (),
    loads: Loads | None = None,
    skip: bool = False,
    trees: Trees | None = None,
) -> Contents:
    """One archive from every teacher's files.

    Rows of a slide are joined by coordinates where files have them, in whatever order, and by row number where
    one has none and the counts match.

    Args:
        path: what was opened, for messages.
        sources: the files of all teachers.
        slides: names of the slides to open, in this order; all of them, sorted, by default.
        classes: names of the labels that the sources hold; numbers by default.
        loads: gets an opener for each file that cannot be memory-mapped; None if such files are an error.
        skip: whether a slide that cannot be read or joined is left out, and recorded, instead of an error.
        trees: the indexes of the directories that hold the sources; None to read every file.

    Raises:
        MismatchError: two teachers do not hold the same patches, or patches of another size, unit or level; names both
            files, the first row that differs and the counts.
        ArchiveError: a file cannot be read, or not in place.
    """
    by_teacher = _by_teacher(sources)
    left_out: dict[str, str] = {}
    keys = _common_keys(path, by_teacher, slides, left_out if skip else None)
    keys = _text_keys(keys, next(iter(by_teacher.values())), left_out if skip else None)
    n_slides = len({slide for slide, _ in keys} | left_out.keys())
    chosen = [files[key] for files in by_teacher.values() for key in keys]
    known = chosen if trees is None else trees.read(chosen, f"opening {path.name}")
    read = iter([_stamped(one) if one is before else one for before, one in zip(chosen, known, strict=True)])
    by_teacher = {teacher: dict(zip(keys, read, strict=False)) for teacher in by_teacher}
    matrices = {teacher: Matrix(teacher, loads) for teacher in by_teacher}
    joined = _join_slides(path, by_teacher, keys, matrices, loads, left_out if skip else None)
    for key, found in joined.items():
        for teacher, matrix in matrices.items():
            matrix.append(by_teacher[teacher][key], found.pieces[teacher])
    _report_left_out(path, left_out, n_slides)
    if sum(found.n_rows for found in joined.values()) == 0:
        why = f": {next(iter(left_out.values()))}" if left_out else ""
        raise MismatchError(f"{path}: no patches: empty or left out: {counted(len(keys), 'slide')}{why}")
    return _assemble(path, matrices, joined, classes, left_out)


def _stamped(source: Source) -> Source:
    """The source, whose piece will tell when its file was last written, as those of an index do."""
    return replace(source, read=partial(_read_stamped, source))


def _read_stamped(source: Source) -> Piece:
    modified = 0
    with suppress(OSError):  # reading it tells why
        modified = FileState.of(source.path).modified
    return replace(source.read(), modified=modified)


def _join_slides(
    path: Path,
    by_teacher: Mapping[str, Mapping[Key, Source]],
    keys: Sequence[Key],
    matrices: Mapping[str, Matrix],
    loads: Loads | None,
    left_out: MutableMapping[str, str] | None,
) -> dict[Key, Joined]:
    """The teachers' files of every slide; slides that cannot be joined go to `left_out` if given, with all parts."""
    joined: dict[Key, Joined] = {}
    with Progress(f"opening {path.name}", len(keys), "slides") as progress:
        for number, key in enumerate(keys):
            if number % PROGRESS_STEP == 0:
                progress.advance(PROGRESS_STEP)
            chosen = {teacher: files[key] for teacher, files in by_teacher.items()}
            try:
                found = join_slide(chosen, loads)
                for teacher, matrix in matrices.items():
                    matrix.check(chosen[teacher].path, found.pieces[teacher])
            except NotInPlaceError:
                raise
            except (ArchiveError, MismatchError) as error:
                if left_out is None:
                    raise
                left_out[key[0]] = _readable(str(error))
                continue
            joined[key] = found
    return {key: found for key, found in joined.items() if key[0] not in left_out} if left_out else joined


def _by_teacher(sources: Sequence[Source]) -> dict[str, dict[Key, Source]]:
    by_teacher: dict[str, dict[Key, Source]] = {}
    for source in sources:
        files = by_teacher.setdefault(source.teacher, {})
        key = source.slide, source.part
        if key in files:
            raise MismatchError(
                f"{files[key].file} and {source.file} are two files of slide {source.slide!r} for teacher "
                f"{source.teacher!r}; keep one, or open their directories as {{teacher: path}}"
            )
        files[key] = source
    first, *others = by_teacher
    for other in others:  # names of one slide may differ: case, case.ome, siteA/case
        by_teacher[other] = _rename_slides(by_teacher[other], other, by_teacher[first], first)
    return by_teacher


def _rename_slides(
    files: Mapping[Key, Source], teacher: str, reference: Mapping[Key, Source], first: str
) -> dict[Key, Source]:
    """A teacher's files under the names that the first teacher gives their slides."""
    names = list(dict.fromkeys(slide for slide, _ in files))
    known = list(dict.fromkeys(slide for slide, _ in reference))
    if names == known or "" in names or "" in known:
        return dict(files)
    found = match_slides(names, known, f"slides of {teacher!r}", f"teacher {first!r}").tolist()
    renamed = {name: known[index] if index >= 0 else name for name, index in zip(names, found, strict=True)}
    return {(renamed[slide], part): source for (slide, part), source in files.items()}


def _common_keys(
    path: Path,
    by_teacher: Mapping[str, Mapping[Key, Source]],
    slides: Sequence[str] | None,
    left_out: MutableMapping[str, str] | None,
) -> list[Key]:
    """The slides and parts to open, which every teacher must have; those that one lacks go to `left_out` if given."""
    keys = sorted(dict.fromkeys(key for files in by_teacher.values() for key in files))
    if slides is not None:
        names = list(dict.fromkeys(slide for slide, _ in keys))
        wanted = [names[index] for index in choose_slides(names, slides, str(path))]
        rank = {slide: place for place, slide in enumerate(wanted)}
        keys = sorted((key for key in keys if key[0] in rank), key=lambda key: (rank[key[0]], key[1]))
    first, *others = by_teacher.values()
    if all(files.keys() == first.keys() for files in others):
        return keys
    lone = [key for key in keys if not all(key in files for files in by_teacher.values())]
    lone = [key for key in lone if not _is_empty([files[key] for files in by_teacher.values() if key in files])]
    for key in lone:
        has = next(teacher for teacher, files in by_teacher.items() if key in files)
        lacks = next(teacher for teacher, files in by_teacher.items() if key not in files)
        why = _readable(
            f"{by_teacher[has][key].file} has no counterpart of {lacks!r}: {has!r} has {len(by_teacher[has])} slides, "
            f"{lacks!r} {len(by_teacher[lacks])}"
        )
        if left_out is None:
            raise MismatchError(
                f"{path}: slides of two teachers do not match: {why} ({len(lone)} such slides). Extract the missing "
                "ones, choose with slides=[...], or leave them out with on_error='skip'"
            )
        left_out[_readable(key[0])] = why
    return [key for key in keys if all(key in files for files in by_teacher.values())]


def _text_keys(
    keys: Sequence[Key], files: Mapping[Key, Source], left_out: MutableMapping[str, str] | None
) -> list[Key]:
    """The slides whose names are text; others, which no table can hold, go to `left_out` if given."""
    kept = []
    for key in keys:
        readable = _readable(key[0])
        if readable == key[0]:
            kept.append(key)
            continue
        why = f"{files[key].path!r}: its slide's name is not UTF-8 text; rename it"
        if left_out is None:
            raise ArchiveError(f"{why}, or leave it out with on_error='skip'", "unsupported")
        left_out[readable] = why
    return kept


def _readable(text: str) -> str:
    """Text in which bytes of a file name that are not UTF-8 are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_empty(sources: Sequence[Source]) -> bool:
    """Whether the files of a slide that a teacher lacks hold no patch, so that nothing is missing."""
    try:
        return all(source.read().n_rows == 0 for source in sources)
    except ArchiveError:
        return False


def _report_left_out(path: Path, left_out: Mapping[str, str], n_slides: int) -> None:
    if left_out:
        slide, why = next(iter(left_out.items()))
        logger.warning("%s: left out %d of %d slides, %r first: %s", path, len(left_out), n_slides, slide, why)


# The archive
def _assemble(
    path: Path,
    matrices: Mapping[str, Matrix],
    joined: Mapping[Key, Joined],
    classes: Sequence[str],
    left_out: Mapping[str, str],
) -> Contents:
    blocks = tuple(matrix.extents() for matrix in matrices.values())
    names = list(dict.fromkeys(slide for slide, _ in joined))
    rows = [found.n_rows for found in joined.values()]
    known: dict[str, NDArray[Any]] = {}
    columns: dict[str, Callable[[], NDArray[np.generic]]] = {}
    if names != [""]:
        codes = {name: code for code, name in enumerate(names)}
        known["slide"] = np.repeat(np.array([codes[slide] for slide, _ in joined], dtype=np.int32), rows)
    if any(found.coords is not None for found in joined.values()):
        parts = [found.coords for found in joined.values()]
        columns["coords"] = CoordsColumn(parts, rows, _concatenate_coords)
        if not any(isinstance(part, StoredCoords) for part in parts):  # read already; errors come while opening
            columns["coords"] = InMemory(columns["coords"]())
    for name in () if all(found.columns is NO_COLUMNS for found in joined.values()) else FIELDS:
        values = [found.columns[name] for found in joined.values()]
        if any(column is not None for column in values):
            known[name] = _concatenate(values, rows, name)
    groups: tuple[str, ...] = ()
    if "group" in known:
        groups, known["group"] = _encode_groups(known["group"])
    if "label" in known and not classes:
        classes, known["label"] = encode_labels(known["label"], None, f"{path}: labels in its files: row {{}}".format)
    return Contents(
        path=path,
        teachers={teacher: block.columns for teacher, block in zip(matrices, blocks, strict=True)},
        blocks=blocks,
        classes=tuple(classes),
        slides=tuple(names) if names != [""] else (),
        groups=groups,
        columns=columns | {name: InMemory(column) for name, column in known.items()},
        geometry=_geometry_of_slides(path, joined),
        left_out=dict(left_out),
    )


def _geometry_of_slides(path: Path, joined: Mapping[Key, Joined]) -> dict[str, Geometry]:
    known: dict[str, Geometry] = {}
    for (slide, part), found in joined.items():
        merged = merge_geometry(known[slide], found.geometry) if slide in known else found.geometry
        if isinstance(merged, str):
            raise MismatchError(f"{path}: slide {slide!r}: the patches of {part!r} differ from those before: {merged}")
        known[slide] = merged
    return {slide: geometry for slide, geometry in known.items() if geometry.unit or geometry != NOT_KNOWN}


def _encode_groups(names: NDArray[np.str_]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    unique, codes = np.unique(names[names != ""], return_inverse=True)
    column = np.full(len(names), UNKNOWN["group"], dtype=np.int32)
    column[names != ""] = codes
    return tuple(unique.tolist()), column


def _concatenate_coords(parts: Sequence[NDArray[Any] | None], rows: Sequence[int]) -> NDArray[Any]:
    return _concatenate(parts, rows, "coords")


def _concatenate(parts: Sequence[NDArray[Any] | None], rows: Sequence[int], name: str) -> NDArray[Any]:
    """A column of all slides, unknown where a slide has none; integers in their usual dtype where they fit."""
    shape, unknown = ((2,), -1) if name == "coords" else ((), NOTHING[name])
    filled = [np.full((n, *shape), unknown) if part is None else part for part, n in zip(parts, rows, strict=True)]
    column = np.concatenate([part for part in filled if len(part)])
    if name == "group":
        return column
    with np.errstate(invalid="ignore"):  # positions that are no numbers stay as they are
        narrow = column.astype({"coords": np.int32, "label": np.int64, "split": np.uint8}[name])
    return narrow if np.array_equal(narrow, column) else column.astype(np.float32)
