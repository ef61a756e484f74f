"""Open features in place: find the layout of a path and make a FeatureArchive of its files."""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..annotation.annotations import Given, annotate, encode_sites
from ..annotation.splits import GroupedSplit
from ..errors import ArchiveError, MismatchError
from ..formats.index.trees import Trees
from ..formats.native import is_native, read_contents
from ..formats.pieces import Contents, Source
from ..layouts.directories import find_features
from ..layouts.selection import sources_of, take_slides, take_teachers
from ..runtime.checks import require_name, require_path
from ..runtime.jobs.foreign import refuse_foreign
from ..tables.slide_names import choose_slides
from .archive import FeatureArchive
from .joining import join
from .matrices import Loads

ArchiveLike = str | Path | Mapping[str, str | Path] | FeatureArchive
OnError = Literal["raise", "skip"]


# Over 40 lines: every option is documented here.
def open_archive(
    path: ArchiveLike,
    *,
    teachers: Sequence[str] | None = None,
    slides: Sequence[str] | None = None,
    labels: Given = None,
    splits: Given | GroupedSplit = None,
    groups: Given = None,
    classes: Sequence[str] | None = None,
    label_column: str | None = None,
    on_error: OnError = "raise",
    index: bool = True,
) -> FeatureArchive:
    """Open features in place, whichever tool wrote them. Only headers, coordinates and tables are read.

    Args:
        path: a native archive; a directory of TRIDENT, CLAM, STAMP, AtlasPatch, slide2vec or torchmil; a .h5, .pt,
            .npy or .safetensors file, or a directory with one such file per slide; or {teacher: path}, one path per
            teacher, native archives included. A FeatureArchive is passed through.
        teachers: which teachers to take, in this order; all by default.
        slides: which slides to take, in this order; all, sorted, by default.
        labels: a table (CSV with commas, semicolons or tabs; .xlsx; a pandas DataFrame) of slide and label, of slide,
            x, y and label, or of patient and label; {slide: label} or a Series with slides as its index; one label per
            patch; or "folder" for the name of the folder that a slide's file is in. The table's columns of patients
            and splits are used too, unless groups= or splits= are given.
        splits: a table of slide (or patient) and split; CLAM's splits_k.csv or splits_k_bool.csv; "path:column", such
            as "k=all.tsv:fold_0" of Patho-Bench; {slide: split}; one split per patch; or a `GroupedSplit`.
        groups: patients, which must stay in one split: a table of slide and patient, {slide: patient} or one name per
            patch. Needed where labels or splits are given by patient.
        classes: class names in label order; names in natural order ("2" before "10") by default.
        label_column: the column of the labels' table that holds the labels, where it has no usual name.
        on_error: "raise", or "skip" to leave out slides that cannot be read or joined, for all teachers;
            `FeatureArchive.left_out` says which and why.
        index: whether what is learned of HDF5 files in large directories is kept in the user's cache folder, so that
            they open faster the next time. Files that have changed are read again. The environment variable
            SHAZAM_CACHE names another folder, or is "off".

    Returns the archive.

    Raises:
        ArchiveError: a file is missing, truncated, corrupt, or cannot be read in place (says what to do).
        MismatchError: teachers whose slides or rows differ (names both files, the first difference and the counts),
            labels that fit no slide, a split that cuts a group, an empty selection.
        ShazamError: `path` is no path.

    >>> import numpy as np, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> np.save(f"{folder}/s1.npy", np.ones((3, 8), np.float32))
    >>> open_archive({"uni": folder}, labels={"s1": "tumour"}).classes
    ('tumour',)
    """
    given = {"labels": labels, "splits": splits, "groups": groups, "classes": classes, "label_column": label_column}
    if isinstance(path, FeatureArchive):
        if teachers is not None or slides is not None or any(value is not None for value in given.values()):
            raise MismatchError("an archive that is open already cannot be given labels, splits or a selection")
        return path
    contents = read_features(path, teachers, slides, on_error, index=index)
    return FeatureArchive(annotate(contents, labels, splits, groups, classes, label_column))


def choose_of(archive: FeatureArchive, teachers: Sequence[str]) -> FeatureArchive:
    """An open archive with some of its teachers, in this order; its labels, splits and groups stay.

    Raises MismatchError for another name.
    """
    return FeatureArchive(take_teachers(archive._contents, teachers))


def split_of(archive: FeatureArchive, splits: GroupedSplit) -> FeatureArchive:
    """An open archive with splits made at random; its labels and groups stay.

    Raises what `open_archive` raises for such splits.
    """
    return FeatureArchive(annotate(archive._contents, splits=splits))


