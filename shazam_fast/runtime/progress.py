"""A progress line for work of more than two seconds, in terminals and notebooks; elsewhere lines through logging."""

import html
import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

logger = logging.getLogger("shazam_fast")

PATIENCE_SECONDS = 2.0
REDRAW_SECONDS = 0.1


class Bar(Protocol):
    """What a progress line is drawn on."""

    def show(self, done: int, rate: str, note: str) -> None:
        """Draw the units done, the rate and the note."""

    def stop(self) -> None:
        """Take the line away."""


class Progress:
    """Counts finished units of work and shows rate and time left; use it as a context manager.

    Of works inside one another the outermost alone is shown, and tells lines.

    Args:
        description: words in front of the bar.
        total: number of units; None if unknown.
        unit: name of the units, as in "patches".
        done: units finished by an earlier run, which fill the bar but do not count for the rate.
    """

    _open: ClassVar[int] = 0  # works that are going on

    def __init__(self, description: str, total: int | None, unit: str, done: int = 0) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._before = self._done = done
        self._started = time.monotonic()
        self._drawn = self._started + PATIENCE_SECONDS - REDRAW_SECONDS
        self._bar: Bar | None = None
        self._outermost = True

    def advance(self, units: int, note: str = "") -> None:
        """Count `units` more as done; `note` is shown behind the time left."""
        self._done += units
        now = time.monotonic()
        if now - self._drawn < REDRAW_SECONDS or not self._outermost or not can_draw():
            return
        self._drawn, elapsed = now, now - self._started
        if self._bar is None:
            bar = NotebookBar if in_notebook() else TerminalBar
            self._bar = bar(self._description, self._total)
        self._bar.show(self._done, f"{(self._done - self._before) / elapsed:,.0f} {self._unit}/s", note)

    def tell(self, line: str) -> None:
        """Log a line, where no bar can be drawn: to stderr, unless the program has set up logging."""
        if not self._outermost or can_draw():
            return
        if logger.hasHandlers():
            logger.info("%s", line)
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        self._outermost = Progress._open == 0
        Progress._open += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Progress._open -= 1
        if self._bar is not None:
            self._bar.stop()


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, which can show HTML."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


def can_draw() -> bool:
    """Whether somebody looks: stderr is a terminal, or this is a notebook."""
    return sys.stderr.isatty() or in_notebook()


class TerminalBar:
    """A bar on stderr, which leaves nothing behind."""

    def __init__(self, description: str, total: int | None) -> None:
        self._bar = _start_bar(description, total)

    def show(self, done: int, rate: str, note: str) -> None:
        """Draw the units done, the rate and the note."""
        self._bar.update(self._bar.task_ids[0], completed=done, rate=rate, note=note)

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()


class NotebookBar:
    """A bar below a notebook's cell, in HTML; its last state stays."""

    def __init__(self, description: str, total: int | None) -> None:
        from IPython.display import HTML, display

        self._html, self._description, self._total = HTML, description, total
        self._handle = display(HTML(""), display_id=True)

    def show(self, done: int, rate: str, note: str) -> None:
        """Draw the units done, the rate and the note."""
        most = "" if self._total is None else f' max="{self._total}" value="{done}"'
        words = html.escape(f"{rate} {note}".strip())
        self._handle.update(self._html(f"{html.escape(self._description)} <progress{most}></progress> {words}"))

    def stop(self) -> None:
        """Leave the bar as it is."""


def _start_bar(description: str, total: int | None) -> "RichProgress":
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task(description, total=total, rate="", note="")
    bar.start()
    return bar
