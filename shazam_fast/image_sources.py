"""Where images come from: a folder, class folders, a CSV manifest. Every reader gives one `ImageTable`.

Patches of whole-slide images come from `slide_patches.py`, the paper's datasets from `datasets.py`, in the same table.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .annotations import (
    GROUP_COLUMNS,
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    column_of,
    encode_names,
    read_csv,
)
from .columns import encode_splits
from .errors import ImageError, MismatchError
from .splits import require_whole_groups

SLIDE_COLUMNS = ("slide", "slide_id", "slide_name", "wsi")
PATH_COLUMNS = ("path", "image_path", "image", "file", "filename")
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2"))
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NAMED = 5  # files that a message names before it says how many more there are

logger = logging.getLogger("shazam_fast")


@dataclass(frozen=True)
class ImageTable:
    """n images and what is known of each; image i becomes row i of an archive.

    Args:
        paths: [n] image files. For patches of whole-slide images the slide's file, with `coords` and `sides`.
        labels: int64 [n], index into `classes`, -1 unknown.
        classes: class names in label order.
        splits: uint8 [n]: 0 train, 1 val, 2 test, 255 none; see `layouts.native.SPLITS`.
        groups: [n] names of what must stay in one split (patients), "" unknown; or () for all unknown.
        slides: [n] names of the slides that the images were cut from, "" unknown; or ().
        coords: int32 [n, 2], x and y of the image at level 0 of its slide, in pixels; or None.
        sides: int32 [n, 2], where patches are read from a slide: their side at level 0, and the side that they are
            resized to, in pixels. None where every path is an image of its own.
        note: what a reader of results should know of this table ("as published: ..."); archives keep it.

    Raises ImageError when there is no image, when files are missing, or when one is listed twice; MismatchError when
    lengths differ or a label has no class.
    """

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    splits: NDArray[np.uint8]
    groups: tuple[str, ...] = ()
    slides: tuple[str, ...] = ()
    coords: NDArray[np.int32] | None = None
    sides: NDArray[np.int32] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ImageError("no images: an extraction needs at least one")
        self._check_lengths()
        self._check_labels()
        self._check_files()

    def __len__(self) -> int:
        return len(self.paths)

    def _check_lengths(self) -> None:
        lengths = {"labels": len(self.labels), "splits": len(self.splits)}
        lengths |= {name: len(names) for name in ("groups", "slides") if (names := getattr(self, name))}
        lengths |= {name: len(array) for name in ("coords", "sides") if (array := getattr(self, name)) is not None}
        if different := {name: n for name, n in lengths.items() if n != len(self)}:
            raise MismatchError(f"one entry for each of {len(self)} images expected, found {different}")

    def _check_labels(self) -> None:
        if self.labels.min() < -1 or self.labels.max() >= len(self.classes):
            raise MismatchError(
                f"labels -1 (unknown) to {len(self.classes) - 1} expected for the classes {list(self.classes)}, "
                f"found {self.labels.min()} to {self.labels.max()}"
            )

    def _check_files(self) -> None:
        places = [os.path.abspath(path) for path in self.paths]
        missing = sorted(place for place in set(places) if not os.path.isfile(place))
        if missing:
            raise ImageError(f"{len(missing)} of {len(set(places))} image files are missing: {_some(missing)}")
        corners = [()] * len(self) if self.sides is None or self.coords is None else map(tuple, self.coords.tolist())
        counts = Counter(zip(places, corners, strict=True))
        if repeated := sorted(place for (place, _), n in counts.items() if n > 1):
            raise ImageError(f"{len(repeated)} images are listed more than once: {_some(repeated)}")


def image_folder(path: str | Path) -> ImageTable:
    """All images in a folder and below, sorted by path, without labels.

    Hidden files are passed over, and so are files that are no images by their suffix, which is said once.
    """
    paths = _images_below(Path(path))
    return _table(paths, ["none"] * len(paths))


def class_folders(path: str | Path, classes: Sequence[str] | None = None) -> ImageTable:
    """Images in one folder a class, as torchvision's ImageFolder reads them; the folders' names are the classes.

    Folders called train, val (valid, validation) and test, and no others, hold class folders and give the splits.

    Args:
        path: the folder that holds the class folders.
        classes: names in label order; sorted by name when not given.

    Raises ImageError for a class folder without images, MismatchError for a folder that is not among `classes`.
    """
    root = Path(path)
    tops = _subfolders(root)
    splits = {top: SPLIT_FOLDERS[top.name] for top in tops if top.name in SPLIT_FOLDERS}
    parents = {root: "none"} if not splits or len(splits) < len(tops) else splits
    paths: list[Path] = []
    labels: list[str] = []
    split_of: list[str] = []
    for parent, split in parents.items():
        for folder in _subfolders(parent):
            found = _images_below(folder)
            paths += found
            labels += [folder.name] * len(found)
            split_of += [split] * len(found)
    if not paths:
        raise ImageError(f"{root}: one folder for each class expected, found none")
    return _table(paths, split_of, labels, classes)


def manifest(path: str | Path, classes: Sequence[str] | None = None) -> ImageTable:
    """The images that a CSV file lists, in its order.

    Columns: `path` (relative ones from the file's directory), and where they are known `label` (a class name), `split`
    (train, val, test, none), `group` (patient), `slide`, `x` and `y`; empty fields are unknown. The usual other names
    of these columns (image_path, target, patient_id, ...) are understood.

    Raises ArchiveError when the CSV cannot be read; MismatchError when a label is not among `classes`, a split or a
    position is not one, the column of paths is missing, or the split cuts a group.
    """
    source = Path(path)
    table = read_csv(source)
    column = column_of(table, PATH_COLUMNS)
    if column is None:
        raise MismatchError(f"{source}: a column of {'/'.join(PATH_COLUMNS)} expected, found {', '.join(table)}")

    def values(names: tuple[str, ...]) -> list[str]:
        found = column_of(table, tuple(name for name in names if name != column))
        return table[found] if found else []

    paths = [source.parent / value for value in table[column]]
    try:
        coords = np.array([table["x"], table["y"]], dtype=np.int32).T if {"x", "y"} <= table.keys() else None
    except (ValueError, OverflowError):
        raise MismatchError(f"{source}: whole numbers of pixels expected in the columns x and y") from None
    splits = [value or "none" for value in values(SPLIT_COLUMNS)] or ["none"] * len(paths)
    groups, slides = values(GROUP_COLUMNS), values(SLIDE_COLUMNS)
    return _table(paths, splits, values(LABEL_COLUMNS), classes, groups, slides, coords)


def _table(
    paths: Sequence[Path],
    splits: Sequence[str],
    labels: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    slides: Sequence[str] = (),
    coords: NDArray[np.int32] | None = None,
) -> ImageTable:
    known, codes = encode_names(np.array(labels or [""] * len(paths), dtype=np.str_), classes)
    split_codes = encode_splits(np.array(splits, dtype=np.str_))
    assert split_codes is not None
    if groups:
        require_groups(split_codes.astype(np.uint8), groups)
    return ImageTable(tuple(paths), codes, known, split_codes.astype(np.uint8), tuple(groups), tuple(slides), coords)


def require_groups(splits: NDArray[np.uint8], groups: Sequence[str]) -> None:
    """Raise MismatchError when a named group has images in two splits."""
    names, codes = np.unique(np.array(groups, dtype=np.str_), return_inverse=True)
    rows = np.where(names[codes] == "", -1, codes).astype(np.int32)
    require_whole_groups(splits, rows, tuple(names.tolist()))


def _images_below(folder: Path) -> list[Path]:
    """Image files in the folder and below, sorted; at least one."""
    found: list[Path] = []
    others = 0
    seen = set()  # links to folders are followed, but not in circles
    for place, folders, names in os.walk(folder, onerror=_refuse_listing, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = [n for n in folders if n[0] != "." and os.path.realpath(os.path.join(place, n)) not in seen]
        visible = [Path(place, name) for name in names if not name.startswith(".")]
        images = [file for file in visible if file.suffix.lower() in SUFFIXES]
        found += images
        others += len(visible) - len(images)
    if not found:
        raise ImageError(f"{folder}: no image found ({', '.join(sorted(SUFFIXES))}); remove the folder or fill it")
    if others:
        logger.info("%s: %d files are no images by their suffix and are passed over", folder, others)
    return sorted(found)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        _refuse_listing(error)
        raise


def _refuse_listing(error: OSError) -> None:
    raise ImageError(f"{error.filename}: a folder of images expected: {error.strerror}") from None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
