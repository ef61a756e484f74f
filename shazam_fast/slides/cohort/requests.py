"""What a user asks to be predicted: classes, values or survival; and the table in which it stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ShazamError
from ...tables.reader import Table, is_frame, read_table, table_of_frame, table_of_mapping

Source = str | Path | Mapping[str, Any] | Any  # a table's path, {slide or patient: value}, a DataFrame or a Series


@dataclass(frozen=True)
class Classes:
    """One class per slide or patient; or several, one per column, such as the mutations of several genes.

    Args:
        source: a table (CSV or .xlsx, or a DataFrame) with a column of slides or of patients and one of labels; or
            {slide: label}, or a Series with slides as its index. Empty cells are unknown.
        column: the column of labels, where it has no usual name (label, target, class, diagnosis); or a list of
            columns, which one model predicts together. A slide may lack some of them.
        classes: class names in label order; of several columns {column: class names}. In natural order by default.

    Raises ShazamError when columns are given twice, or `classes` does not fit them.

    >>> Classes({"s1": "luad", "s2": "lusc"}).column is None
    True
    >>> Classes("genes.csv", ["TP53", "EGFR"], {"TP53": ["wild", "mutated"]}).classes_of("TP53")
    ('wild', 'mutated')
    """

    source: Source
    column: str | Sequence[str] | None = None
    classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise ShazamError(f"classes: a list of class names expected, found {self.classes!r}")
        if not self.several:
            if isinstance(self.classes, Mapping):
                raise ShazamError("classes: a list of class names expected; {column: names} is for a list of columns")
            return
        object.__setattr__(self, "column", read_names("column", self.column))
        if self.classes is not None and not isinstance(self.classes, Mapping):
            raise ShazamError("classes: {column: class names} expected beside several columns, found a list")
        for name in self.classes or ():
            if name not in self.columns:
                raise ShazamError(f"classes: {name!r} is not among the columns {list(self.columns)}")

    @property
    def several(self) -> bool:
        """Whether a list of columns is given."""
        return self.column is not None and not isinstance(self.column, str)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, where a list of them is given; else none."""
        return tuple(self.column) if self.several and self.column is not None else ()

    def classes_of(self, column: str | None) -> tuple[str, ...] | None:
        """Class names of a column (None: the only one), where they are given."""
        found = self.classes.get(column or "") if isinstance(self.classes, Mapping) else self.classes
        return None if found is None else tuple(found)


@dataclass(frozen=True)
class Regression:
    """One or several numbers per slide or patient, such as the expression of genes.

    Args:
        source: a table (CSV or .xlsx, or a DataFrame) with a column of slides or of patients. Empty cells are unknown;
            a slide may lack some of the numbers.
        columns: the columns of numbers, which one model predicts together.
        log2: take log2(value + 1), as is usual for expression in TPM; values must be 0 or more.

    Raises ShazamError when no column is given, or one is given twice.

    >>> Regression("expression.csv", ["TP53", "EGFR"], log2=True).columns
    ('TP53', 'EGFR')
    """

    source: Source
    columns: str | Sequence[str]
    log2: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", read_names("columns", self.columns))


@dataclass(frozen=True)
class Survival:
    """A time per slide or patient, and whether it ends with the event (death, relapse) or with censoring.

    Args:
        source: a table (CSV or .xlsx, or a DataFrame) with a column of slides or of patients. Empty cells are unknown.
        time: the column of times, numbers above 0 in any one unit.
        event: the column that says whether the event was observed. It has two values.
        observed: the value of that column that means that the event was observed; the other means censored. It must be
            given, since some tables (MCAT's and those that follow it) mark the censored with 1.

    >>> Survival("clinical.csv", time="os_months", event="censorship", observed="0").observed
    '0'
    """

    source: Source
    time: str
    event: str
    observed: str | int | bool


Request = Classes | Regression | Survival


def read_names(option: str, given: Any) -> tuple[str, ...]:
    """Column names, of which there is one or more, none of them twice. `option` is what the user set."""
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ShazamError(f"{option}: the name of a column or a list of them expected, found {given!r}")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ShazamError(f"{option}: column {twice[0]!r} is given twice; give it once")
    return names


def read_targets(targets: Request | Source) -> tuple[Request, Table]:
    """What was asked for and its table; anything but Classes, Regression and Survival is a source of classes.

    Raises ArchiveError for a table that cannot be read, ShazamError for what is no table.
    """
    wanted = targets if isinstance(targets, Request) else Classes(targets)
    source = wanted.source
    if isinstance(source, str | Path):
        return wanted, read_table(source)
    if is_frame(source):
        return wanted, table_of_frame(source)
    one_column = isinstance(wanted, Classes) and not wanted.several
    if hasattr(source, "to_dict") and not isinstance(source, Mapping):  # a Series
        source = source.to_dict()
    if isinstance(source, Mapping) and one_column:
        return wanted, table_of_mapping(source, "label", "the targets")
    raise ShazamError(
        f"targets: a table (a path or a DataFrame){', or {slide: label}' if one_column else ''} "
        f"expected, found {type(source).__name__}"
    )
