"""Readers of images: a folder, one folder per class, a table of paths. Every reader gives one `ImageTable`.

Patches of whole-slide images come from `slides.py`, the paper's datasets from `datasets.py`, in the same table.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..annotation.assigning import read_positions
from ..annotation.columns import split_of
from ..errors import ImageError, MismatchError
from ..runtime.checks import require_path
from ..runtime.summaries import counted
from ..tables.cells import clean_text
from ..tables.reader import TABLE_SUFFIXES, Table, read_table
from ..tables.slide_names import PICTURE_SUFFIXES, TIFF_SUFFIXES
from .table import ImageTable, make_table

logger = logging.getLogger("shazam_fast")


SUFFIXES = frozenset((*PICTURE_SUFFIXES, *TIFF_SUFFIXES))  # of patches


def image_folder(path: str | Path) -> ImageTable:
    """All images in a folder and below, sorted by path, without labels.

    Hidden files are passed over. Files that are no images by their suffix are passed over too; their number is logged.

    Raises ImageError when the folder cannot be read or holds no image.
    """
    paths = _images_below(require_path("images", path))
    return make_table(paths, ["none"] * len(paths))


def class_folders(path: str | Path, classes: Sequence[str] | None = None) -> ImageTable:
    """Images in one folder per class, as torchvision's ImageFolder reads them; the folders' names are the classes.

    Folders called train, val (valid, validation, tune, dev) and test hold class folders each and give the splits.

    Args:
        path: the folder that holds the class folders.
        classes: names in label order; in natural order ("2" before "10") when not given.

    Raises:
        ImageError: a class folder without images, or one whose name means "unknown"; folders of splits with others
            beside them.
        MismatchError: a folder that is not among `classes`.
    """
    root = require_path("images", path)
    tops = _subfolders(root)
    splits = {top: split_of(top.name) for top in tops if split_of(top.name) in ("train", "val", "test")}
    if len(set(splits.values())) > 1 and len(splits) < len(tops):
        other = next(top.name for top in tops if top not in splits)
        raise ImageError(
            f"{root}: folders of splits ({', '.join(top.name for top in splits)}) and beside them {other!r}, which is "
            "none; move it elsewhere"
        )
    parents = {root: "none"} if not splits or len(splits) < len(tops) else splits
    paths: list[Path] = []
    labels: list[str] = []
    split_names: list[str] = []
    for parent, split in parents.items():
        for folder in _subfolders(parent):
            if not clean_text(folder.name):
                raise ImageError(f"{folder}: {folder.name!r} means that a class is unknown; rename the folder")
            found = _images_below(folder)
            paths += found
            labels += [folder.name] * len(found)
            split_names += [split] * len(found)
    if not paths:
        raise ImageError(f"{root}: one folder for each class expected, found none")
    return make_table(paths, split_names, labels, classes)


def manifest(path: str | Path, classes: Sequence[str] | None = None, label_column: str | None = None) -> ImageTable:
    """The images that a table lists (CSV or .xlsx), in its order.

    Columns: `path` (relative ones from the file's directory), and where they are known `label` (a class name), `split`
    (train, val, test, none), `group` (patient), `slide`, `x` and `y`; empty fields are unknown. The usual other names
    of these columns (image_path, target, patient_id, ...) are understood.

    Args:
        path: the table.
        classes: names in label order; names in natural order when not given.
        label_column: the column of labels, where it has no usual name.

    Raises ArchiveError when the table cannot be read; MismatchError when a label is not among `classes`, a split or a
    position is not one, the column of paths is missing, or the split cuts a group.
    """
    source = require_path("images", path)
    table = read_table(source)
    column = table.find("path")
    if column is None:
        raise MismatchError(
            f"{source}: a column of paths (path, image_path, file, ...) expected, found {table.headers}"
        )
    if not all(named := [bool(str(value or "").strip()) for value in table.columns[column]]):
        raise MismatchError(f"{table.place(named.index(False))}: no path in the column {column!r}")
    paths = [source.parent / str(value) for value in table.columns[column]]

    def texts(header: str | None) -> list[str]:
        return [] if header is None else table.texts(header).tolist()

    others = (column,)
    label = table.find("label", others) if label_column is None else table.require(label_column, "label_column")
    logger.info("%s: labels %s", source, "are unknown: no column of labels" if label is None else f"from {label!r}")
    groups, slides = (table.find(role, others) for role in ("group", "slide of an image"))
    splits = texts(table.find("split", others)) or ["none"] * len(paths)
    return make_table(
        paths, splits, texts(label), classes, texts(groups), texts(slides), _positions(table), table.place
    )


def labelled_images(path: str | Path) -> ImageTable:
    """Images with labels: what `manifest` reads of a table (CSV or .xlsx), else what `class_folders` finds in a folder.

    Raises what these raise.
    """
    source = require_path("images", path)
    return manifest(source) if source.suffix.lower() in TABLE_SUFFIXES else class_folders(source)


def _positions(table: Table) -> NDArray[np.int32] | None:
    """x and y [n, 2], -1 where both are empty; None without such columns."""
    headers = table.find_position()
    if headers is None:
        return None
    out = np.full((len(table), 2), -1, dtype=np.int32)
    for axis, header in enumerate(headers):
        texts = table.texts(header)
        numbers = read_positions(table, header, texts[texts != ""].tolist(), np.flatnonzero(texts != ""))
        out[texts != "", axis] = numbers
    half = np.flatnonzero((out < 0).sum(axis=1) == 1)
    if half.size:
        raise MismatchError(f"{table.place(int(half[0]))}: x and y expected, found one of them")
    return out


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
        raise ImageError(f"{folder}: no image found ({', '.join(sorted(SUFFIXES))}); remove the folder or add images")
    if others:
        logger.info("%s: passed over %s that by the suffix cannot be an image", folder, counted(others, "file"))
    return sorted(found)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        _refuse_listing(error)
        raise


def _refuse_listing(error: OSError) -> None:
    raise ImageError(f"{error.filename}: a folder of images expected: {error.strerror}") from None
