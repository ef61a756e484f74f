"""How objects show themselves: names in one line, and a small table for notebooks, in which all text is escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMED = 6  # names in one line


class Plottable:
    """What `shazam_fast.plot` draws."""

    def plot(self, kind: str | None = None, out: str | Path | None = None) -> "Figure":
        """Draw this object; arguments, result and errors are those of `shazam_fast.plot`."""
        from .. import plot

        return plot(self, kind, out)  # type: ignore[arg-type]  # it says which objects it draws


def name_some(names: Iterable[object], most: int = MOST_NAMED) -> str:
    """The first names, and how many more there are.

    Args:
        names: what is listed.
        most: how many are written out.

    >>> name_some("abc", most=2)
    'a, b and 1 more'
    """
    listed = [str(name) for name in names]
    more = f" and {len(listed) - most:,} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def counted(n: int, noun: str) -> str:
    """A number and what is counted; in the plural unless the number is 1.

    Args:
        n: the number.
        noun: what is counted, in the singular.

    >>> counted(1, "patch"), counted(12000, "patch"), counted(0, "class"), counted(2, "epoch")
    ('1 patch', '12,000 patches', '0 classes', '2 epochs')
    """
    plural = "" if n == 1 else "es" if noun.endswith(("tch", "s", "x")) else "s"
    return f"{n:,} {noun}{plural}"


def summary_html(
    title: str, facts: Mapping[str, object], head: Sequence[str] = (), rows: Iterable[Sequence[object]] = ()
) -> str:
    """HTML of a title, a line per fact, and a table; all of it escaped.

    Args:
        title: what the object is.
        facts: name -> value; values that are "" are left out.
        head: names of the table's columns; none: no table.
        rows: the table's rows.

    >>> summary_html("Scores", {"slides": 2, "note": "a < b"})
    '<p><b>Scores</b></p><table><tr><th>slides</th><td>2</td></tr><tr><th>note</th><td>a &lt; b</td></tr></table>'
    """
    lines = "".join(f"<tr>{_cell(name, 'th')}{_cell(value)}</tr>" for name, value in facts.items() if value != "")
    parts = (
        [f"<p><b>{html.escape(title)}</b></p>", f"<table>{lines}</table>"]
        if facts
        else [f"<p>{html.escape(title)}</p>"]
    )
    if head:
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        parts.append(f"<table><tr>{''.join(_cell(name, 'th') for name in head)}</tr>{body}</table>")
    return "".join(parts)


def _cell(value: object, tag: str = "td") -> str:
    return f"<{tag}>{html.escape(str(value))}</{tag}>"
