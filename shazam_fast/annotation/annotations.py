"""Labels, splits and groups for archives whose files hold none: from tables, mappings, arrays or folder names."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import MismatchError
from ..formats.pieces import SPLITS, Contents, InMemory
from ..runtime.summaries import counted
from ..tables.cells import category_order, normalise, without_decimals
from ..tables.reader import Table, counts, is_frame, read_table, table_of_frame, table_of_mapping
from ..tables.slide_names import show
from .assigning import Patches, require_all_splits
from .columns import (
    are_indices,
    check_classes,
    check_indices,
    check_label_indices,
    encode_labels,
    encode_names,
    encode_splits,
)
from .split_tables import split_column, split_table
from .splits import GroupedSplit, require_whole_groups

logger = logging.getLogger("shazam_fast")

FOLDER = "folder"
SITE_HEADERS = ("site", "siteid", "center", "centre", "hospital", "institution")  # of a column of sites, as letters

Given = str | Path | Mapping[str, Any] | ArrayLike | None
Column = tuple[NDArray[Any], Table | None, NDArray[np.int64]]  # values; their table; row of the values per patch


def annotate(
    contents: Contents,
    labels: Given = None,
    splits: Given | GroupedSplit = None,
    groups: Given = None,
    classes: Sequence[str] | None = None,
    label_column: str | None = None,
) -> Contents:
    """The contents of an archive with columns for the labels, splits and groups that were given.

    Args:
        contents: the archive without them, or with others.
        labels, splits, groups, classes, label_column: as in `shazam_fast.open`.

    The labels' table also gives patients and splits where it has such columns and none are given.

    Raises MismatchError when names or counts do not fit, rows contradict each other, or the split cuts a group;
    ArchiveError for a table that cannot be read.
    """
    source = _source(labels, "label")
    if label_column is not None and (not isinstance(source, Table) or isinstance(labels, Mapping)):
        raise MismatchError("label_column: chooses a column of the labels' table, but labels= is no table")
    contents = _with_groups(contents, groups, source)
    if source is not None:
        contents = _with_labels(contents, source, classes, label_column, category_order(labels))
    elif classes is not None:
        contents = _with_classes(contents, check_classes(classes))
    if splits is not None:
        return _with_splits(contents, splits)
    header = source.find("split") if isinstance(source, Table) else None
    if isinstance(source, Table) and header is not None and any(source.texts(header)):
        logger.info("%s: splits from its column %r", source.where, header)
        return _with_column_of_splits(contents, source, header, required=False)
    return contents


def encode_sites(contents: Contents, sites: Given) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The sites that were given for the patches of an archive: their names, and the index of every patch's site.

    Args:
        contents: the archive.
        sites: as groups in `annotate`; a table has a column of SITE_HEADERS.

    Returns the names, and int32 [n_rows], -1 unknown.

    Raises MismatchError when slides or counts do not fit, no site is known, or a table has no such column.
    """
    source, header = _source(sites, "site"), None
    if source is None or isinstance(source, str):
        raise MismatchError(f"sites: a table, a mapping or one name per patch expected, found {sites!r}")
    if isinstance(source, Table):
        found = [name for name in source.columns if re.sub("[^a-z]", "", name.lower()) in SITE_HEADERS]
        if len(found) != 1:
            raise MismatchError(
                f"{source.where}: one column of sites ({', '.join(SITE_HEADERS)}) expected, found {source.headers}"
            )
        header = found[0]
    values, _, rows = _column(contents, source, header, "sites")
    names, codes = encode_names(_spread(values, rows), "sites")
    if not names:
        raise MismatchError(f"{contents.path}: sites: no patch has a known site")
    return names, codes


