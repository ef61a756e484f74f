"""Processes that tests start: forks of one that has imported PyTorch and the package already, which takes seconds.

What is said of importing itself, or of the program from its very start, needs a process of `subprocess`.
"""

import atexit
import contextlib
import gc
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from functools import cache
from types import ModuleType
from typing import IO, Any

STATUS = struct.Struct("i")


class Process:
    """Python source that runs in a process of its own, with what tests use of `subprocess.Popen`.

    Args:
        source: as behind `python -c`.
        arguments: of the program, as strings.
        stderr: a file descriptor in place of what `communicate` returns.
        cwd: folder in which it runs; None: the caller's.
        environment: variables that it has beside the caller's.
    """

    def __init__(self, source: str, *arguments: Any, stderr: int | None = None, cwd: Any = None, **environment: str):
        self.stdout, self.stderr = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 - read by the caller
        self._status, status = socket.socketpair()
        self.returncode: int | None = None
        job = (
            source,
            [str(argument) for argument in arguments],
            str(cwd or os.getcwd()),
            {**os.environ, **environment},
            list(sys.path),
        )
        with tempfile.TemporaryFile() as request, status:
            pickle.dump(job, request)
            request.seek(0)
            errors = self.stderr.fileno() if stderr is None else stderr
            socket.send_fds(_server(), [b"."], [request.fileno(), status.fileno(), self.stdout.fileno(), errors])
            self.pid = STATUS.unpack(self._status.recv(STATUS.size))[0]

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = STATUS.unpack(self._status.recv(STATUS.size))[0]
            for stream in (self.stdout, self.stderr):
                stream.seek(0)
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(source: str, *arguments: Any, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python source in a process of its own to its end; see `Process`."""
    process = Process(source, *arguments, **options)
    stdout, stderr = process.communicate(timeout=550)
    assert not (check and process.returncode), stderr
    return subprocess.CompletedProcess([source, *arguments], process.returncode or 0, stdout, stderr)


@cache
def _server() -> socket.socket:
    """The door of this process's own server, which ends when the door closes."""
    door, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        server = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    atexit.register(server.wait)
    atexit.register(door.close)  # first: the last one registered is called first
    return door


def _import_all() -> None:
    import shazam_fast as sf  # before PyTorch: it sets what PyTorch's threads read once

    for name in sf.__all__:
        getattr(sf, name)
    with contextlib.suppress(ImportError):
        import h5py  # noqa: F401


def _serve(door: socket.socket) -> IO[bytes]:
    """Fork for each request. Returns in the fork, with the file that says what to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watchers = 0
    while True:
        message, descriptors, _, _ = socket.recv_fds(door, 1, 4)
        while watchers and (not message or os.waitpid(-1, os.WNOHANG)[0]):
            watchers -= 1
        if not message:
            os._exit(0)
        if os.fork() == 0:
            door.close()
            return _split(*descriptors)
        watchers += 1
        for descriptor in descriptors:
            os.close(descriptor)


def _split(request: int, status: int, stdout: int, stderr: int) -> IO[bytes]:
    """The watcher says the process's id and, once it has ended, its exit code. Returns in the process."""
    if child := os.fork():
        os.write(status, STATUS.pack(child))
        os.write(status, STATUS.pack(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        os._exit(0)
    os.close(status)
    for descriptor, place in ((stdout, 1), (stderr, 2)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return os.fdopen(request, "rb")


def _become(request: IO[bytes]) -> tuple[str, dict[str, Any]]:
    """Take over arguments, folder, environment and paths; return the source and its namespace."""
    source, arguments, folder, environment, paths = pickle.load(request)
    request.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = ["-c", *arguments]
    sys.path[:] = paths
    sys.modules["__main__"] = main = ModuleType("__main__")
    return source, main.__dict__


def _run_to_the_end(source: str, namespace: dict[str, Any]) -> None:
    """As `python -c` does, but without taking the imported modules apart, which takes as long as importing them."""
    code: Any = 0
    try:
        exec(compile(source, "<string>", "exec"), namespace)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else end.code is not None
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))


if __name__ == "__main__":
    _import_all()
    gc.freeze()
    _run_to_the_end(*_become(_serve(socket.socket(fileno=int(sys.argv[1])))))
