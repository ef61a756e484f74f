"""Read files that an index does not know, in several processes where there are many.

h5py holds one lock per process, so threads would wait for each other. The processes are started as programs of their
own, not by multiprocessing, which would run the user's script again.
"""

import gc
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import IO, Any

import numpy as np
import xxhash
from msgspec.structs import replace
from numpy.typing import NDArray

from ...errors import ShazamError
from ..pieces import FileState, Source, StoredCoords
from .entries import Learned

SIDE_BY_SIDE = 2000  # files from which on starting processes, each of half a second, pays
BATCH = 200  # files that a process reads at a time
MOST_PROCESSES = 16
LENGTH_BYTES = 8  # before every message between the processes
LARGEST_ANSWER = 1 << 30
logger = logging.getLogger("shazam_fast")

WHOLE = float(1 << 53)  # all whole numbers up to it are float64
PROGRAM = (
    "import sys, pickle; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from shazam_fast.formats.index.scan import serve; serve()"
)

Found = tuple[int, Learned | None]  # number of a source, and what was learned of it


def scan(sources: Sequence[Source]) -> Iterator[Found]:
    """Read the sources, in any order. What cannot be read is None: reading it again tells why."""
    numbered = list(enumerate(sources))
    left = dict(numbered)
    processes = min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    if len(sources) >= SIDE_BY_SIDE and processes > 1 and sys.executable:
        for number, learned in _scan_side_by_side(numbered, processes):
            del left[number]
            yield number, learned
    for number, source in left.items():  # all, or those of processes that ended early
        yield number, learn(source)


def learn(source: Source) -> Learned | None:
    """Read one source; None where it cannot be read. Its positions are told by a digest and read again when needed."""
    try:
        states = tuple(FileState.of(file) for file in (source.path, *source.beside))
        piece = source.read()
    except (ShazamError, OSError):
        return None
    coords = piece.coords
    if coords is not None and not isinstance(coords, StoredCoords) and piece.n_rows > 0:
        file, digest = os.path.abspath(source.path), digest_of(coords)
        coords = StoredCoords(file, states[0], piece.coords_place, coords.dtype.str, digest, source.read)
    return Learned(states, replace(piece, coords=coords, modified=states[0].modified))


def digest_of(coords: NDArray[Any]) -> bytes:
    """16 bytes that are equal for equal positions [rows, 2] of any dtype; b"" where they must be compared themselves.

    >>> digest_of(np.array([[0, 256]])) == digest_of(np.array([[-0.0, 256.0]]))
    True
    """
    letter, values = b"i", coords
    if coords.dtype.kind == "f":
        values = coords.astype(np.float64) + 0.0  # -0.0 is 0.0
        if not np.isfinite(values).all():
            return b""
        if (values == np.rint(values)).all() and (np.abs(values) <= WHOLE).all():
            values = values.astype(np.int64)
        else:
            letter = b"f"
    elif coords.dtype.kind == "u" and coords.size and coords.max() > np.iinfo(np.int64).max:
        return b""
    else:
        values = coords.astype(np.int64)
    return xxhash.xxh3_128_digest(letter + np.ascontiguousarray(values).tobytes())


# Side by side
def _scan_side_by_side(numbered: Sequence[tuple[int, Source]], processes: int) -> Iterator[Found]:
    """What the processes read; less than all if one of them ends early."""
    batches: SimpleQueue[list[tuple[int, Source]]] = SimpleQueue()
    for start in range(0, len(numbered), BATCH):
        batches.put(list(numbered[start : start + BATCH]))
    results: SimpleQueue[list[Found] | None] = SimpleQueue()
    started: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(processes) as threads:
        try:
            for _ in range(processes):
                started.append(_start())
                threads.submit(_feed, started[-1], batches, results)
            for _ in started:
                while (batch := results.get()) is not None:
                    yield from batch
        finally:
            for process in started:
                process.kill()
                process.wait()


def _start() -> subprocess.Popen[bytes]:
    """A process that reads sources; Ctrl-C is left to this one."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )


def _feed(
    process: subprocess.Popen[bytes],
    batches: "SimpleQueue[list[tuple[int, Source]]]",
    results: "SimpleQueue[list[Found] | None]",
) -> None:
    """Hand batches to a process until none are left or the process has ended; then None is put in `results`.

    The next batch is ready when an answer comes, which is unpacked only when the process is at work again.
    """
    try:
        with process.stdin as to_process, process.stdout as from_process:  # type: ignore[union-attr]
            pickle.dump(sys.path, to_process)
            if batch := _take(batches):
                _send(to_process, batch)
            while batch:
                batch = _take(batches)
                answer = _receive(from_process)
                if batch:
                    _send(to_process, batch)
                results.put(pickle.loads(answer))
    except (OSError, EOFError, ValueError, LookupError, pickle.UnpicklingError) as error:
        logger.warning("a process that reads files ended early (%s); its files are read here", error)
    finally:
        results.put(None)


def _take(batches: "SimpleQueue[list[tuple[int, Source]]]") -> bytes:
    """A batch as it is sent; b"" when none is left."""
    with suppress(Empty):
        return pickle.dumps(batches.get_nowait())
    return b""


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(LENGTH_BYTES, "little") + content)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    """What was sent. Raises EOFError where it ends early, ValueError for what was not sent so."""
    length = int.from_bytes(_read(stream, LENGTH_BYTES), "little")
    if length > LARGEST_ANSWER:
        raise ValueError(f"a message of {length} bytes")
    return _read(stream, length)


def _read(stream: IO[bytes], count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise EOFError("the stream ended")
    return content


def serve() -> None:
    """Read the batches of sources that come on standard input, until it ends; the program of such a process."""
    gc.disable()  # it would look at modules again and again; there is no garbage in circles
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what libraries print does not get among the answers
        while True:
            try:
                batch = pickle.loads(_receive(sys.stdin.buffer))
            except EOFError:
                return
            _send(answers, pickle.dumps([(number, learn(source)) for number, source in batch]))
