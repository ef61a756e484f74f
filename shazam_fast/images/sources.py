"""Where images come from: a folder, class folders, a CSV manifest. Every reader gives one `ImageTable`.

Patches of whole-slide images come from `slide_patches.py`, the paper's datasets from `datasets.py`, in the same table.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ImageError, MismatchError
from ..runtime.tables import GROUP_COLUMNS, LABEL_COLUMNS, PATH_COLUMNS, SPLIT_COLUMNS, column_of, read_csv
from .table import ImageTable, make_table

logger = logging.getLogger("shazam_fast")


SLIDE_COLUMNS = ("slide", "slide_id", "slide_name", "wsi")
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".jp2"))
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def image_folder(path: str | Path) -> ImageTable:
    """All images in a folder and below, sorted by path, without labels.

    Hidden files are passed over, and so are files that are no images by their suffix, which is said once.
    """
    paths = _images_below(Path(path))
    return make_table(paths, ["none"] * len(paths))


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
    return make_table(paths, split_of, labels, classes)


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
    return make_table(paths, splits, values(LABEL_COLUMNS), classes, groups, slides, coords)


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
