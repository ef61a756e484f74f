"""Opening features where they lie: which layout a path has, and the archive that comes of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import ArchiveError, MismatchError
from ..formats.discovery import find_sources
from ..formats.native import is_native, read_contents
from ..formats.pieces import Source
from .alignment import join
from .annotations import Given, annotate
from .archive import FeatureArchive
from .splits import GroupedSplit

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
    label_column: str | None = None,
) -> FeatureArchive:
    """Open features in place, whichever tool wrote them; headers are read, features are not.

    Args:
        path: a native archive; a TRIDENT job, CLAM, STAMP, AtlasPatch or slide2vec directory; a .h5, .pt, .npy or
            .safetensors file, or a directory with one such file a slide; or {teacher: path}, one path a teacher.
            A FeatureArchive is passed through.
        teachers: which teachers to take, in this order; all by default.
        slides: which slides to take; all by default.
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

    Raises:
        ArchiveError: a file is missing, truncated, corrupt, or cannot be read in place (says what to do).
        MismatchError: teachers whose slides or rows differ (names both files, the first difference and the counts),
            labels that fit no slide, a split that cuts a group.
    """
    given = {"labels": labels, "splits": splits, "groups": groups, "classes": classes, "label_column": label_column}
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
    return FeatureArchive(annotate(contents, labels, splits, groups, classes, label_column))


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
