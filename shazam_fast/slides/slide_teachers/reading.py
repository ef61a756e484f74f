"""Features of slide-level teachers, one vector per slide, as other tools write them.

    TRIDENT     slide_features_{teacher}/{slide}.h5: `features` [D]
    AtlasPatch  patches/{slide}.h5: `slide_features/{teacher}` [D], beside the patches' features

A teacher may lack a slide. Its columns are NaN there, from which models know it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ...errors import ArchiveError, MismatchError, NonFiniteError, ShazamError
from ...formats.hdf5 import opened
from ...runtime.checks import require_path
from ...tables.slide_names import match_slides, show
from ..bags import Bags
from ..options import OF_SLIDE_TEACHERS

logger = logging.getLogger("shazam_fast")

FOLDER = "slide_features_"  # of TRIDENT, before the teacher's name
GROUP = "slide_features"  # of AtlasPatch, in a slide's file

# a directory; or {teacher: directory, or {slide: vector}}
SlideTeachersLike = str | Path | Mapping[str, Any]
Vectors = dict[str, tuple[NDArray[np.float32], str]]  # slide -> its feature [D], and where it was read


def add_slide_teachers(bags: Bags, source: SlideTeachersLike | None) -> Bags:
    """Bags with the features of slide-level teachers; of a patient with several slides, the mean of what there is.

    Args:
        bags: the bags.
        source: a directory of TRIDENT or AtlasPatch, of which all slide-level teachers are taken; or {teacher:
            directory}; or {teacher: {slide: vector}}. None leaves the bags as they are.

    Slides that a teacher lacks are counted in a warning.

    Raises:
        MismatchError: a teacher has none of the slides, or features of different lengths.
        ArchiveError: a directory is missing or holds no slide-level features, or a file is damaged.
        NonFiniteError: a NaN or infinite feature; names the file.

    >>> import tempfile
    >>> import shazam_fast as sf
    >>> from ..bags import make_bags
    >>> path = sf.write_archive(f"{tempfile.mkdtemp()}/a", {"uni": np.ones((2, 4))}, slides=["s1", "s2"])
    >>> bags = add_slide_teachers(make_bags(sf.open(path), "slide", {}), {"titan": {"s1": [1.0, 2.0]}})
    >>> bags.slide_features.tolist()
    [[1.0, 2.0], [nan, nan]]
    """
    if source is None:
        return bags
    teachers: dict[str, int] = {}
    blocks = []
    for name, vectors in _find(source).items():
        table = _table(name, vectors, bags)  # [slides, D]
        blocks.append(_of_bags(table, bags))
        teachers[name] = table.shape[1]
        if lacking := [bags.names[i] for i in np.flatnonzero(np.isnan(blocks[-1][:, 0])).tolist()]:
            count = f"{len(lacking)} of {len(bags)} slides"
            logger.warning("slide-level teacher %r has no feature of %s: %s", name, count, show(lacking))
    return replace(bags, slide_teachers=teachers, slide_features=np.concatenate(blocks, axis=1))


def read_by(model: str, bags: Bags) -> dict[str, int]:
    """The slide-level teachers that a model reads: name -> columns.

    Raises MismatchError when it reads them and there are none.
    """
    if model not in OF_SLIDE_TEACHERS:
        return {}
    if not bags.slide_teachers:
        raise MismatchError(
            f"model {model!r} reads slide-level teachers: give slide_teachers={{name: directory}} (--slide-teacher)"
        )
    return dict(bags.slide_teachers)


def describe_slide_teachers(bags: Bags) -> dict[str, str]:
    """What of slide-level teachers makes two jobs the same."""
    if bags.slide_features is None:
        return {}
    names = xxhash.xxh3_128(repr(dict(bags.slide_teachers)).encode())
    names.update(np.ascontiguousarray(bags.slide_features).tobytes())
    return {"slide-level teachers": names.hexdigest()}


def _find(source: SlideTeachersLike) -> dict[str, Vectors]:
    """The features of each teacher, by name."""
    if isinstance(source, str | Path):
        return _read_folder(require_path("slide_teachers", source), None)
    if not isinstance(source, Mapping) or not source:
        raise ShazamError(
            f"slide_teachers: a directory, or {{teacher: directory}}, expected, found {type(source).__name__}"
        )
    found = {}
    for name, one in source.items():
        if isinstance(one, Mapping):
            found[name] = {str(slide): (_vector(value, repr(slide)), repr(slide)) for slide, value in one.items()}
        else:
            found[name] = _read_folder(require_path("slide_teachers", one), name)[name]
    return found


def _read_folder(folder: Path, teacher: str | None) -> dict[str, Vectors]:
    """Slide-level features below a directory; of one teacher, or where None of all."""
    if not folder.is_dir():
        raise ArchiveError(f"{folder}: no such directory; slide-level features expected there", "missing")
    homes = [folder] if folder.name.startswith(FOLDER) else []
    if teacher is None and not homes:
        homes = sorted(path for path in folder.rglob(f"{FOLDER}*") if path.is_dir())
    named = teacher is not None or bool(homes)
    found: dict[str, Vectors] = {}
    for home in homes or [folder / "patches" if (folder / "patches").is_dir() else folder]:
        for file in sorted(home.glob("*.h5")):
            for name, vector in _read_file(file, teacher or home.name.removeprefix(FOLDER), named):
                vectors = found.setdefault(name, {})
                if (other := vectors.setdefault(file.stem, (vector, str(file)))[1]) != str(file):
                    raise MismatchError(f"{other} and {file}: teacher {name!r} twice; give {{teacher: directory}}")
    if not found or (teacher is not None and teacher not in found):
        raise ArchiveError(
            f"{folder}: no slide-level features{f' of {teacher!r}' if teacher else ''} found; {FOLDER}<teacher>/"
            f"<slide>.h5 of TRIDENT or patches/<slide>.h5 of AtlasPatch with {GROUP}/<teacher> expected", "missing",
        )  # fmt: skip
    return found


def _read_file(file: Path, teacher: str, named: bool) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The features of one slide: of `teacher` where it is `named` so, else of all in AtlasPatch's group."""
    with opened(file) as content:
        group = content.get(GROUP)
        if group is not None:
            chosen = {name: group[name] for name in sorted(group) if not named or name == teacher}
        else:
            chosen = {teacher: content["features"]} if named and "features" in content else {}
        for name, dataset in chosen.items():
            yield name, _vector(dataset[()], str(file))


