"""What torch.save writes: a zip file with a pickle and one stored, 64-byte aligned entry per storage; opened in place.

Entries are `<name>/data.pkl`, `<name>/byteorder` and `<name>/data/<key>` (torch/serialization.py). The zip directory is
read by hand because the zipfile module takes longer than all the rest.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

from ..errors import ArchiveError, NotInPlaceError
from ..runtime.files import open_regular
from ..runtime.levels import LEVELS
from .pieces import ITEM_BYTES, Piece
from .tensors import INTEGERS, StoredTensor, feature_piece
from .torch_pickle import decode

FEATURES = ("features", "feature", "feats", "embeddings")
LABELS = ("labels", "label")

END = struct.Struct("<4s4H2IH")  # end of the central directory
LOCATOR = struct.Struct("<4sIQI")  # of the zip64 end, right before END
END64 = struct.Struct("<4sQ2H2I4Q")
CENTRAL = struct.Struct("<4s6H3I5H2I")
LOCAL = struct.Struct("<4s5H3I2H")
IN_ZIP64 = 0xFFFFFFFF  # stands for a number that is in the zip64 extra field
ENCRYPTED = 1
MAX_METADATA_BYTES = 1 << 28  # directory or pickle; 100,000 storages need 8 MB
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # pickle of 0x1950a86a20f9469cfc6c
SAVE_AGAIN = "write it again with torch.save(torch.load(path, weights_only=True), path)"


class _Entry(NamedTuple):
    name: bytes
    flags: int
    method: int
    stored: int  # bytes in the file
    size: int  # bytes uncompressed
    header: int  # byte of its local header


class _TorchZip:
    """The entries of one file that torch.save wrote, found through the zip directory at its end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._entries = {entry.name: entry for entry in self._read_directory()}
        pickles = [name for name in self._entries if name.endswith(b"/data.pkl")]
        if len(pickles) != 1:
            raise self._error(f"{len(pickles)} entries called data.pkl, expected 1: not written by torch.save")
        self._root = pickles[0].removesuffix(b"data.pkl")
        if self._root + b"constants.pkl" in self._entries:
            raise self._error("a TorchScript archive; refused: save the features alone with torch.save")

    def load(self) -> object:
        """The object tree, with the places of tensors for tensors."""
        if self._root + b"byteorder" in self._entries:  # absent before torch 2.1
            order = self._read(*self._locate(b"byteorder"))
            if order != b"little":
                raise self._error(
                    f"byte order {order!r:.20}, expected b'little': {SAVE_AGAIN} on a little-endian machine"
                )
        return decode(self._path, self._read(*self._locate(b"data.pkl")), self._locate_storage)

    def _error(self, what: str) -> ArchiveError:
        return ArchiveError(f"{self._path}: {what}")

    def _convert(self, what: str) -> NotInPlaceError:
        return NotInPlaceError(
            f"{self._path}: {what}, so it cannot be opened in place: {SAVE_AGAIN}, or convert it with "
            "shazam_fast.convert"
        )

    def _read(self, offset: int, count: int) -> bytes:
        if count > MAX_METADATA_BYTES:
            raise self._error(f"{count} bytes of metadata, expected at most {MAX_METADATA_BYTES}: corrupt")
        content = os.pread(self._descriptor, count, offset) if offset + count <= self._size else b""
        if len(content) != count:
            raise self._error(f"truncated: bytes {offset} to {offset + count} expected, the file has {self._size}")
        return content

    def _read_directory(self) -> list[_Entry]:
        """Every entry, in the order of the zip's central directory."""
        count, start, size = self._find_directory()
        directory = self._read(start, size)
        entries: list[_Entry] = []
        at = 0
        for _ in range(count):
            if directory[at : at + 4] != b"PK\x01\x02" or at + CENTRAL.size > size:
                raise self._error(f"corrupt zip directory: {count} entries stated, {len(entries)} found")
            fields = CENTRAL.unpack_from(directory, at)
            name_length, extra_length, comment_length = fields[10:13]
            at += CENTRAL.size
            name = directory[at : at + name_length]
            extra = directory[at + name_length : at + name_length + extra_length]
            at += name_length + extra_length + comment_length
            stored, plain, header = self._widen((fields[8], fields[9], fields[16]), extra)
            entries.append(_Entry(name, fields[3], fields[4], stored, plain, header))
        return entries

    def _find_directory(self) -> tuple[int, int, int]:
        """Entries in the central directory, its first byte and its bytes, from the end of the file."""
        tail_size = min(self._size, LOCATOR.size + END.size)
        tail = self._read(self._size - tail_size, tail_size).rjust(LOCATOR.size + END.size)
        if tail[LOCATOR.size : LOCATOR.size + 4] != b"PK\x05\x06":
            raise self._error(self._name_other_format())
        _, _, _, _, count, size, start, _ = END.unpack_from(tail, LOCATOR.size)
        if tail.startswith(b"PK\x06\x07"):  # torch always writes the zip64 end as well
            end = END64.unpack(self._read(LOCATOR.unpack_from(tail)[2], END64.size))
            if end[0] != b"PK\x06\x06":
                raise self._error("corrupt zip directory: its zip64 end is not where it should be")
            count, size, start = end[7:]
        return count, start, size

    def _name_other_format(self) -> str:
        head = os.pread(self._descriptor, len(LEGACY_MAGIC), 0)
        if head == LEGACY_MAGIC:
            raise self._convert("written in the old format of torch.save")
        if head.startswith(b"\x80"):
            return "a plain pickle; refused, as reading it may run any code: save the tensors with torch.save"
        if head.startswith(b"PK"):
            return (
                "truncated: it starts as torch.save writes but the zip directory at its end is missing; copy it again"
            )
        return f"not written by torch.save: it starts with {head[:6]!r}, expected a zip file"

    def _widen(self, numbers: tuple[int, int, int], extra: bytes) -> list[int]:
        """Stored size, size and offset, where need be from the zip64 extra field, which has them in the other order."""
        stored, plain, header = numbers
        if IN_ZIP64 not in numbers:
            return [stored, plain, header]
        while len(extra) >= 4:
            kind, length = struct.unpack_from("<2H", extra)
            if kind == 1:
                wide = [int.from_bytes(extra[at : at + 8], "little") for at in range(4, 4 + length, 8)]
                plain, stored, header = (
                    wide.pop(0) if number == IN_ZIP64 and wide else number for number in (plain, stored, header)
                )
                return [stored, plain, header]
            extra = extra[4 + length :]
        raise self._error("corrupt zip directory: an entry of 4 GiB or more without its size")

    def _locate(self, name: bytes) -> tuple[int, int]:
        """First byte and bytes of the entry called `name` below the root."""
        name = self._root + name
        shown = name.decode(errors="replace")[:100]
        entry = self._entries.get(name)
        if entry is None:
            raise self._error(f"entry {shown!r} is missing; copy the file again")
        if entry.flags & ENCRYPTED:
            raise self._error(f"entry {shown!r} is encrypted; decrypt it and {SAVE_AGAIN}")
        if entry.method != 0 or entry.stored != entry.size:
            raise self._convert(f"entry {shown!r} is compressed")
        local = self._read(entry.header, LOCAL.size + len(name))
        fields = LOCAL.unpack_from(local)
        if fields[0] != b"PK\x03\x04" or fields[9] != len(name) or local[LOCAL.size :] != name:
            raise self._error(f"corrupt zip: entry {shown!r} is not where the directory says")
        start = entry.header + LOCAL.size + fields[9] + fields[10]
        if start + entry.size > self._size:
            raise self._error(
                f"truncated: entry {shown!r} ends at byte {start + entry.size}, the file has {self._size}"
            )
        return start, entry.size

    def _locate_storage(self, key: str, nbytes: int) -> int:
        """The first byte of a storage; a callback of the pickle's decoder."""
        start, size = self._locate(b"data/" + key.encode(errors="replace"))
        if size != nbytes:
            raise self._error(f"storage {key!r:.40} has {size} bytes, its tensors say {nbytes}: corrupt")
        return start


