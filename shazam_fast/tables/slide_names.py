"""Names of slides: how a slide is called, and which names mean the same slide. All rules are here.

Tools call one slide `/data/siteA/case.ome.tif`, `siteA/case.ome.tif`, `case.ome` or `case`. A name has three parts that
may be missing: directories, the slide's own name, and suffixes (of a feature file, of an image, `.ome`). Two names mean
the same slide where their own names are equal and the directories of one end the other's; where a full name fits
exactly, no other is considered. A name that fits two slides, or two names that fit one, is an error that shows both.

Who uses what:
    name_slides    files of one teacher, or a folder of slides, to names of slides
    match_slides   names of a table, of a second teacher or of coords files to names of slides
    choose_slides  names that a user selects (`slides=`) among names of slides
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".jp2")  # of images that are no slides
TIFF_SUFFIXES = (".tif", ".tiff")  # of both
IMAGE_SUFFIXES = (
    ".svs", *TIFF_SUFFIXES, ".ndpi", ".mrxs", ".scn", ".czi", ".bif", ".vms", ".vmu", ".svslide", ".dcm",
    ".qptiff", ".isyntax", ".vsi", ".sdpc", ".kfb", *PICTURE_SUFFIXES,
)  # fmt: skip
FEATURE_SUFFIXES = (".h5", ".hdf5", ".pt", ".pth", ".npy", ".npz", ".safetensors", ".zarr", ".txt", ".json")
ENDS = frozenset("/. \t\n\r\v\f\x1c\x1d\x1e\x1f")  # what a clean name neither begins nor ends with, or may not
FLOAT_ID = re.compile(r"([0-9]+)\.0")  # a number that a table with empty cells turned into a float
EXAMPLES = 3  # names that a message shows


def name_slides(files: Sequence[str | Path], root: str | Path = "") -> list[str]:
    """Names of the slides that files hold, one per file, in their order.

    The name is the path below `root` without the suffix of a feature file. Directories are dropped if all names still
    differ, then the suffixes of images (`case.svs.h5`, `case.ome.tif`) if all names still differ.

    Args:
        files: feature files, coords files or whole-slide images; suffixes in any case.
        root: the directory that was opened.

    Raises MismatchError, showing both files, when two of them differ in the suffix of a feature file alone.

    >>> name_slides(["job/a.svs.h5", "job/b.svs.h5"], "job")
    ['a', 'b']
    >>> name_slides(["job/siteA/001.h5", "job/siteB/001.H5"], "job")
    ['siteA/001', 'siteB/001']
    >>> name_slides(["A01.svs", "A01.ndpi"])
    ['A01.svs', 'A01.ndpi']
    """
    above = os.path.join(root, "")
    places = [os.fspath(file) for file in files]
    below = [place.removeprefix(above) if len(place) > len(above) else place for place in places]
    names = [_without(FEATURE_SUFFIXES, _clean(place)) for place in below]
    first: dict[str, str | Path] = {}
    for name, file in zip(names, files, strict=True):
        if name in first:
            raise MismatchError(
                f"{first[name]} and {file} are two files of the slide {name!r}; keep one of them, "
                "or open their directories one by one"
            )
        first[name] = file
    bare = [name.rpartition("/")[2] for name in names]
    names = bare if len(set(bare)) == len(names) else names
    short = [_without_any(name) for name in names]
    return short if len(set(short)) == len(names) else names


def match_slides(given: Sequence[str], slides: Sequence[str], where: str, where_slides: str) -> NDArray[np.int64]:
    """Which slide each given name means: indices into `slides` [n], -1 for names of no slide.

    Args:
        given: [n] names, with or without directories and suffixes; the same name may come twice. "1009250.0" means the
            slide 1009250 where no slide has that full name.
        slides: names of the slides that are opened, all different.
        where: what `given` comes from, for messages: a file, "the mapping".
        where_slides: what `slides` comes from: the archive's path, a folder of slides.

    Raises MismatchError, showing both, when a name fits two slides, two different names fit one slide, or two slides
    have the same name.

    >>> match_slides(["siteA/s1.svs", "s3"], ["s1", "s2"], "labels.csv", "job").tolist()
    [0, -1]
    """
    exact: dict[str, int] = {}
    for index, slide in enumerate(slides):
        if (first := exact.setdefault(_clean(slide), index)) != index:
            raise MismatchError(f"{where_slides}: two slides are called {slides[first]!r} and {slide!r}: the same name")
    by_own_name: defaultdict[str, list[int]] = defaultdict(list)
    parts = [_parts(slide) for slide in slides]
    for index, path in enumerate(parts):
        by_own_name[path[-1]].append(index)
    found: dict[str, int] = {}
    named_by: dict[int, str] = {}
    for name in dict.fromkeys(given):
        index = _find(name, exact, by_own_name, parts, slides, (where, where_slides))
        found[name] = index
        if index >= 0 and _clean(other := named_by.setdefault(index, name)) != _clean(name):
            raise MismatchError(
                f"{where}: {other!r} and {name!r} both fit the slide {slides[index]!r} of {where_slides}; "
                "keep the one that is meant, or give the full names on both sides"
            )
    return np.array([found[name] for name in given], dtype=np.int64)


def choose_slides(slides: Sequence[str], wanted: Sequence[str], where: str) -> list[int]:
    """Indices into `slides` of the names that a user wants, in the order wanted.

    Args:
        slides: names of the slides that are there.
        wanted: names to choose, with or without directories and suffixes.
        where: what `slides` comes from, for messages.

    Raises MismatchError for a name that is not there, fits two slides, or is chosen twice.

    >>> choose_slides(["a", "b"], ["b.svs"], "job")
    [1]
    """
    if isinstance(wanted, str):
        raise MismatchError(f"slides: a list of names expected, found the text {wanted!r}; write [{wanted!r}]")
    names = [str(name) for name in wanted]
    if not names:
        raise MismatchError(f"slides: at least one of the {len(slides)} slides of {where} expected, found none")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise MismatchError(f"slides: {twice!r} is chosen twice; name every slide once")
    chosen: list[int] = match_slides(names, slides, "slides", where).tolist()
    if absent := [name for name, index in zip(names, chosen, strict=True) if index < 0]:
        raise MismatchError(
            f"{where}: no slide {absent[0]!r} ({len(absent)} of {len(names)} chosen are not there); "
            f"it has {show(slides)}"
        )
    return chosen


def show(names: Sequence[object]) -> str:
    """The first few names, quoted, and how many more there are."""
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return ", ".join(repr(str(name)) for name in names[:EXAMPLES]) + more or "none"


def _find(
    name: str,
    exact: dict[str, int],
    by_own_name: dict[str, list[int]],
    parts: Sequence[tuple[str, ...]],
    slides: Sequence[str],
    where: tuple[str, str],
) -> int:
    whole = FLOAT_ID.fullmatch(name.strip())
    for spelling in (name, whole[1]) if whole else (name,):
        if (index := exact.get(_clean(spelling))) is not None:
            return index
        mine = _parts(spelling)
        fits = [i for i in by_own_name.get(mine[-1], ()) if _end_alike(mine, parts[i])]
        if len(fits) > 1:
            raise MismatchError(
                f"{where[0]}: {name!r} fits the slides {slides[fits[0]]!r} and {slides[fits[1]]!r} of {where[1]}; "
                "give the full name"
            )
        if fits:
            return fits[0]
    return -1


def _end_alike(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    shared = min(len(left), len(right))
    return left[-shared:] == right[-shared:]


def _clean(name: str) -> str:
    """The name as one spelling: composed characters (NFC), slashes, nothing empty."""
    usual = name.isascii() and "\\" not in name and "//" not in name and "./" not in name
    if usual and name[:1] not in ENDS and name[-1:] not in ENDS:
        return name
    pieces = unicodedata.normalize("NFC", name.strip()).replace("\\", "/").split("/")
    return "/".join(piece for piece in pieces if piece not in ("", "."))


def _parts(name: str) -> tuple[str, ...]:
    """Directories and the slide's own name, without suffixes."""
    return tuple(_without_any(_clean(name)).split("/"))


def _without_any(name: str) -> str:
    if "." not in name:
        return name
    for suffixes in (FEATURE_SUFFIXES, IMAGE_SUFFIXES, (".ome",)):
        name = _without(suffixes, name)
    return name


def _without(suffixes: tuple[str, ...], name: str) -> str:
    dot = name.rfind(".")
    if dot < 0 or name[dot:].lower() not in suffixes or dot == name.rfind("/") + 1:  # a name is more than a suffix
        return name
    return name[:dot]
