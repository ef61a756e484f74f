"""The one directory walker: which feature files lie below a path, and what was passed over.

Links to directories are followed, each directory once; hidden and temporary names are passed over and counted. No file
is opened.
"""

import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import msgspec

from ..errors import ArchiveError

logger = logging.getLogger("shazam_fast")

# suffix in lower case -> kind of file
KINDS = {
    ".h5": ".h5", ".hdf5": ".h5", ".pt": ".pt", ".pth": ".pt", ".npy": ".npy", ".safetensors": ".safetensors",
    ".npz": ".npz", ".txt": ".txt", ".json": ".json",
}  # fmt: skip
MAPPED_KINDS = (".h5", ".pt", ".npy", ".safetensors")
TEMPORARY = (".tmp", ".lock", ".unfinished", ".part", ".partial")  # what tools call a file that is being written
LOCK = ".lock"  # beside a slide that TRIDENT is at work on
ARCHIVES = ("archive.json", "part-00000.safetensors")  # in a directory that is a native archive, finished or not
STORE = ".zarr"  # suffix of a directory that is one slide of LazySlide


class File(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A feature file below the directory that was opened.

    `folder` is the path from there, "" for the directory itself; `kind` is one of KINDS' values; `place` is the path as
    text, since a Path is slow to make; `locked` tells that a lock lies beside it.
    """

    folder: str
    name: str
    kind: str
    place: str
    locked: bool = False

    @property
    def path(self) -> Path:
        """The path."""
        return Path(self.place)

    @property
    def stem(self) -> str:
        """The name without the suffix."""
        return os.path.splitext(self.name)[0]


@dataclass
class Listing:
    """What lies below a directory.

    `files` are sorted by folder and name; `stores` are zarr directories, `archives` native archives, which are not
    entered; `passed` counts why files were passed over that could be features by their suffix.
    """

    root: Path
    files: list[File] = field(default_factory=list)
    stores: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    first_passed: str = ""

    def pass_over(self, path: str, why: str) -> None:
        """Count a file that is left out."""
        self.first_passed = self.first_passed or path
        self.passed[why] += 1

    def report(self) -> None:
        """Log a warning with what was passed over."""
        if self.passed:
            counts = ", ".join(f"{n} {why}" for why, n in sorted(self.passed.items()))
            logger.warning("%s: passed over %s (first: %s)", self.root, counts, self.first_passed)


def kind_of(name: str) -> str:
    """The kind of a file by its suffix, "" for what is no feature file.

    >>> kind_of("a.H5"), kind_of("a.svs")
    ('.h5', '')
    """
    return KINDS.get(_suffix(name), "")


def _suffix(name: str) -> str:
    """The suffix of a name, in lower case, as os.path.splitext finds it."""
    if name.startswith("."):
        return os.path.splitext(name)[1].lower()
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def walk(root: Path) -> Listing:
    """Every feature file at or below a directory, in folders of any depth.

    Raises ArchiveError when a directory cannot be listed.
    """
    listing = Listing(root)
    pending: deque[tuple[str, str]] = deque([(os.fspath(root), "")])
    seen: set[tuple[int, int]] = set()
    while pending:
        place, folder = pending.popleft()
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                continue  # a link to a directory that is listed already
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                pending.extend(_list_folder(listing, folder, sorted(entries, key=attrgetter("name"))))
        except OSError as error:
            raise ArchiveError(f"{error.filename}: cannot be listed: {error.strerror}", "system") from None
    listing.files.sort(key=attrgetter("folder", "name"))
    return listing


def _list_folder(listing: Listing, folder: str, entries: Sequence[os.DirEntry[str]]) -> Iterator[tuple[str, str]]:
    """Add a folder's files to the listing; the folders in it that are to be listed, links last."""
    locks = {entry.name.removesuffix(LOCK) for entry in entries if entry.name.endswith(LOCK)}
    inner = []
    for entry in entries:
        if entry.is_dir():
            if _is_left_to_others(listing, entry):
                continue
            inner.append((entry.is_symlink(), (entry.path, f"{folder}/{entry.name}".lstrip("/"))))
        elif why := _reason_to_pass(entry.name, kind := kind_of(entry.name)):
            listing.pass_over(entry.path, why)
        elif kind:
            listing.files.append(File(folder, entry.name, kind, entry.path, entry.name in locks))
            locks.discard(entry.name)
    for name in sorted(locks):  # a slide that is being written and is not there yet
        if (kind := kind_of(name)) in MAPPED_KINDS and not name.startswith("."):
            listing.files.append(File(folder, name, kind, os.fspath(listing.root / folder / name), locked=True))
    return iter([place for _, place in sorted(inner)])


def _is_left_to_others(listing: Listing, entry: os.DirEntry[str]) -> bool:
    """Whether a directory is not to be entered; stores and native archives are noted."""
    if entry.name.startswith("."):
        return True
    if entry.name.lower().endswith(STORE):
        listing.stores.append(Path(entry.path))
        return True
    if any(os.path.exists(os.path.join(entry.path, name)) for name in ARCHIVES):
        listing.archives.append(Path(entry.path))
        return True
    return False


def _reason_to_pass(name: str, kind: str) -> str:
    """Why a file that could be features is passed over; "" if it is not, or could not be."""
    if kind and name.count(".") == 1 and name[0] != ".":
        return ""  # as of most files
    suffix = _suffix(name)
    stem = name[: len(name) - len(suffix)]
    unfinished = suffix in TEMPORARY and not name.endswith(LOCK)
    if (kind_of(stem) if unfinished else kind) not in MAPPED_KINDS:
        return ""
    if name.startswith("."):
        return "hidden"
    if unfinished or _suffix(stem) in TEMPORARY:
        return "temporary or half-written"
    return ""
