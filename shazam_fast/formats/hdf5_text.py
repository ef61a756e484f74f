"""Text attributes of HDF5 objects, read by hand: on a damaged one the HDF5 library ends the process.

Strings of variable length lie in a global heap, and the library copies as many bytes as the attribute claims, whatever
the heap holds. Layouts of bytes: HDF5 File Format Specification 3.0, IV.A (object headers) and III.E (global heaps).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ATTRIBUTE, CONTINUATION = 0x0C, 0x10  # types of header messages
MAX_BLOCK = 1 << 20  # bytes of a header or a heap; their usual size is 4096
MAX_MESSAGES = 10_000
VARIABLE_STRING = 9  # class of a datatype
FIXED_STRING = 3


def read_texts(path: Path, holder: Any, names: tuple[str, ...]) -> dict[str, str]:
    """Text attributes of an open h5py file, group or dataset, of those names that are there and hold text.

    Attributes in dense storage (more than eight, in files written with libver="latest") are not found.

    >>> import h5py, tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.h5")
    >>> with h5py.File(path, "w") as file:
    ...     file.attrs["unit"] = "um"
    >>> with h5py.File(path) as file:
    ...     read_texts(path, file, ("unit", "mpp"))
    {'unit': 'um'}
    """
    import h5py  # type: ignore[import-untyped]

    base = holder.file.userblock_size
    address = h5py.h5o.get_info(holder.id).addr
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        file = _Bytes(descriptor, base)
        found = dict(_texts(file, address, frozenset(name.encode() for name in names)))
    finally:
        os.close(descriptor)
    return {name: found[name] for name in names if name in found}


class _Bytes:
    """Bytes of a file by the addresses that it uses inside; short, and thus b"" for a number, beyond its end."""

    def __init__(self, descriptor: int, base: int) -> None:
        self._descriptor, self._base = descriptor, base

    def read(self, address: int, count: int) -> bytes:
        place = address + self._base
        if not 0 <= place < 1 << 62 or count > MAX_BLOCK:
            return b""
        return os.pread(self._descriptor, count, place)


def _texts(file: _Bytes, address: int, names: frozenset[bytes]) -> Iterator[tuple[str, str]]:
    for message in _messages(file, address):
        name, kind, data = _attribute(message)
        if name not in names:
            continue
        text = None
        if kind == VARIABLE_STRING and len(data) >= 16:
            text = _from_heap(file, _int(data[4:12]), _int(data[12:16]), _int(data[:4]))
        elif kind == FIXED_STRING:
            text = data
        if text is not None:
            yield name.decode(), text.partition(b"\0")[0].decode(errors="replace")


def _int(content: bytes) -> int:
    return int.from_bytes(content, "little")


def _messages(file: _Bytes, address: int) -> Iterator[bytes]:
    """The attribute messages of an object header, version 1 or 2, and of its continuations."""
    head = file.read(address, 64)
    if head[:4] == b"OHDR":
        flags = head[5] if len(head) > 5 else 0
        at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        blocks, step = [(address + at + width, _int(head[at : at + width]))], 4 + 2 * bool(flags & 4)
    else:
        flags, step = -1, 8
        blocks = [(address + 16, _int(head[8:12]))]
    left = MAX_MESSAGES
    while blocks:
        start, size = blocks.pop()
        content = file.read(start, size)
        at = 0
        while at + step <= len(content) and left:
            left -= 1
            if flags < 0:
                kind, length = _int(content[at : at + 2]), _int(content[at + 2 : at + 4])
            else:
                kind, length = content[at], _int(content[at + 1 : at + 3])
            message = content[at + step : at + step + length]
            at += step + length
            if kind == ATTRIBUTE:
                yield message
            elif kind == CONTINUATION and len(message) >= 16:
                place, count = _int(message[:8]), _int(message[8:16])
                blocks.append((place, count) if flags < 0 else (place + 4, count - 8))  # signature and checksum


def _attribute(message: bytes) -> tuple[bytes, int, bytes]:
    """Name, class of the datatype, and data of an attribute message of version 1, 2 or 3."""
    if len(message) < 8:
        return b"", -1, b""
    version = message[0]
    sizes = [_int(message[2:4]), _int(message[4:6]), _int(message[6:8])]  # of name, datatype, dataspace
    if version == 1:
        sizes = [-(-size // 8) * 8 for size in sizes]
    at = 8 + (version == 3)
    name = message[at : at + sizes[0]].partition(b"\0")[0]
    datatype = message[at + sizes[0] : at + sizes[0] + sizes[1]]
    return name, datatype[0] & 15 if datatype else -1, message[at + sum(sizes) :]


def _from_heap(file: _Bytes, address: int, index: int, length: int) -> bytes | None:
    """An object of a global heap; None where the heap has no such object of that length."""
    head = file.read(address, 16)
    if head[:4] != b"GCOL":
        return None
    heap = file.read(address, _int(head[8:16]))
    at = 16
    while at + 16 <= len(heap):
        number, size = _int(heap[at : at + 2]), _int(heap[at + 8 : at + 16])
        if number == index:
            content = heap[at + 16 : at + 16 + size]
            return content[:length] if length <= len(content) else None
        if number == 0:
            return None
        at += 16 + -(-size // 8) * 8
    return None
