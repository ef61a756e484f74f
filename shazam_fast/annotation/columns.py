"""Labels, splits, slides and groups as users give them: checked, and encoded as archives store them."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchiveError, MismatchError
from ..formats.pieces import COLUMNS, SPLITS
from ..tables.cells import DIGITS, category_order, is_number, natural_key, normalise, require_distinct, without_decimals

logger = logging.getLogger("shazam_fast")

MAX_CLASSES = 65_536  # largest number of classes where labels name them
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "validate": "val",
    "tune": "val", "tuning": "val", "dev": "val", "development": "val", "test": "test", "testing": "test",
    "none": "none", "": "none",
}  # fmt: skip


def check_column(name: str, column: NDArray[Any] | None, rows: int, first_row: int = 0) -> None:
    """Check an encoded column before it is stored, so that no value is cut to its type.

    Args:
        name: "label", "split", "slide", "group" or "coords".
        column: [rows] or, for coords, [rows, 2]; None where nothing is known.
        rows: the number of patches.
        first_row: the first patch's row in the archive, for messages.

    Raises MismatchError for another shape, for values that are no integers, and for one that its type cannot hold.
    """
    if column is None:
        return
    dtype, shape = COLUMNS[name][0], (rows, *COLUMNS[name][1])
    if column.shape != shape:
        raise MismatchError(f"{name}: shape {shape} expected for {rows} rows, found {column.shape}")
    if column.dtype.kind not in "iu":
        raise MismatchError(f"{name}: integers expected, found {column.dtype}")
    limits = np.iinfo(str(dtype))
    wrong = np.argwhere((column < limits.min) | (column > limits.max))
    if len(wrong):
        raise MismatchError(
            f"{name}: row {first_row + wrong[0][0]}: {limits.min} to {limits.max} expected ({dtype}), "
            f"found {column[tuple(wrong[0])]}"
        )


def check_lengths(path: str | Path, columns: Mapping[str, NDArray[Any]], rows: int, at_least: bool) -> None:
    """Raise MismatchError unless every column has `rows` entries (or more, while rows are still coming)."""
    for name, column in columns.items():
        if len(column) < rows or (len(column) > rows and not at_least):
            raise MismatchError(f"{path}: {name} has {len(column)} entries for {rows} rows of features")


def encode_labels(
    labels: Any,
    classes: Sequence[str] | None,
    place: Callable[[int], str] = "labels: row {}".format,
    order: Sequence[str] | None = None,
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Classes, and the class index of every label.

    Args:
        labels: [n] of any kind, see `normalise`.
        classes: names in label order. Labels that are whole numbers (not text) are then indices of these names, and so
            is text of whole numbers where no class is a number. None: the classes are the distinct labels, numbers
            included, in natural order ("2" before "10"), or in the order of an ordered pandas categorical.
        place: entry -> words for its place, for messages.
        order: names in the order that classes are to have where `classes` is None.

    Returns:
        The names of classes, and int64 [n], -1 for unknown.

    Raises MismatchError, naming the value and its place, for a label that is not a class, out of range, a fraction, or
    negative; for whole numbers with classes that are numbers in another order, as both readings are possible; for more
    than 65,536 classes; and for class names that are empty or not distinct.

    >>> encode_labels(["grade 10", None, "grade 2"], None)
    (('grade 2', 'grade 10'), array([ 1, -1,  0]))
    >>> encode_labels([2, 1, -1], None)
    (('1', '2'), array([ 1,  0, -1]))
    """
    column = normalise(labels, "labels")
    if classes is None:
        return _encode_distinct(column, place, category_order(labels) if order is None else order)
    classes = check_classes(classes)
    if column.dtype.kind == "i":
        _require_indexable(classes)
        return classes, check_label_indices(column.astype(np.int64), classes, place)
    return classes, _encode_names(column.astype(np.str_), classes, place)


