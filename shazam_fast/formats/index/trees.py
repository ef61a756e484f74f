"""The index of every directory that is opened: which pieces are known, which files must be read, and what to keep."""

import os
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path

import numpy as np

from ... import _core
from ...runtime.progress import Progress
from ..pieces import FileState, Piece, Source
from .entries import Learned, can_keep, pack
from .folder import file_of, index_folder, read_body, write_body
from .scan import scan
from .table import NO_ENTRY, DamagedError, Table

FEWEST = 64  # files from which on an index pays
WRITER = f"{version('shazam_fast')} 1"  # the last number is raised whenever files are understood in another way
# A file may be written again within one tick of its file system's clock (2 s on some), which may run behind ours, and
# keep its time. So what is learned of a file that changed less than this before is not kept (as git does).
SETTLED_NS = 10_000_000_000


class Trees:
    """What opening learns of the files below some directories, kept in one index per directory.

    Args:
        found: directory -> all sources below it.
    """

    def __init__(self, found: Mapping[Path, Sequence[Source]]) -> None:
        folder = index_folder()
        self._roots: dict[bytes, list[Source]] = {}
        for root, sources in found.items():
            kept = [source for source in sources if source.asks is not None]
            self._roots.setdefault(os.fsencode(os.path.abspath(root)), []).extend(kept)
        big = folder is not None and sum(map(len, self._roots.values())) >= FEWEST
        self._files = {root: file_of(folder, root) for root in self._roots} if folder and big else {}

    def read(self, sources: Sequence[Source], description: str) -> list[Source]:
        """The same sources; `read` of those whose piece is known, or was read now, hands it out.

        Sources that cannot be read stay as they are: `read` raises what is wrong. What was read is kept even if an
        error ends this.
        """
        if not self._files:
            return list(sources)
        now = time.time_ns()
        tables = self._load(now)
        result, key_of = list(sources), _Keys()
        asked = [place for place, source in enumerate(sources) if source.asks is not None]
        keys = [key_of(sources[place]) for place in asked]
        known = _look_up(tables, keys, [sources[place] for place in asked])
        for place, piece in zip(asked, known, strict=True):
            if piece is not None:
                result[place] = _in_hand(sources[place], piece)
        unknown = [place for place, piece in zip(asked, known, strict=True) if piece is None]
        outdated = {key for key, piece in zip(keys, known, strict=True) if piece is None}
        hits = len(asked) - len(unknown)
        new: dict[str, Learned] = {}
        try:
            with Progress(description, len(unknown), "files") as progress:
                for number, learned in scan([sources[place] for place in unknown]):
                    progress.advance(1)
                    if learned is None:
                        continue
                    source = sources[unknown[number]]
                    result[unknown[number]] = _in_hand(source, learned.piece)
                    if can_keep(learned) and _is_settled(learned.states, now):
                        new[key_of(source)] = learned
        finally:
            if new or hits < sum(len(table.numbers) for table in tables.values()):
                self._keep(new, outdated, tables, now)
        return result

    def _load(self, now: int) -> dict[bytes, Table]:
        """The indexes that are there and can be used; not those written at a time that is yet to come."""
        tables = {}
        for root, file in self._files.items():
            with suppress(OSError, DamagedError):
                table = Table(read_body(file), WRITER, root)
                if table.written <= now:
                    tables[root] = table
        return tables

    def _keep(
        self, new: Mapping[str, Learned], outdated: AbstractSet[str], tables: Mapping[bytes, Table], now: int
    ) -> None:
        """Write the indexes whose entries have changed: those of files that are there, old and new."""
        key_of = _Keys()
        for root, sources in self._roots.items():
            named = {key_of(source): source for source in sources}
            before = tables[root].numbers.keys() if root in tables else set()
            if before <= named.keys() and not named.keys() & (new.keys() | (outdated & before)):
                continue
            entries: dict[str, Learned] = {}
            for key, source in named.items():
                if key in new:
                    entries[key] = new[key]
                elif key not in outdated and (known := _known(key, source, tables)):
                    entries[key] = known
            with suppress(UnicodeEncodeError):  # a name that cannot be written
                write_body(self._files[root], pack(WRITER, root, now, entries))


class _Keys:
    """The key of a source: its files by absolute path, and what it asks of them."""

    def __init__(self) -> None:
        self._here = os.getcwd()

    def __call__(self, source: Source) -> str:
        path = source.path
        if path.startswith("/") and not source.beside:  # as of most
            return f"{path}\0?{source.asks}"
        return "\0".join([self._absolute(path), f"?{source.asks}", *map(self._absolute, source.beside)])

    def _absolute(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._here}/{path}"


def _look_up(tables: Mapping[bytes, Table], keys: Sequence[str], sources: Sequence[Source]) -> list[Piece | None]:
    """The pieces of sources, by their keys, whose files are as they were when they were read; None for others."""
    pieces: list[Piece | None] = [None] * len(sources)
    if not tables:
        return pieces
    files = [file for source in sources for file in (source.path, *source.beside)]
    row_of = dict(zip(dict.fromkeys(files), count(), strict=False))  # a file of several teachers is looked at once
    states = _core.file_states(list(row_of))[[row_of[file] for file in files]]
    counts = np.array([1 + len(source.beside) for source in sources], np.int64)
    for table in tables.values():
        numbers = np.array([table.numbers.get(key, NO_ENTRY) for key in keys], np.int64)
        same = table.are_in(numbers, states, counts)
        for place, number in zip(np.flatnonzero(same).tolist(), numbers[same].tolist(), strict=True):
            if pieces[place] is None:
                key, source = keys[place], sources[place]
                absolute = source.path if source.path.startswith("/") else key[: key.index("\0")]
                pieces[place] = table.piece(number, absolute, table.states(number)[0], source.read)
    return pieces


def _known(key: str, source: Source, tables: Mapping[bytes, Table]) -> Learned | None:
    """The entry of a source whose files were not looked at, or are as they were."""
    for table in tables.values():
        if (number := table.numbers.get(key)) is not None:
            states = tuple(FileState(*state) for state in table.states(number))
            return Learned(states, table.piece(number, key.partition("\0")[0], states[0], source.read))
    return None


def _is_settled(states: Sequence[FileState], now: int) -> bool:
    return all(max(state.modified, state.changed) < now - SETTLED_NS for state in states)


def _in_hand(source: Source, piece: Piece) -> Source:
    return Source(source.teacher, source.slide, source.path, partial(_same, piece), source.part, source.load)


def _same(piece: Piece) -> Piece:
    return piece