def read_sites(archive: FeatureArchive, sites: Given) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The site (hospital, scanner) of every patch of an open archive.

    Args:
        archive: the archive.
        sites: a table with a column of sites and one of slides or patients, {slide: site} or one name per patch.

    Returns the names of sites, and int32 [n_rows]: the index of every patch's site, -1 unknown.

    Raises what `open_archive` raises for groups.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> np.save(f"{folder}/s1.npy", np.ones((3, 8), np.float32))
    >>> read_sites(open_archive({"uni": folder}), {"s1": "Basel"})
    (('Basel',), array([0, 0, 0], dtype=int32))
    """
    return encode_sites(archive._contents, sites)


def read_features(
    path: str | Path | Mapping[str, str | Path],
    teachers: Sequence[str] | None,
    slides: Sequence[str] | None,
    on_error: OnError,
    loads: Loads | None = None,
    index: bool = False,
) -> Contents:
    """The contents of a path, with the teachers and slides chosen.

    Args:
        path, teachers, slides, on_error: as in `open_archive`.
        loads: gets an opener for each file that cannot be memory-mapped; None if such files are an error.
        index: as in `open_archive`.

    Raises what `open_archive` raises.
    """
    if on_error not in ("raise", "skip"):
        raise MismatchError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    for name, chosen in (("teachers", teachers), ("slides", slides)):
        if isinstance(chosen, str):
            raise MismatchError(f"{name}: a list of names expected, found the text {chosen!r}; write [{chosen!r}]")
        if chosen is not None and not len(chosen):
            raise MismatchError(f"{name}: at least one name expected, found none; leave {name} out to take all")
    for place in path.values() if isinstance(path, Mapping) else [path]:
        require_path("features", place)
    try:
        with _no_garbage_collection():
            return _read(path, teachers, slides, on_error, loads, index)
    except PermissionError as error:
        raise ArchiveError(f"{error.filename or path}: no permission to read it", "permission") from None
    except OSError as error:
        raise ArchiveError(f"{error.filename or path}: cannot be read: {error.strerror or error}", "system") from None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """It would look at all objects again and again; of 100,000 files there are millions, and none is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # of the user, which stays
            gc.freeze()  # all that is there,
            gc.unfreeze()  # and thus among the old objects, without being looked at
        if was_enabled:
            gc.enable()


def _read(
    path: str | Path | Mapping[str, str | Path],
    teachers: Sequence[str] | None,
    slides: Sequence[str] | None,
    on_error: OnError,
    loads: Loads | None,
    index: bool,
) -> Contents:
    if isinstance(path, Mapping):
        found = _find_all(path)
    else:
        where = Path(path)
        refuse_foreign(where)
        if is_native(where):
            return _select(_read_native(where), teachers, slides)
        sources = find_features(where)
        found = _Found(where, sources, {where: sources})
    wanted = choose_teachers(found.path, found.sources, teachers)
    trees = Trees(found.trees) if index else None
    contents = join(
        found.path, wanted, slides, classes=found.classes, loads=loads, skip=on_error == "skip", trees=trees
    )
    return replace(contents, records=found.records)


def _read_native(path: Path) -> Contents:
    """The contents with absolute paths of files, so that they are found after a change of directory."""
    return replace(read_contents(Path(os.path.abspath(path))), path=path)


def _select(contents: Contents, teachers: Sequence[str] | None, slides: Sequence[str] | None) -> Contents:
    if teachers is not None:
        contents = take_teachers(contents, teachers)
    if slides is not None:
        contents = take_slides(contents, choose_slides(contents.slides, slides, str(contents.path)))
    return contents


@dataclass(frozen=True)
class _Found:
    """Sources of all teachers, and what native archives among them say: names of classes, records of teachers.

    `trees` is the sources by the paths, other than native archives, below which they were found.
    """

    path: Path
    sources: Sequence[Source]
    trees: Mapping[Path, Sequence[Source]]
    classes: tuple[str, ...] = ()
    records: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def _find_all(paths: Mapping[str, str | Path]) -> _Found:
    """The sources at {teacher: path}."""
    if not paths:
        raise ArchiveError("path: at least one {teacher: path} expected, found an empty mapping")
    for teacher in paths:
        require_name("teachers", teacher)
    natives = {}
    for teacher, place in paths.items():
        refuse_foreign(Path(place))
        if is_native(Path(place)):
            natives[teacher] = _one_teacher(_read_native(Path(place)), teacher)
    codes: dict[str, int] = {}
    for contents in natives.values():
        for name in contents.classes:
            codes.setdefault(name, len(codes))
    sources = []
    trees: dict[Path, list[Source]] = {}
    for teacher, place in paths.items():
        if teacher in natives:
            sources += sources_of(natives[teacher], codes)
        else:
            sources += (found := find_features(Path(place), teacher))
            trees.setdefault(Path(place), []).extend(found)
    records = {name.partition(":")[0]: r for c in natives.values() for name in c.teachers
               if (r := c.records.get(name.partition(":")[0]))}  # fmt: skip
    return _Found(Path(next(iter(paths.values()))), sources, trees, tuple(codes), records)


def _one_teacher(contents: Contents, teacher: str) -> Contents:
    """The teacher of that name in a native archive, or its only one under that name."""
    if teacher in contents.teachers:
        return take_teachers(contents, [teacher])
    if len(contents.teachers) > 1:
        raise MismatchError(f"{contents.path}: teacher {teacher!r} not found; it holds {', '.join(contents.teachers)}")
    old, dim = next(iter(contents.teachers.items()))
    record = contents.records.get(old.partition(":")[0])
    records = {teacher.partition(":")[0]: record} if record else {}
    return replace(contents, teachers={teacher: dim}, records=records)


def choose_teachers(path: Path, sources: Sequence[Source], teachers: Sequence[str] | None) -> Sequence[Source]:
    """The sources of these teachers, in this order; None for all. Raises MismatchError for unknown or repeated ones."""
    if teachers is None:
        return sources
    found = {source.teacher for source in sources}
    if absent := [teacher for teacher in teachers if teacher not in found]:
        raise MismatchError(f"{path}: no teacher {absent[0]!r}; found {', '.join(sorted(found))}")
    if len(set(teachers)) < len(teachers):
        raise MismatchError(f"teachers: each name once expected, found {list(teachers)}")
    return sorted((s for s in sources if s.teacher in teachers), key=lambda s: teachers.index(s.teacher))
