"""Convert a column that a user gives to one form: text ("" unknown) or whole numbers (-1 unknown).

Every column goes through `normalise`, wherever it comes from: lists, NumPy arrays of any kind, pandas columns (object,
nullable, categorical), tensors, cells of CSV and Excel files.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError

# Text that means "not known": what pandas reads as missing. "none" and "unknown" are names like others.
MISSING = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "None",
    "n/a", "null",
))  # fmt: skip
NOT_A_NUMBER = ("nan", "-nan", "nat")  # in any case
WHOLE_FLOAT = re.compile(r"[+-]?[0-9]+\.0*")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
DIGITS = re.compile(r"([0-9]+)")
LONGEST_NUMBER = 64  # characters; longer ones are refused before they are converted
TEXT_SHOWN = 60  # characters of a value that a message quotes


@dataclass(frozen=True)
class Unreadable:
    """A cell that cannot be used, with the reason; an error only if its column is asked for."""

    reason: str


def normalise(values: Any, what: str) -> NDArray[np.str_] | NDArray[np.int64]:
    """A column as text or as whole numbers.

    Args:
        values: [n] of any kind. None, NaN, pandas.NA, masked entries and the text that pandas reads as missing
            ("", "NA", "N/A", "NaN", "None", ...) are unknown. Blanks around text are dropped (and must not be
            all that two differ in); equal text in different compositions of Unicode becomes one. True and False become
            text.
        what: the column's name for messages, such as "labels".

    Returns:
        int64 [n] where all known values are numbers (not text), -1 for unknown; else text [n], "" for unknown.

    Raises MismatchError, quoting the value and its row, for a number that is not whole, for what is neither text nor a
    number, and for text with zero bytes; for texts that differ in blanks around them alone; with the shape found when
    that is not [n].

    >>> normalise(["tumour", None, float("nan")], "labels").tolist()
    ['tumour', '', '']
    >>> normalise([1.0, None, 0], "labels").tolist()
    [1, -1, 0]
    """
    array = _as_array(values, what)
    if array.ndim != 1:
        raise MismatchError(f"{what}: one value per row expected, found an array of shape {array.shape}")
    if array.dtype.kind not in "biufUSO":
        raise MismatchError(f"{what}: text or whole numbers expected, found {array.dtype}")
    if array.dtype.kind in "iu":
        return _whole(array, what)
    if array.dtype.kind == "f":
        return _whole_floats(array, what)
    return _normalise_cells(array.tolist(), what)


def _normalise_cells(given: list[Any], what: str) -> NDArray[np.str_] | NDArray[np.int64]:
    cells = [cell_of(value, f"{what}: row {row}") for row, value in enumerate(given)]
    require_distinct(given, what)
    known_cells = [cell for cell in cells if cell != ""]
    if known_cells and all(isinstance(cell, int) for cell in known_cells):
        return _whole(np.array([-1 if cell == "" else cell for cell in cells], dtype=object), what)
    return np.array([str(cell) for cell in cells], dtype=np.str_)


def category_order(values: Any) -> tuple[str, ...] | None:
    """The names of an ordered pandas categorical's categories, in their order; None for anything else.

    Args:
        values: a column of any kind; pandas is not imported.

    >>> category_order(["low", "high"])
    """
    dtype = getattr(values, "dtype", None)
    if dtype is None or not getattr(dtype, "ordered", False):
        return None
    return tuple(without_decimals(normalise(list(dtype.categories), "categories").astype(np.str_)).tolist())


def cell_of(value: Any, place: str) -> str | int:
    """One value as text or as a whole number; "" is unknown. Raises MismatchError for what is neither, at `place`."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise MismatchError(f"{place}: text in UTF-8 expected, found {quote(value)}") from None
    if isinstance(value, str | PurePath):
        if "\0" in str(value):
            raise MismatchError(f"{place}: text without zero bytes expected, found {quote(str(value))}")
        return clean_text(str(value))
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return ""
        return int(value) if math.isfinite(value) and float(value).is_integer() else repr(float(value))
    if isinstance(value, Unreadable):
        raise MismatchError(f"{place}: {value.reason}")
    raise MismatchError(f"{place}: text or a number expected, found {quote(value)} ({type(value).__name__})")


