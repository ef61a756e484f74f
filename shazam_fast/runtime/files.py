"""Files that are there complete or not at all, and their checksums."""

import os
from pathlib import Path

import xxhash

UNFINISHED = ".unfinished"  # suffix of files that are still being written


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file so that it is there complete, or not at all, whatever happens: sync, rename, sync."""
    unfinished = path.with_suffix(UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    rename_durably(unfinished, path)


def rename_durably(old: Path, new: Path) -> None:
    """Rename a file within its directory and sync the directory."""
    old.rename(new)
    directory = os.open(new.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def file_checksum(path: Path) -> str:
    """xxh3 (64 bit, hexadecimal) of a whole file, as `xxhsum -H3` prints it."""
    digest = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as file:
        while block := file.read(16 << 20):
            digest.update(block)
    return digest.hexdigest()
