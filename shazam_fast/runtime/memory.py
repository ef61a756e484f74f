"""Whether files are too large to be kept in the page cache, the memory in which the system keeps what it has read."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .devices import cgroup_folders

READ_ONCE = 0.25  # fraction of the memory beyond which files that are read once are read past the page cache
READ_OFTEN = 0.75  # the same for files that are read again and again, from memory where they fit


def exceeds_memory(n_bytes: int, *, often: bool) -> bool:
    """Whether files of so many bytes are best read past the page cache: to fill it costs more than it brings.

    Args:
        n_bytes: of all files.
        often: whether they are read again and again, or once.

    >>> exceeds_memory(4096, often=False)
    False
    """
    return n_bytes > (READ_OFTEN if often else READ_ONCE) * available_memory()


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process can get, those of the page cache among them, within its cgroups' limits.

    Args:
        root: where /proc and /sys are.
    """
    return min(_limits(root))


def _limits(root: Path) -> Iterator[int]:
    yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError), (root / "proc/meminfo").open() as file:
        yield from (int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    for folder in cgroup_folders("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):  # of version 2 and 1
            with suppress(OSError, ValueError):  # there is none, or it is "max"
                yield int((folder / name).read_text())
