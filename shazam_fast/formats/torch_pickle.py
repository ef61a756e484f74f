"""The pickle inside a torch.save file, decoded into plain records; nothing is imported and nothing is run.

A pickle is a program for a stack machine. This is the part of that machine which torch.save needs for tensors in lists,
tuples and dictionaries: GLOBAL pushes a name instead of what it names, and REDUCE knows three of these names. A
restricted pickle.Unpickler would be shorter but not safe: a memo index of 2**31 makes it fill the memory, and hashing a
deeply nested key ends the process.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ArchiveError
from .tensors import MAX_DIM, StoredTensor

STORAGES = {  # torch's typed storages -> NumPy's name of the dtype, bytes of a value
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.FloatStorage": ("float32", 4),
    "torch.DoubleStorage": ("float64", 8),
    "torch.BoolStorage": ("bool", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.CharStorage": ("int8", 1),
    "torch.ShortStorage": ("int16", 2),
    "torch.IntStorage": ("int32", 4),
    "torch.LongStorage": ("int64", 8),
}
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
ORDERED_DICT = "collections.OrderedDict"
ALLOWED = {REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT, *STORAGES}


@dataclass(frozen=True, slots=True)
class Global:
    """The name of something to import, which is not imported."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """The flat array behind tensors: its dtype, number of values and first byte in the file."""

    dtype: str
    values: int
    offset: int
    item: int


class _CorruptError(Exception):
    """The program cannot have been written by pickle."""


class _Machine:
    """Runs one pickle; every instruction takes time in proportion to its own bytes."""

    def __init__(self, path: Path, program: bytes, locate: Callable[[str, int], int]) -> None:
        self._path = path
        self._program = program
        self._locate = locate
        self._at = 0
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under the open marks
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        """The object that the program leaves on the stack."""
        while (code := self._program[self._at : self._at + 1]) != b".":
            self._at += 1
            if (execute := INSTRUCTIONS.get(code)) is None:
                if not code:
                    raise _CorruptError("it ends early")
                raise _CorruptError(f"instruction {code!r} is none that torch.save writes for tensors")
            execute(self)
        return self._stack.pop()

    def _take(self, count: int) -> bytes:
        taken = self._program[self._at : self._at + count]
        if len(taken) != count:
            raise _CorruptError("it ends early")
        self._at += count
        return taken

    def _unsigned(self, count: int) -> int:
        return int.from_bytes(self._take(count), "little")

    def _line(self) -> str:
        end = self._program.index(b"\n", self._at)
        return self._take(end + 1 - self._at)[:-1].decode()

    def _pop_many(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise _CorruptError("its stack is empty")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def skip(self, width: int) -> None:
        self._take(width)

    def push(self, value: object) -> None:
        self._stack.append(value)

    def push_new(self, kind: Callable[[], Any]) -> None:
        self._stack.append(kind())

    def number(self, form: struct.Struct) -> None:
        self._stack.append(form.unpack(self._take(form.size))[0])

    def long_number(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._unsigned(1)), "little", signed=True))

    def text(self, width: int) -> None:
        self._stack.append(self._take(self._unsigned(width)).decode(errors="replace"))

    def put_short(self) -> None:
        """`put` with a number of one byte, by far the most frequent instruction."""
        if self._at == len(self._program):
            raise _CorruptError("it ends early")
        self._memo[self._program[self._at]] = self._stack[-1]
        self._at += 1

    def put(self, width: int) -> None:
        self._memo[self._unsigned(width)] = self._stack[-1]

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, width: int) -> None:
        self._stack.append(self._memo[self._unsigned(width)])

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def tuple_of(self, count: int) -> None:
        self._stack.append(tuple(self._pop_many(count)))

    def tuple_to_mark(self) -> None:
        items = self._pop_to_mark()
        self._stack.append(tuple(items))

    def append(self) -> None:
        self._append(self._pop_many(1))

    def appends(self) -> None:
        self._append(self._pop_to_mark())

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise _CorruptError("it appends to what is no list")
        self._stack[-1].extend(items)

    def set_item(self) -> None:
        self._set_items(self._pop_many(2))

    def set_items(self) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not dict or len(items) % 2:
            raise _CorruptError("it sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise ArchiveError(f"{self._path}: holds a dictionary with a key of type {type(key).__name__}; refused")
            self._stack[-1][key] = value

    def global_(self) -> None:
        self._push_global(self._line(), self._line())

    def stack_global(self) -> None:
        self._push_global(*self._pop_many(2))

    def _push_global(self, module: object, name: object) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):  # never format an object: it may be without end
            raise _CorruptError("a name to import is no text")
        full = f"{module}.{name}"
        if full in ALLOWED:
            self._stack.append(Global(full))
        elif full.startswith("numpy."):
            raise ArchiveError(
                f"{self._path}: holds a pickled NumPy array or number ({full:.100}); refused, as reading it runs code. "
                "Load it where it was written and save it with numpy.save, or pass that .npy to shazam_fast.convert"
            )
        else:
            raise ArchiveError(
                f"{self._path}: holds a pickled {full:.100}; refused, as reading it may run any code. "
                "Save plain tensors alone: torch.save(features, path)"
            )

    def build(self) -> None:
        raise ArchiveError(
            f"{self._path}: holds an object with a state of its own, as a model's state_dict is; refused. "
            "Save plain tensors alone: torch.save(features, path)"
        )

    def persistent_id(self) -> None:
        match self._stack.pop():
            case ("storage", Global(kind), str(key), str(), int(values)) if kind in STORAGES and values >= 0:
                dtype, item = STORAGES[kind]
                self._stack.append(Storage(dtype, values, self._locate(key, values * item), item))
            case _:
                raise _CorruptError("a storage is not as torch.save describes it")

    def reduce(self) -> None:
        called, arguments = self._pop_many(2)
        match (called, arguments):
            case Global(name), (Storage() as storage, int(start), tuple(shape), tuple(stride), bool(), dict()) if (
                name == REBUILD_TENSOR
            ):
                self._stack.append(_make_tensor(storage, start, shape, stride))
            case Global(name), (StoredTensor() as tensor, bool(), dict()) if name == REBUILD_PARAMETER:
                self._stack.append(tensor)
            case Global(name), () if name == ORDERED_DICT:
                self._stack.append({})
            case _:
                raise _CorruptError("a tensor is not as torch.save describes it")


INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {  # named as in the module pickletools
    b"\x80": partial(_Machine.skip, width=1),  # PROTO
    b"\x95": partial(_Machine.skip, width=8),  # FRAME
    b"N": partial(_Machine.push, value=None),  # NONE
    b"\x88": partial(_Machine.push, value=True),  # NEWTRUE
    b"\x89": partial(_Machine.push, value=False),  # NEWFALSE
    b")": partial(_Machine.push, value=()),  # EMPTY_TUPLE
    b"]": partial(_Machine.push_new, kind=list),  # EMPTY_LIST
    b"}": partial(_Machine.push_new, kind=dict),  # EMPTY_DICT
    b"K": partial(_Machine.number, form=struct.Struct("<B")),  # BININT1
    b"M": partial(_Machine.number, form=struct.Struct("<H")),  # BININT2
    b"J": partial(_Machine.number, form=struct.Struct("<i")),  # BININT
    b"G": partial(_Machine.number, form=struct.Struct(">d")),  # BINFLOAT
    b"\x8a": _Machine.long_number,  # LONG1
    b"\x8c": partial(_Machine.text, width=1),  # SHORT_BINUNICODE
    b"X": partial(_Machine.text, width=4),  # BINUNICODE
    b"q": _Machine.put_short,  # BINPUT
    b"r": partial(_Machine.put, width=4),  # LONG_BINPUT
    b"\x94": _Machine.memoize,  # MEMOIZE
    b"h": partial(_Machine.get, width=1),  # BINGET
    b"j": partial(_Machine.get, width=4),  # LONG_BINGET
    b"(": _Machine.mark,  # MARK
    b"\x85": partial(_Machine.tuple_of, count=1),  # TUPLE1
    b"\x86": partial(_Machine.tuple_of, count=2),  # TUPLE2
    b"\x87": partial(_Machine.tuple_of, count=3),  # TUPLE3
    b"t": _Machine.tuple_to_mark,  # TUPLE
    b"a": _Machine.append,  # APPEND
    b"e": _Machine.appends,  # APPENDS
    b"s": _Machine.set_item,  # SETITEM
    b"u": _Machine.set_items,  # SETITEMS
    b"c": _Machine.global_,  # GLOBAL
    b"\x93": _Machine.stack_global,  # STACK_GLOBAL
    b"b": _Machine.build,  # BUILD
    b"Q": _Machine.persistent_id,  # BINPERSID
    b"R": _Machine.reduce,  # REDUCE
}


def _make_tensor(storage: Storage, start: int, shape: tuple[Any, ...], stride: tuple[Any, ...]) -> StoredTensor:
    """The tensor that views `storage` from value `start` on, if it stays inside."""
    numbers = (start, *shape, *stride)
    if len(shape) != len(stride) or not all(type(n) is int and 0 <= n <= MAX_DIM for n in numbers):
        raise _CorruptError("a tensor has an impossible shape or stride")
    tensor = StoredTensor(storage.dtype, shape, stride, storage.offset + start * storage.item)
    if tensor.span and start + tensor.span > storage.values:
        raise _CorruptError(f"a tensor reaches over the {storage.values} values of its storage")
    return tensor


def decode(path: Path, program: bytes, locate: Callable[[str, int], int]) -> object:
    """The object that `program` describes: StoredTensors in lists, tuples and dictionaries, text and numbers.

    `locate(key, nbytes)` gives the byte at which a storage's values start. `path` is for messages. Raises ArchiveError
    for whatever else a pickle can hold.
    """
    try:
        return _Machine(path, program, locate).run()
    except (_CorruptError, IndexError, KeyError, ValueError) as error:
        raise ArchiveError(f"{path}: corrupt pickle in it: {error}") from None
