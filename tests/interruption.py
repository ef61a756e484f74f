"""Kill a process in the middle of its file operations, or stop a training, for tests of what is left and continued."""

import contextlib
import hashlib
import itertools
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest


def kill_at(last: int) -> Callable[[], int]:
    """Count this process's calls that change a file, and kill it at number `last` (0: never), half way if it writes.

    Returns:
        A function that gives the number of calls so far.
    """
    calls = 0
    write = os.write

    def counted(call):
        def wrapped(first, *rest):
            nonlocal calls
            calls += 1
            if calls == last:
                if call is write:
                    write(first, rest[0][: len(rest[0]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(first, *rest)

        return wrapped

    os.write, os.fsync, os.rename, os.unlink = map(counted, (os.write, os.fsync, os.rename, os.unlink))
    return lambda: calls


def stopping_after(steps: int) -> Callable[[bool], contextlib.AbstractContextManager[Callable[[], bool]]]:
    """In place of `stop_on_interrupt`: Ctrl-C during step number `steps` of a training."""
    calls = itertools.count(1)

    @contextlib.contextmanager
    def stop(enabled: bool) -> Iterator[Callable[[], bool]]:
        yield lambda: next(calls) == steps

    return stop


@contextlib.contextmanager
def stopped_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop the training within by Ctrl-C during step number `steps`, which must happen."""
    with monkeypatch.context() as patch:
        patch.setattr("shazam_fast.training.train.stop_on_interrupt", stopping_after(steps))
        with pytest.raises(KeyboardInterrupt):
            yield


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def run_killed(last: int, call: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Run `call` in a process that is killed when it changes a file for the `last` time, which must happen."""
    job = pickle.dumps((last, call, arguments, options)).hex()
    ended = processes.run(_KILLED, job)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


_KILLED = """
import pickle, sys, torch
from interruption import kill_at
torch.set_num_threads(1)
last, call, arguments, options = pickle.loads(bytes.fromhex(sys.argv[1]))
kill_at(last)
call(*arguments, **options)
"""
