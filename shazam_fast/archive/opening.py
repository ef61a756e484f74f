"""Open features in place: find the layout of a path and make a FeatureArchive of its files."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..annotation.annotations import Given, annotate, encode_sites
from ..annotation.splits import GroupedSplit
from ..errors import ArchiveError, MismatchError, ShazamError
from ..formats.index.trees import Trees
from ..formats.native import is_native, read_contents
from ..formats.pieces import Contents
from ..layouts.finding import find_all, find_one
from ..layouts.selection import take_slides, take_teachers
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


def as_archive(archive: ArchiveLike) -> FeatureArchive:
    """An archive that is open, as it is; or the features at a path, or at {teacher: path}, with what their files say.

    Raises ShazamError for anything else, and what `open_archive` raises.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> np.save(f"{folder}/s1.npy", np.ones((3, 8), np.float32))
    >>> archive = as_archive({"uni": folder})
    >>> as_archive(archive) is archive
    True
    """
    if isinstance(archive, FeatureArchive):
        return archive
    if not isinstance(archive, str | Path | Mapping):
        raise ShazamError(f"archive: an archive or its path expected, found {type(archive).__name__}")
    return FeatureArchive(read_features(archive, None, None, "raise", index=True))


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
    try:
        places = _checked_places(path)
        with _no_garbage_collection():
            return _read(places, teachers, slides, on_error, loads, index)
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


def _checked_places(path: str | Path | Mapping[str, str | Path]) -> Path | dict[str, Path]:
    """The path of features, or the teachers' paths, none of which is another product of this package."""
    if not isinstance(path, Mapping):
        place = require_path("features", path)
        refuse_foreign(place)
        return place
    if not path:
        raise ArchiveError("path: at least one {teacher: path} expected, found an empty mapping")
    places = {require_name("teachers", teacher): require_path("features", place) for teacher, place in path.items()}
    for place in places.values():
        refuse_foreign(place)
    return places


def _read(
    places: Path | dict[str, Path],
    teachers: Sequence[str] | None,
    slides: Sequence[str] | None,
    on_error: OnError,
    loads: Loads | None,
    index: bool,
) -> Contents:
    if isinstance(places, Path) and is_native(places):
        contents = read_contents(places)
        return _select(contents, teachers, slides)
    found = find_one(places) if isinstance(places, Path) else find_all(places)
    trees = Trees(found.trees) if index else None
    contents = join(
        found.path, found.choose(teachers), slides, classes=found.classes, loads=loads, skip=on_error == "skip",
        trees=trees,
    )  # fmt: skip
    return replace(contents, records=found.records)


def _select(contents: Contents, teachers: Sequence[str] | None, slides: Sequence[str] | None) -> Contents:
    chosen = None if slides is None else choose_slides(contents.slides, slides, str(contents.path))
    if teachers is not None:
        contents = take_teachers(contents, teachers)
    return contents if chosen is None else take_slides(contents, chosen)