def _source(given: Any, role: str) -> Table | NDArray[Any] | str | None:
    """What was given as a table, as one value per patch, or as the word "folder"."""
    if given is None or (isinstance(given, str) and given == FOLDER):
        return given
    if isinstance(given, str | Path):
        return read_table(given)
    if is_frame(given):
        return table_of_frame(given)
    if isinstance(given, Mapping):
        return table_of_mapping(given, role)
    index = getattr(given, "index", None)  # of a pandas Series; a list has a method of that name
    if index is not None and not callable(index) and not counts(index):
        if not all(isinstance(key, str) for key in index):
            raise MismatchError(
                f"{role}s: a Series whose index is neither 0, 1, 2, ... nor slide names: its values could be "
                "per patch or per slide; give .to_numpy() for one value per patch, or text as index"
            )
        frame = given.rename(role).rename_axis("slide").reset_index()
        return replace(table_of_frame(frame), where="the Series", rows=[repr(key) for key in index])
    return np.asarray(normalise(given, f"{role}s"))


def _column(
    contents: Contents, source: Table | NDArray[Any] | str, header: str | None, what: str, required: bool = True
) -> Column:
    """The values that a source holds, and which of them each patch has (-1: none)."""
    patches = Patches(contents)
    if isinstance(source, str):
        if not contents.slides:
            raise MismatchError(f"{contents.path}: labels='folder' needs one file per slide, in one folder per class")
        source = contents.folders()
    if isinstance(source, Table):
        assert header is not None
        values = without_decimals(source.texts(header))
        return values, source, patches.find_rows(source, header, values, what, required)
    if source.shape != (patches.n_rows,):
        raise MismatchError(f"{contents.path}: {what} of shape ({patches.n_rows},) expected, found {source.shape}")
    return source, None, np.arange(patches.n_rows)


def _with_groups(contents: Contents, groups: Given, labels: Table | NDArray[Any] | str | None) -> Contents:
    source, header = _source(groups, "group"), None
    if isinstance(source, str):
        raise MismatchError("groups: a table, a mapping or one name per patch expected, found 'folder'")
    if isinstance(source, Table):
        header = source.find("group")
        if header is None:
            raise MismatchError(
                f"{source.where}: a column patient_id, case_id or group expected, found {source.headers}"
            )
    elif source is None and isinstance(labels, Table) and labels.find("slide") is not None:
        header = labels.find("group")
        if header is None or not any(labels.texts(header)):
            return contents
        source = labels
        logger.info("%s: patients from its column %r", labels.where, header)
    if source is None:
        return contents
    values, _, rows = _column(contents, source, header, "groups", groups is not None)
    names, codes = encode_names(_spread(values, rows), "groups")
    return _with(replace(contents, groups=names), "group", codes)


def _with_labels(
    contents: Contents,
    source: Table | NDArray[Any] | str,
    classes: Sequence[str] | None,
    label_column: str | None,
    order: Sequence[str] | None,
) -> Contents:
    header = source.find_label(label_column) if isinstance(source, Table) else None
    if isinstance(source, Table):
        if header is None:
            raise MismatchError(
                f"{source.where}: a column of labels (label, target, class, diagnosis) expected, found "
                f"{source.headers}; choose one with label_column="
            )
        logger.info("%s: labels from its column %r", source.where, header)
    values, table, rows = _column(contents, source, header, "labels")
    if isinstance(source, str) and classes is None and len(set(values.tolist())) < 2:
        raise MismatchError(f"{contents.path}: labels='folder' needs one folder per class; all lie in {values[:1]}")
    used = np.unique(rows[rows >= 0])  # rows of the table that belong to patches
    order = source.orders.get(header or "") if isinstance(source, Table) else order
    names, codes = encode_labels(values[used], classes, lambda i: _place(table, int(used[i]), contents), order)
    of_row = np.full(len(values) + 1, -1, dtype=np.int64)  # the last one for patches without a row
    of_row[used] = codes
    return _with(replace(contents, classes=names), "label", of_row[rows])


