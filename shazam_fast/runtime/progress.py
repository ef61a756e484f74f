"""A progress line for work of more than two seconds; none if stderr is not a terminal."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PATIENCE_SECONDS = 2.0
REDRAW_SECONDS = 0.1


class Progress:
    """Counts finished units of work and shows rate and time left; use it as a context manager.

    Args:
        description: words in front of the bar.
        total: number of units; None if unknown.
        unit: name of the units, as in "patches".
        done: units finished by an earlier run, which fill the bar but do not count for the rate.
    """

    def __init__(self, description: str, total: int | None, unit: str, done: int = 0) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._before = self._done = done
        self._started = time.monotonic()
        self._drawn = self._started + PATIENCE_SECONDS - REDRAW_SECONDS
        self._bar: RichProgress | None = None

    def advance(self, units: int, note: str = "") -> None:
        """Count `units` more as done; `note` is shown behind the time left."""
        self._done += units
        now = time.monotonic()
        if now - self._drawn < REDRAW_SECONDS or not sys.stderr.isatty():
            return
        self._drawn, elapsed = now, now - self._started
        if self._bar is None:
            self._bar = _start_bar(self._description, self._total)
        rate = f"{(self._done - self._before) / elapsed:,.0f} {self._unit}/s"
        self._bar.update(self._bar.task_ids[0], completed=self._done, rate=rate, note=note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


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
