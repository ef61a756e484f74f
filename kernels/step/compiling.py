"""Kernels compiled side by side before they are first launched, which else compiles them one after another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from threading import Lock
from typing import Any

import triton
from triton.runtime.jit import JITFunction

THREADS = 8  # compiling at a time

_only_compiling = ContextVar("only_compiling", default=False)
_one_at_a_time = Lock()


def compile_together(launch: Callable[[], Any]) -> None:
    """Compile every kernel that `launch` would launch in the calling thread, by a few threads, and launch none.

    Whatever fails to compile is left to the first launch, which fails with the reason. Other threads launch as ever.
    """

    def run(kernel: Any, *arguments: Any, warmup: bool, **options: Any) -> Any:
        return launched(kernel, *arguments, warmup=warmup or _only_compiling.get(), **options)

    def compiled() -> None:
        _only_compiling.set(True)
        with ThreadPoolExecutor(THREADS) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
            launch()

    with _one_at_a_time:
        launched = JITFunction.run
        JITFunction.run = run
        try:  # in a context of its own: Triton 3.6 to 3.8 leave the mode on after an error
            copy_context().run(compiled)
        finally:
            JITFunction.run = launched
