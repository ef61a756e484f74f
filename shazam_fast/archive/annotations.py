"""Labels, splits and groups for archives whose files hold none: from CSV files, mappings, arrays or folder names."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import MismatchError
from ..formats.pieces import Contents, InMemory
from ..runtime.tables import GROUP_COLUMNS, LABEL_COLUMNS, SLIDE_COLUMNS, SPLIT_COLUMNS, column_of, read_csv, stem
from .columns import encode_labels, encode_names, encode_splits, infer_classes
from .splits import GroupedSplit, require_whole_groups

logger = logging.getLogger("shazam_fast")

FOLDER = "folder"

Given = str | Path | Mapping[str, Any] | ArrayLike | None


def annotate(
    contents: Contents,
    labels: Given = None,
    splits: Given | GroupedSplit = None,
    groups: Given = None,
    classes: Sequence[str] | None = None,
) -> Contents:
    """The contents with columns for what was given; see `shazam_fast.open` for what each may be.

    Raises MismatchError when names or counts do not fit, or the split cuts a group; ArchiveError for an unreadable CSV.
    """
    rows = int(contents.blocks[0].table[:, 2].sum())
    archive = _Rows(contents, rows)
    columns: dict[str, NDArray[Any]] = {}
    if labels is not None:
        names = archive.values(labels, LABEL_COLUMNS, "labels")
        contents, columns["label"] = _encode(contents, names, classes)
    if groups is None and isinstance(labels, str | Path) and str(labels) != FOLDER:
        groups = labels if column_of(read_csv(Path(labels)), GROUP_COLUMNS) else None  # the patient stands beside it
    if groups is not None:
        group_names = archive.values(groups, GROUP_COLUMNS, "groups").astype(str)
        unique, codes = np.unique(group_names[group_names != ""], return_inverse=True)
        columns["group"] = np.full(rows, -1, dtype=np.int32)
        columns["group"][group_names != ""] = codes
        contents = replace(contents, groups=tuple(unique.tolist()))
    contents = replace(contents, columns={**contents.columns, **{n: InMemory(c) for n, c in columns.items()}})
    if splits is not None:
        column = _splits(contents, archive, splits, rows)
        contents = replace(contents, columns={**contents.columns, "split": InMemory(column)})
    return contents


def _splits(contents: Contents, archive: "_Rows", splits: Given | GroupedSplit, rows: int) -> NDArray[np.uint8]:
    kind, names = ("group", contents.groups) if contents.groups else ("slide", contents.slides)
    groups = contents.columns[kind]().astype(np.int32) if kind in contents.columns and names else None
    if isinstance(splits, GroupedSplit):
        if groups is None:
            raise MismatchError(
                f"{contents.path}: a grouped split needs patients or slides; give groups=, "
                "or splits= as an array if the patches are independent"
            )
        if "label" not in contents.columns:
            raise MismatchError(f"{contents.path}: a stratified split needs labels; give labels=")
        return splits.assign(contents.columns["label"]().astype(np.int64), groups)
    names_of_splits = archive.values(splits, SPLIT_COLUMNS, "splits")
    if names_of_splits.dtype.kind in "OUS":
        names_of_splits = np.where(names_of_splits == "", "none", names_of_splits.astype(str))
    column = encode_splits(names_of_splits)
    assert column is not None
    if groups is not None and contents.groups:
        require_whole_groups(column, groups, names)
    return column.astype(np.uint8)


@dataclass
class _Rows:
    """The rows of an archive, to which values are given by slide, by patch or one by one."""

    contents: Contents
    n_rows: int

    def values(self, given: Any, columns: tuple[str, ...], what: str) -> NDArray[Any]:
        """One value a row, "" where there is none; numbers stay numbers where an array was given."""
        if isinstance(given, str) and given == FOLDER:
            return self.contents.folders()
        if isinstance(given, str | Path):
            return self._from_csv(Path(given), columns, what)
        if isinstance(given, Mapping):
            return self._by_slide({stem(k): str(v) for k, v in given.items()}, what, "the mapping")
        array = np.asarray(given)
        if array.shape != (self.n_rows,):
            raise MismatchError(f"{self.contents.path}: {what} of shape ({self.n_rows},) expected, found {array.shape}")
        return array

    def _from_csv(self, path: Path, columns: tuple[str, ...], what: str) -> NDArray[Any]:
        table = read_csv(path)
        if columns is SPLIT_COLUMNS and {"train", "val"} <= table.keys():
            return self._by_slide(_clam_splits(path, table), what, path)
        value, slide = column_of(table, columns), column_of(table, SLIDE_COLUMNS)
        if value is None or slide is None:
            raise MismatchError(
                f"{path}: a column of {'/'.join(SLIDE_COLUMNS)} and one of {'/'.join(columns)} expected, "
                f"found {', '.join(table)}"
            )
        if {"x", "y"} <= table.keys():
            keys = zip(map(stem, table[slide]), map(int, table["x"]), map(int, table["y"]), strict=True)
            return self._by_patch(dict(zip(keys, table[value], strict=True)), what, path)
        return self._by_slide(dict(zip(map(stem, table[slide]), table[value], strict=True)), what, path)

    def _by_slide(self, values: Mapping[str, str], what: str, where: object) -> NDArray[Any]:
        names = [stem(slide) for slide in self.contents.slides]
        missing = [name for name in names if name not in values]
        if not names or len(missing) == len(names):
            raise MismatchError(
                f"{self.contents.path}: none of its {len(names)} slides ({', '.join(names[:3])}, ...) "
                f"has {what} in {where} ({', '.join(list(values)[:3])}, ...)"
            )
        if missing:
            logger.warning(
                "%d of %d slides have no %s in %s, %r first", len(missing), len(names), what, where, missing[0]
            )
        of_slide = np.array([values.get(name, "") for name in names])
        return of_slide[self.contents.columns["slide"]().astype(np.int64)]

    def _by_patch(self, values: Mapping[tuple[str, int, int], str], what: str, where: object) -> NDArray[Any]:
        if not {"slide", "coords"} <= self.contents.columns.keys():
            raise MismatchError(f"{self.contents.path}: {where} labels patches by position; the archive has no coords")
        names = [stem(slide) for slide in self.contents.slides]
        slides, coords = self.contents.columns["slide"]().tolist(), self.contents.columns["coords"]().tolist()
        found = [values.get((names[s], int(x), int(y)), "") for s, (x, y) in zip(slides, coords, strict=True)]
        if not any(found):
            raise MismatchError(f"{self.contents.path}: none of its patches has {what} in {where}")
        if not all(found):
            logger.warning("%d of %d patches have no %s in %s", found.count(""), len(found), what, where)
        return np.array(found)


def _encode(
    contents: Contents, names: NDArray[Any], classes: Sequence[str] | None
) -> tuple[Contents, NDArray[np.int64]]:
    if names.dtype.kind not in "US":
        classes = infer_classes(names) if classes is None else tuple(classes)
        codes = encode_labels(names, tuple(classes))
        assert codes is not None
        return replace(contents, classes=tuple(classes)), codes.astype(np.int64)
    classes, labels = encode_names(names, classes)
    return replace(contents, classes=classes), labels


def _clam_splits(path: Path, table: Mapping[str, list[str]]) -> dict[str, str]:
    """CLAM's splits_k.csv (columns train, val, test of slide names) or splits_k_bool.csv (one row a slide)."""
    named = [split for split in ("train", "val", "test") if split in table]
    if {value.lower() for split in named for value in table[split]} <= {"true", "false", ""}:
        slides = next(iter(table.values()))
        pairs = [(slide, s) for s in named for slide, on in zip(slides, table[s], strict=True) if on.lower() == "true"]
    else:
        pairs = [(slide, split) for split in named for slide in table[split] if slide]
    splits: dict[str, str] = {}
    for slide, split in pairs:
        if splits.setdefault(stem(slide), split) != split:
            raise MismatchError(f"{path}: slide {slide!r} is in {splits[stem(slide)]} and in {split}")
    return splits