def load_records(path: Path) -> object:
    """What torch.save was given, with a StoredTensor for every tensor; no tensor is read and no code is run.

    Lists, tuples, dictionaries, text, numbers, booleans and None are themselves. Raises ArchiveError for anything else.
    """
    with open_regular(path) as file:
        return _TorchZip(path, file.fileno()).load()


def _describe(records: object) -> str:
    match records:
        case dict():
            return f"a dictionary of {', '.join(map(repr, list(records)[:10])) or 'nothing'}"[:300]
        case list() | tuple():
            return f"a {type(records).__name__} of {len(records)}"
        case _:
            return f"a {type(records).__name__}"


def _first_tensor(records: dict[object, object], *names: str) -> StoredTensor | None:
    """The first of `names` that holds a tensor."""
    found = (records[name] for name in names if name in records)
    return next((value for value in found if isinstance(value, StoredTensor)), None)


def read_piece(path: Path) -> Piece:
    """One teacher's features [rows, columns] and what lies with them.

    Known are a tensor (CLAM's pt_files, slide2vec), a tuple (features, labels) (Shazam's first version), and a
    dictionary with `features`, `feature`, `feats` or `embeddings`, and maybe `coords` and `label` or `labels` (GPFM).
    """
    match records := load_records(path):
        case StoredTensor():
            return feature_piece(path, "the tensor", records)
        case [StoredTensor() as features, StoredTensor() as labels] if labels.dtype in INTEGERS:
            return feature_piece(path, "the first tensor", features, labels)
        case dict() if matrix := _first_tensor(records, *FEATURES):
            return feature_piece(
                path, "the features' tensor", matrix, _first_tensor(records, *LABELS), _first_tensor(records, "coords")
            )
    raise ArchiveError(
        f"{path}: expected a tensor, a tuple (features, labels), or a dictionary with one of {', '.join(FEATURES)}; "
        f"found {_describe(records)}: save the features alone with torch.save(features, path)"
    )


def list_levels(path: Path) -> list[str]:
    """Which levels a file of Shazam's encoders holds: "low", "mid" and "high"; none of them where it is another file.

    Raises ArchiveError as `load_records` does.
    """
    match load_records(path):
        case [StoredTensor() as low, StoredTensor() as mid, StoredTensor() as high, *rest] if len(rest) <= 1:
            return list(LEVELS) if all(level.dtype in ITEM_BYTES for level in (low, mid, high)) else []
    return []


def read_levels(path: Path) -> dict[str, Piece]:
    """The three levels of Shazam's encoders, "low", "mid" and "high", from a tuple (low, mid, high) or with labels."""
    match records := load_records(path):
        case [StoredTensor() as low, StoredTensor() as mid, StoredTensor() as high, *rest] if len(rest) <= 1:
            labels = rest[0] if rest and isinstance(rest[0], StoredTensor) else None
            levels = {"low": low, "mid": mid, "high": high}
            return {name: feature_piece(path, name, level, labels) for name, level in levels.items()}
    raise ArchiveError(
        f"{path}: expected a tuple (low, mid, high) or (low, mid, high, labels); found {_describe(records)}"
    )
