"""Work on several stacks of students at a time: on the CPU one thread per core, each with whole stacks.

A student's products are small. Two threads that share one wait for each other at every product; two threads that have
students of their own do not.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from threading import Barrier
from types import TracebackType
from typing import Self, TypeVar

import torch

from ..runtime.devices import count_cores

STACKED = 8  # students in one stack on the CPU: more leave the caches, fewer pay for calls

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """Threads for stacks of students; use it as a context manager.

    Args:
        device: where the students compute. On a GPU all are one stack, and the caller's thread does the work.
        students: how many there are.
        threads: of the CPU, at most; None: one per core.
    """

    def __init__(self, device: torch.device, students: int, threads: int | None = None) -> None:
        self._before = torch.get_num_threads()
        self._device, self._allowed = device, threads or min(self._before, count_cores())
        self._threads = min(self._allowed, students) if device.type == "cpu" else 1
        self.stacked = students if device.type == "cuda" else min(STACKED, -(-students // self._threads))
        self._pool: ThreadPoolExecutor | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self._device.type == "cpu":
            # OpenMP keeps a number of threads for every thread, MKL one for all: both are set, until we leave.
            self._open.callback(torch.set_num_threads, self._before)
            torch.set_num_threads(1 if self._threads > 1 else self._allowed)
        if self._threads > 1:
            pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
            self._pool = self._open.enter_context(pool)
            everyone = Barrier(self._threads)
            wait([pool.submit(everyone.wait) for _ in range(self._threads)])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """`function` of every item, in order."""
        return [function(item) for item in items] if self._pool is None else list(self._pool.map(function, items))