def label_indices(labels: Any, classes: Sequence[str]) -> NDArray[np.int64]:
    """The class index of every label [n], given as name or, by any number that is not text, as index; -1 for unknown.

    Raises MismatchError, naming the value and its row, for a label that is no class.
    """
    column = normalise(labels, "labels")
    if column.dtype.kind == "i":
        return check_label_indices(column.astype(np.int64), tuple(classes))
    return encode_labels(column, classes)[1]


def _encode_distinct(
    column: NDArray[Any], place: Callable[[int], str], order: Sequence[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The distinct labels as classes, and the class index of every label."""
    numbers = column.dtype.kind == "i"
    values, first, inverse = np.unique(
        column if numbers else without_decimals(column), return_index=True, return_inverse=True
    )
    names = ["" if value == -1 else str(value) for value in values.tolist()]
    known = {name: int(row) for name, row in zip(names, first, strict=True) if name}
    if len(known) > MAX_CLASSES:
        raise MismatchError(
            f"{place(0)}: {len(known)} different labels found, at most {MAX_CLASSES} classes expected; labels are "
            "classes, not measurements"
        )
    _require_class_names(known, place)
    rank = {name: position for position, name in enumerate(order or ())}
    classes = tuple(sorted(known, key=lambda name: (rank.get(name, len(rank)), natural_key(name))))
    _say_alike(classes, "classes")
    codes = {name: code for code, name in enumerate(classes)} | {"": -1}
    return classes, np.array([codes[name] for name in names], dtype=np.int64)[inverse.reshape(-1)]


def _encode_names(column: NDArray[np.str_], classes: tuple[str, ...], place: Callable[[int], str]) -> NDArray[np.int64]:
    """The class index of every label given as text: a class's name, or its index where no class is a number."""
    names, first, inverse = np.unique(without_decimals(column), return_index=True, return_inverse=True)
    known = {name: int(row) for name, row in zip(names.tolist(), first.tolist(), strict=True) if name}
    if not known.keys() <= set(classes) and are_indices(known, classes):
        numbers = np.array([int(name or -1) for name in names.tolist()], dtype=np.int64)[inverse.reshape(-1)]
        return check_label_indices(numbers, classes, place)
    codes = {name: code for code, name in enumerate(classes)} | {"": -1}
    if unknown := [name for name in known if name not in codes]:
        raise MismatchError(
            f"{place(known[unknown[0]])}: labels {unknown[:5]} are not among the classes {list(classes)}"
        )
    return np.array([codes[name] for name in names.tolist()], dtype=np.int64)[inverse.reshape(-1)]


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names as a user gives them. Raises MismatchError unless they are a list of distinct names."""
    if isinstance(classes, str):
        raise MismatchError(f"classes: a list of names expected, found the text {classes!r}; write [{classes!r}]")
    names = tuple(str(name) for name in normalise(list(classes), "classes").tolist())
    if "" in names or len(set(names)) < len(names):
        raise MismatchError(f"classes: distinct names expected, found {list(classes)}")
    return names


def encode_splits(splits: Any, place: Callable[[int], str] = "splits: row {}".format) -> NDArray[np.uint8]:
    """Codes [n] of splits given as codes (0 train, 1 val, 2 test, 255 none) or as words, in any case.

    Raises MismatchError, naming the value and its place, for any other.

    >>> encode_splits(["Training", "valid", "test", None]).tolist()
    [0, 1, 2, 255]
    """
    column = normalise(splits, "splits")
    if column.dtype.kind == "i":
        codes = np.where(column == -1, SPLITS["none"], column)
        wrong = np.flatnonzero(~np.isin(codes, list(SPLITS.values())))
    else:
        words, inverse = np.unique(column, return_inverse=True)
        codes = np.array([SPLITS.get(split_of(word), -1) for word in words.tolist()], dtype=np.int64)[
            inverse.reshape(-1)
        ]
        wrong = np.flatnonzero(codes < 0)
    if wrong.size:
        raise MismatchError(
            f"{place(int(wrong[0]))}: unknown split {column[wrong[0]].item()!r}; use train, val, test or none"
        )
    return codes.astype(np.uint8)


def split_of(word: str) -> str:
    """The split that a word means: "train", "val", "test" or "none"; the word itself where it means none of them."""
    return SPLIT_WORDS.get(word.casefold(), word)


def encode_names(names: Any, what: str) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Distinct names of slides or groups in natural order, and the index of every entry's name [n], -1 for unknown."""
    texts = names_of(names, what)
    unique, inverse = np.unique(texts, return_inverse=True)
    ordered = sorted((name for name in unique.tolist() if name), key=natural_key)
    _say_alike(ordered, what)
    codes = {name: code for code, name in enumerate(ordered)} | {"": -1}
    return tuple(ordered), np.array([codes[name] for name in unique.tolist()], dtype=np.int32)[inverse.reshape(-1)]


def names_of(names: Any, what: str, spelt: dict[str, str] | None = None) -> NDArray[np.str_]:
    """Names [n] as text, "" for unknown. Numbers are names too; -1 among them is unknown.

    `spelt` is for names that come in several calls, see `require_distinct`.
    """
    column = normalise(names, what)
    if spelt is not None and column.dtype.kind == "U":
        require_distinct(np.asarray(names, dtype=object).tolist(), what, spelt)
    return np.where(column == -1, "", column.astype(np.str_)) if column.dtype.kind == "i" else column.astype(np.str_)


def check_indices(path: str | Path, name: str, column: NDArray[Any], names: int, first_row: int = 0) -> None:
    """Raise ArchiveError, naming the row, unless a stored column holds -1 (unknown) or indices of `names` names."""
    wrong = np.flatnonzero((column < -1) | (column >= names))
    if wrong.size:
        raise ArchiveError(
            f"{path}: {name} {column[wrong[0]]} in row {first_row + wrong[0]} is out of range: "
            f"the archive has {names} {'classes' if name == 'label' else name + 's'}"
        )


def check_label_indices(
    indices: NDArray[np.int64], classes: tuple[str, ...], place: Callable[[int], str] = "labels: row {}".format
) -> NDArray[np.int64]:
    """Labels that are indices of classes, -1 for unknown, as they are. Raises MismatchError for one out of range."""
    wrong = np.flatnonzero((indices < -1) | (indices >= len(classes)))
    if wrong.size:
        named = f"of the classes {list(classes)[:8]}" if classes else "of a class, and there are none: give classes="
        raise MismatchError(
            f"{place(int(wrong[0]))}: label {indices[wrong[0]]} found, -1 (unknown) to {len(classes) - 1} allowed: the "
            f"index {named}"
        )
    return indices


def _require_indexable(classes: Sequence[str]) -> None:
    """Refuse whole numbers as labels where a class is called as another one's index."""
    if any(is_number(name) and name != str(code) for code, name in enumerate(classes)):
        raise MismatchError(
            f"labels: whole numbers could be names or indices of the classes {list(classes)[:8]}; give them as text, "
            "such as '1', to mean the names"
        )


def _say_alike(names: Sequence[str], what: str) -> None:
    """Warn of names that differ in case alone."""
    folded: dict[str, str] = {}
    for name in names:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            logger.warning("%s %r and %r differ in case alone and are two", what, other, name)


def are_indices(known: Iterable[str], classes: Sequence[str]) -> bool:
    """Whether labels, whole numbers as text, are indices of the classes: none of these is a number."""
    return not any(map(is_number, classes)) and all(DIGITS.fullmatch(name) and len(name) < 10 for name in known)


def _require_class_names(known: Mapping[str, int], place: Callable[[int], str]) -> None:
    """Refuse labels that are all numbers, and not all whole ones from 0."""
    wrong = next((name for name in known if not DIGITS.fullmatch(name)), None)
    if wrong is not None and all(map(is_number, known)):
        raise MismatchError(
            f"{place(known[wrong])}: labels are names or whole numbers from 0, found {wrong!r}; leave the cell empty "
            "where a label is unknown, or name all classes with classes="
        )
