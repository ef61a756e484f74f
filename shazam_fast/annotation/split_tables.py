"""Tables of splits as tools write them.

CLAM         splits_k.csv: columns train, val and test of slides' names
             splits_k_bool.csv: one row per slide, True or 1 in one of the columns train, val and test
Patho-Bench  k=all.tsv: one row per slide, columns fold_0, fold_1, ... of "train" and "test"
others       one row per slide (patch, patient) with a column split, set or subset (torchmil's splits.csv)
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MismatchError
from ..tables.reader import FOLD, Table
from .columns import split_of

FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": False}
PARTS = ("train", "val", "test")


def split_column(splits: Any) -> tuple[Any, str | None]:
    """What a user gave as splits, without the column of "path:column"; and that column, None without one."""
    if isinstance(splits, str | Path) and not Path(splits).exists():
        path, _, column = str(splits).rpartition(":")
        if path and Path(path).is_file():
            return path, column
    return splits, None


def split_table(table: Table, column: str | None) -> tuple[Table, str]:
    """A table with one split per row, and the column that holds it.

    Args:
        table: as the tools above write it.
        column: the column to take, such as "fold_0"; found by its name where None.

    Raises MismatchError when there is no column of splits, or several folds and none is chosen.
    """
    if column is not None:
        return table, table.require(column, "splits")
    if (header := table.find("split")) is not None:
        return table, header
    parts = {header: split_of(header) for header in table.columns if split_of(header) in PARTS}
    if len(set(parts.values())) > 1:
        return _rows_of_parts(table, parts), "split"
    folds = [header for header in table.columns if FOLD.fullmatch(header)]
    if folds:
        raise MismatchError(f"{table.where}: {len(folds)} folds; choose one, as in splits='{table.where}:{folds[0]}'")
    raise MismatchError(
        f"{table.where}: a column split (or set, subset), columns train, val, test, or fold_0, ... expected, found "
        f"{table.headers}"
    )


def _rows_of_parts(table: Table, parts: dict[str, str]) -> Table:
    """CLAM's table of columns train, val, test (header -> split) with one split per row."""
    if len(set(parts.values())) < len(parts):
        raise MismatchError(f"{table.where}: several columns for one split: {', '.join(parts)}; remove one")
    columns = {header: table.texts(header).tolist() for header in parts}
    known = [text for texts in columns.values() for text in texts if text]
    if all(text.lower() in FLAGS for text in known):
        if len(set(known)) == len(known):
            raise MismatchError(f"{table.where}: cannot tell whether {', '.join(known)} are names of slides or flags")
        return _rows_of_flags(table, parts, columns)
    stated = [(row, text, parts[header]) for header in parts for row, text in enumerate(columns[header]) if text]
    return Table(
        table.where,
        {"slide": [text for _, text, _ in stated], "split": [split for *_, split in stated]},
        [table.rows[row] for row, *_ in stated],
    )


def _rows_of_flags(table: Table, parts: dict[str, str], columns: dict[str, list[str]]) -> Table:
    others = [header for header in table.columns if header not in parts]
    names = table.find("slide") or (others[0] if len(others) == 1 else None)
    if names is None:
        raise MismatchError(f"{table.where}: one column of slides beside {', '.join(parts)} expected, found {others}")
    flags = np.array([[FLAGS[text.lower()] for text in columns[header]] for header in parts])  # [parts, rows]
    if (twice := np.flatnonzero(flags.sum(axis=0) > 1)).size:
        row = int(twice[0])
        both = [split for split, on in zip(parts.values(), flags[:, row], strict=True) if on]
        raise MismatchError(f"{table.place(row)}: slide {table.columns[names][row]!r} is in {' and in '.join(both)}")
    splits = np.where(flags.any(axis=0), np.array(list(parts.values()))[flags.argmax(axis=0)], "none")
    return Table(table.where, {"slide": table.columns[names], "split": splits.tolist()}, table.rows)