def _with_classes(contents: Contents, classes: tuple[str, ...]) -> Contents:
    """The labels that an archive has already, under other class names or in another order."""
    old = contents.classes
    if "label" not in contents.columns:
        return replace(contents, classes=classes)
    labels = contents.columns["label"]().astype(np.int64)
    check_indices(contents.path, "label", labels, len(old))
    used = np.unique(labels[labels >= 0]).tolist()
    if are_indices(old, classes):  # labels were given as numbers without names
        numbers = np.array([*map(int, old), -1], dtype=np.int64)[labels]
        codes = check_label_indices(numbers, classes, lambda i: f"{contents.path}: row {i}")
        return _with(replace(contents, classes=classes), "label", codes)
    if absent := [old[code] for code in used if old[code] not in classes]:
        raise MismatchError(f"{contents.path}: its class {absent[0]!r} is not among the classes {list(classes)}")
    places = np.array([*(classes.index(name) if name in classes else -1 for name in old), -1], dtype=np.int64)
    return _with(replace(contents, classes=classes), "label", places[labels])


def _with_splits(contents: Contents, splits: Given | GroupedSplit) -> Contents:
    if isinstance(splits, GroupedSplit):
        if "label" not in contents.columns:
            raise MismatchError(f"{contents.path}: a stratified split needs labels; give labels=")
        patches = Patches(contents)
        if (patches.groups < 0).all() and (patches.slides < 0).all():
            raise MismatchError(
                f"{contents.path}: a grouped split needs patients or slides; give groups=, "
                "or splits= as an array if the patches are independent"
            )
        labels = contents.columns["label"]().astype(np.int64)
        return _with(contents, "split", splits.assign(labels, patches.groups, patches.slides, str(contents.path)))
    given, fold = split_column(splits)
    source = _source(given, "split")
    if isinstance(source, str):
        raise MismatchError(
            "splits: a table, a mapping, one split per patch or a GroupedSplit expected, found 'folder'"
        )
    if isinstance(source, Table):
        source, header = split_table(source, fold)
        return _with_column_of_splits(contents, source, header, required=True)
    assert source is not None
    codes = encode_splits(_column(contents, source, None, "splits")[0])
    return _with_checked_splits(contents, codes)


def _with_column_of_splits(contents: Contents, table: Table, header: str, required: bool) -> Contents:
    values = table.texts(header)
    codes = encode_splits(values, table.place)
    words = np.array(list(SPLITS))[np.searchsorted(list(SPLITS.values()), codes)]  # "Training" and "train" agree
    rows = Patches(contents).find_rows(table, header, np.where(values == "", "", words), "splits", required)
    column = _spread(np.append(codes, np.uint8(SPLITS["none"])), rows)
    if required:
        require_all_splits(column, codes, table, {code: name for name, code in SPLITS.items()})
    return _with_checked_splits(contents, column)


def _with_checked_splits(contents: Contents, column: NDArray[np.uint8]) -> Contents:
    patches = Patches(contents)
    if contents.groups:
        require_whole_groups(column, patches.groups, contents.groups)
    used = (column != SPLITS["none"]) & (patches.slides >= 0)
    pairs = np.unique(np.stack([patches.slides[used], column[used]], axis=1), axis=0)[:, 0]
    cut = np.unique(pairs[1:][pairs[1:] == pairs[:-1]])
    if cut.size:
        names = show([contents.slides[slide] for slide in cut])
        logger.warning("%s: patches in several splits of %s: %s", contents.path, counted(cut.size, "slide"), names)
    return _with(contents, "split", column)


def _place(table: Table | None, row: int, contents: Contents) -> str:
    return f"{contents.path}: labels: row {row}" if table is None else table.place(row)


def _spread(values: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """The values of rows, and for -1 "none known": the last value of numbers, "" of text."""
    return np.where(rows >= 0, values[rows], "" if values.dtype.kind == "U" else values[-1])


def _with(contents: Contents, name: str, column: NDArray[Any]) -> Contents:
    return replace(contents, columns={**contents.columns, name: InMemory(column)})
