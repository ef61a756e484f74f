"""Attributes of HDF5 objects, read by hand: numbers much faster than through h5py, text without its dangers.

Strings of variable length lie in a global heap, and the HDF5 library copies as many bytes as the attribute claims,
whatever the heap holds: a damaged file ends the process. Layouts of bytes: HDF5 File Format Specification 3.0, IV.A
(object headers) and III.E (global heaps).
"""

import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

Value = str | NDArray[np.float64]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
ATTRIBUTE, CONTINUATION = 0x0C, 0x10  # types of header messages
HEAD_1, HEAD_2 = Struct("<HH"), Struct("<BH")  # type and length of a message in headers of version 1 and 2
MAX_BLOCK = 1 << 20  # bytes of a header or a heap; their usual size is 4096
MAX_MESSAGES = 10_000
INTEGER, FLOAT, FIXED_STRING, VARIABLE_STRING = 0, 1, 3, 9  # classes of datatypes


def read_attributes(path: Path, holder: Any, names: tuple[str, ...]) -> Mapping[str, Value]:
    """Attributes of an open h5py file, group or dataset, of those names that are there: text or numbers [n].

    Attributes in dense storage (more than eight, in files written with libver="latest") and of other types are not
    found.

    >>> import h5py, tempfile
    >>> path = Path(tempfile.mkdtemp(), "a.h5")
    >>> with h5py.File(path, "w") as file:
    ...     file.attrs.update(unit="um", size=256)
    >>> with h5py.File(path) as file:
    ...     read_attributes(path, file, ("unit", "size", "mpp"))
    {'unit': 'um', 'size': array([256.])}
    """
    import h5py  # type: ignore[import-untyped]

    address = h5py.h5o.get_info(holder.id).addr
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        plain = os.pread(descriptor, len(SIGNATURE), 0) == SIGNATURE  # without a user block, which h5py is slow to say
        file = _Bytes(descriptor, 0 if plain else holder.file.userblock_size)
        wanted = {name.encode(): name for name in names}
        found = {}
        for message in _messages(file, address):
            if (name := wanted.get(_name(message))) is not None and (value := _value(file, message)) is not None:
                found[name] = value
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
    kind_and_length = HEAD_1 if flags < 0 else HEAD_2
    while blocks:
        start, size = blocks.pop()
        content = file.read(start, size)
        at = 0
        while at + step <= len(content) and left:
            left -= 1
            kind, length = kind_and_length.unpack_from(content, at)
            start, at = at + step, at + step + length
            if kind == ATTRIBUTE:
                yield content[start:at]
            elif kind == CONTINUATION and len(message := content[start:at]) >= 16:
                place, count = _int(message[:8]), _int(message[8:16])
                blocks.append((place, count) if flags < 0 else (place + 4, count - 8))  # signature and checksum


def _name(message: bytes) -> bytes:
    """The name in an attribute message of version 1, 2 or 3."""
    at = 8 + (message[:1] == b"\3")
    return message[at : at + _int(message[2:4])].partition(b"\0")[0]


def _value(file: _Bytes, message: bytes) -> Value | None:
    """The value of an attribute; None for one of another type, or damaged."""
    sizes = [_int(message[2:4]), _int(message[4:6]), _int(message[6:8])]  # of name, datatype, dataspace
    if message[0] == 1:
        sizes = [-(-size // 8) * 8 for size in sizes]
    at = 8 + (message[0] == 3) + sizes[0]
    datatype, dataspace = message[at : at + sizes[1]], message[at + sizes[1] : at + sum(sizes[1:])]
    data = message[at + sizes[1] + sizes[2] :]
    if len(datatype) < 8 or len(dataspace) < 4:
        return None
    kind = datatype[0] & 15
    if kind in (INTEGER, FLOAT):
        return _numbers(datatype, dataspace, data)
    text: bytes | None = None
    if kind == VARIABLE_STRING and len(data) >= 16:
        text = _from_heap(file, _int(data[4:12]), _int(data[12:16]), _int(data[:4]))
    elif kind == FIXED_STRING:
        text = data[: _int(datatype[4:8])]
    return None if text is None else text.partition(b"\0")[0].decode(errors="replace")


def _numbers(datatype: bytes, dataspace: bytes, data: bytes) -> NDArray[np.float64] | None:
    """Integers or floats of 1 to 8 bytes as float64 [n]."""
    item, rank = _int(datatype[4:8]), dataspace[1]
    first = 8 if dataspace[0] == 1 else 4
    count = prod(_int(dataspace[first + 8 * axis : first + 8 * axis + 8]) for axis in range(rank))
    letter = "f" if datatype[0] & 15 == FLOAT else "i" if datatype[1] & 8 else "u"
    if item not in ((2, 4, 8) if letter == "f" else (1, 2, 4, 8)) or not 0 < count * item <= len(data):
        return None
    order = ">" if datatype[1] & 1 else "<"
    return np.frombuffer(data, f"{order}{letter}{item}", count).astype(np.float64)


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