def _vector(value: Any, where: str) -> NDArray[np.float32]:
    """A feature [D]; leading axes of 1 are dropped."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or not array.size or array.shape[-1:] != (array.size,):
        raise ArchiveError(
            f"{where}: a slide's feature, one vector of numbers, expected, found {array.dtype} {array.shape}"
        )
    vector = array.reshape(-1).astype(np.float32)
    if not np.isfinite(vector).all():
        raise NonFiniteError(f"{where}: the slide's feature has NaN or infinite values; extract it again")
    return vector


def _table(teacher: str, vectors: Vectors, bags: Bags) -> NDArray[np.float32]:
    """A teacher's features of the archive's slides, float32 [slides, D], NaN where it has none."""
    archive, names = bags.archive, list(vectors)
    places = match_slides(names, archive.slides, f"slide-level teacher {teacher!r}", str(archive.path))
    used = [i for i in range(len(names)) if places[i] >= 0]
    if not used:
        raise MismatchError(
            f"slide-level teacher {teacher!r} has none of the slides of {archive.path} ({show(archive.slides)}), but "
            f"{show(names)}; give the features of these slides"
        )
    _require_one_length(teacher, [vectors[names[i]] for i in used])
    table = np.full((len(archive.slides), len(vectors[names[used[0]]][0])), np.nan, dtype=np.float32)
    table[places[used]] = np.stack([vectors[names[i]][0] for i in used])
    return table


def _require_one_length(teacher: str, found: Sequence[tuple[NDArray[np.float32], str]]) -> None:
    first, where = found[0]
    for vector, other in found[1:]:
        if len(vector) != len(first):
            raise MismatchError(
                f"slide-level teacher {teacher!r}: {len(first)} columns in {where}, {len(vector)} in {other}; extract "
                "all slides with one model"
            )


def _of_bags(table: NDArray[np.float32], bags: Bags) -> NDArray[np.float32]:
    """Means over each bag's slides that have a feature, float32 [bags, D]; NaN where none has."""
    found = np.full((len(bags), table.shape[1]), np.nan, dtype=np.float32)
    for bag, slides in enumerate(bags.slides):
        own = table[list(slides)]
        if (known := ~np.isnan(own[:, 0])).any():
            found[bag] = own[known].mean(axis=0)
    return found