def clean_text(text: str) -> str:
    """Text in one spelling: composed characters, no blanks around it; "" where it means that nothing is known."""
    text = text.strip()
    if text in MISSING or text.lower() in NOT_A_NUMBER:
        return ""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def require_distinct(values: Iterable[Any], what: str, spelt: dict[str, str] | None = None) -> None:
    """Raise MismatchError when two texts differ in the blanks around them alone, and so would become one name.

    `spelt` holds the texts of earlier calls that belong together, by what becomes of them, and gets those of this call.
    """
    spelt = {} if spelt is None else spelt
    for value in dict.fromkeys(value for value in values if isinstance(value, str)):
        if (other := spelt.setdefault(value.strip(), value)) != value and value.strip():
            raise MismatchError(
                f"{what}: {quote(other)} and {quote(value)} differ in the blanks around them alone and would be one "
                "name; write it in one way, or give them two names"
            )


def without_decimals(column: NDArray[np.str_]) -> NDArray[np.str_]:
    """Text "1.0", "2.0" as "1", "2", where all known values are whole numbers: a table with empty cells made floats."""
    known = column[column != ""].tolist()
    if not any(WHOLE_FLOAT.fullmatch(text) for text in known):
        return column
    if not all(WHOLE_FLOAT.fullmatch(text) or WHOLE_FLOAT.fullmatch(text + ".") for text in known):
        return column
    return np.array([text.partition(".")[0] for text in column.tolist()], dtype=np.str_)


def is_number(text: str) -> bool:
    """Whether the text is a decimal number, in ASCII digits."""
    return len(text) <= LONGEST_NUMBER and NUMBER.fullmatch(text) is not None


def read_numbers(texts: Sequence[str], places: Iterable[str]) -> NDArray[np.float64]:
    """Texts [n] as float64 [n]. Raises MismatchError, with the place, for text that is not a finite number."""
    out = np.empty(len(texts), dtype=np.float64)
    for row, (text, place) in enumerate(zip(texts, places, strict=True)):
        if not is_number(text) or not math.isfinite(value := float(text)):
            raise MismatchError(f"{place}: a number expected, found {quote(text)}")
        out[row] = value
    return out


def natural_key(name: str) -> tuple[tuple[object, ...], str]:
    """Key that sorts names as people do: "grade 2" before "grade 10", numbers by value.

    >>> sorted(["10", "2", "b", "a10", "a9"], key=natural_key)
    ['2', '10', 'a9', 'a10', 'b']
    """
    pieces: list[object] = [*DIGITS.split(name)]  # text, digits, text, ...
    for i in range(1, len(pieces), 2):
        digits = str(pieces[i]).lstrip("0")
        pieces[i] = (len(digits), digits)  # compares like the number, which may be too long to convert
    return tuple(pieces), name


def quote(value: object) -> str:
    """The value as a message shows it: quoted, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an int beyond the limit of digits
        return "a number of too many digits"
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]}... ({len(text)} characters)"


def _as_array(values: Any, what: str) -> NDArray[Any]:
    if isinstance(values, str | bytes | dict | set):
        raise MismatchError(f"{what}: one value per row expected, found {quote(values)} ({type(values).__name__})")
    if isinstance(values, list | tuple) or np.ma.isMaskedArray(values):
        entries = values.tolist() if np.ma.isMaskedArray(values) else values  # None where masked
        if any(isinstance(entry, list | tuple) or getattr(entry, "ndim", 0) for entry in entries):
            raise MismatchError(f"{what}: one value per row expected, found rows of several values")
        array = np.empty(len(entries), dtype=object)
        array[:] = [entry.item() if hasattr(entry, "item") else entry for entry in entries]
        return array
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MismatchError(f"{what}: one value per row expected, found {type(values).__name__}: {error}") from None


def _whole_floats(array: NDArray[np.floating[Any]], what: str) -> NDArray[np.int64]:
    known = ~np.isnan(array)
    wrong = np.flatnonzero(known & ~(np.isfinite(array) & (array == np.floor(array))))
    if wrong.size:
        raise MismatchError(f"{what}: row {wrong[0]}: a whole number expected, found {array[wrong[0]]}")
    return _whole(np.where(known, array, -1), what)


def _whole(array: NDArray[Any], what: str) -> NDArray[np.int64]:
    limits = np.iinfo(np.int64)
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        row = int(np.argmax([not limits.min <= value <= limits.max for value in array.tolist()]))
        raise MismatchError(f"{what}: row {row}: a number of at most 64 bits expected, found {quote(array[row])}")
    return array.astype(np.int64)
