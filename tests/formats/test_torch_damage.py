"""Files that torch.save did not write, or not like this: damaged, crafted, malicious. Nothing in them is ever run."""

import collections
import io
import os
import pickle
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pieces import FUZZ, damaged, read_rows, refuses, survives

import shazam_fast as sf
from shazam_fast.formats.torch_pickle import decode
from shazam_fast.formats.torch_zip import read_piece

FEATURES = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2])
COORDS = torch.stack([torch.arange(7) * 256, torch.arange(7) % 3 * 256], dim=1).int()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("torch") / "slide.pt"


class Storage:
    def __init__(self, values, kind=torch.FloatStorage, key="0"):
        self.id = ("storage", kind, key, "cpu", values)


class Tensor:
    """Pickles as a tensor would, with any numbers."""

    def __init__(self, storage, start, shape, stride):
        self.arguments = (storage, start, shape, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.id if isinstance(obj, Storage) else None


def pickled(obj, protocol=2):
    stream = io.BytesIO()
    Pickler(stream, protocol).dump(obj)
    return stream.getvalue()


PLAIN = pickled(Tensor(Storage(35), 0, (7, 5), (5, 1)))
ENTRIES = {"data.pkl": PLAIN, "byteorder": b"little", "data/0": FEATURES.numpy().tobytes(), "version": b"3\n"}


def write_zip(file, compression=zipfile.ZIP_STORED, **changes):
    """ENTRIES with `changes`, None to leave one out; `data_0` stands for data/0 and `data_pkl` for data.pkl."""
    renamed = {name.replace("data_0", "data/0").replace("data_pkl", "data.pkl"): changes[name] for name in changes}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in (ENTRIES | renamed).items():
            if content is not None:
                archive.writestr(f"slide/{name}", content)
    return file


def test_a_plain_zip_file_is_read_too(file):
    write_zip(file, byteorder=None)  # as torch before 2.1 wrote
    np.testing.assert_array_equal(torch.load(file, weights_only=True), FEATURES)
    np.testing.assert_array_equal(read_rows(file, read_piece(file)), FEATURES)


def test_zip64_entries(file, monkeypatch):
    """The directory of a file beyond 4 GiB, made small: every size and offset is in the zip64 extra field."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 2)
    write_zip(file)
    monkeypatch.undo()
    assert file.read_bytes().count(b"\xff\xff\xff\xff\xff\xff\xff\xff") >= len(ENTRIES)
    np.testing.assert_array_equal(torch.load(file, weights_only=True), FEATURES)
    np.testing.assert_array_equal(read_rows(file, read_piece(file)), FEATURES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, r"'slide/byteorder' is compressed.*torch.load"),
        ({"data_0": None}, "'slide/data/0' is missing; copy the file again"),
        ({"data_0": bytes(139)}, "storage '0' has 139 bytes, its tensors say 140"),
        ({"data_0": bytes(141)}, "storage '0' has 141 bytes, its tensors say 140"),
        ({"byteorder": b"big"}, "byte order b'big', expected b'little'.*little-endian machine"),
    ],
)
def test_zips_that_lie(file, changes, message):
    refuses(read_piece, write_zip(file, **changes), message)


@pytest.mark.parametrize(
    ("message", "pickles"),
    [
        ("corrupt pickle in it: it ends early", [PLAIN[:-1], b"\x80\2"]),
        ("corrupt pickle", [b".", b"ctorch._utils", b"h\5.", b"t.", b"(K\1u."]),
        ("its stack is empty", [b"K\1\x85\x86."]),
        ("appends to what is no list", [b")K\1a."]),
        ("sets items of what is no dictionary", [b")(K\1K\2u.", b"}(K\1u."]),
        ("a name to import is no text", [b"K\1K\2\x93."]),
        ("a tensor is not as torch.save describes it", [b"K\1K\2R."]),
        ("a storage is not as torch.save describes it", [b"K\1Q.", pickled(Storage(-1))]),
        (r"instruction b'B' is none that torch.save writes", [b"B\0\0\0\0."]),
        ("its tensors say 18446744073709551616", [pickled(Tensor(Storage(2**62), 0, (7, 5), (5, 1)))]),
    ],
)
def test_pickles_that_lie(file, message, pickles):
    for content in pickles:
        refuses(read_piece, write_zip(file, data_pkl=content), message)


@pytest.mark.parametrize(
    "layout", [(0, (7, 5), (5,)), (0, (-7, 5), (5, 1)), (-1, (7, 5), (5, 1)), (0, (7, 2**63), (5, 1))]
)
def test_impossible_shapes(file, layout):
    refuses(read_piece, write_zip(file, data_pkl=pickled(Tensor(Storage(35), *layout))), "impossible shape or stride")


@pytest.mark.parametrize("layout", [(0, (8, 5), (5, 1)), (1, (7, 5), (5, 1)), (0, (7, 5), (6, 1))])
def test_tensors_larger_than_their_storage(file, layout):
    content = pickled(Tensor(Storage(35), *layout))
    refuses(read_piece, write_zip(file, data_pkl=content), "reaches over the 35 values of its storage")


def patch(content, signature, offset, value):
    """The field `offset` bytes after the last `signature`, overwritten."""
    at = content.rindex(signature) + offset
    return content[:at] + value + content[at + len(value) :]


def test_damaged_zip_files(file):
    torch.save(FEATURES, file)
    content = file.read_bytes()
    storage = content.index(b"slide/data/0")
    in_directory = content.rindex(b"slide/data/0")
    start, end = content.index(b"PK\1\2"), content.index(b"PK\6\6")
    for damage, message in [
        (content[:-1], "truncated: .*zip directory at its end is missing"),
        (content[:700], "truncated"),
        (content + b"x", "truncated"),
        (patch(content, b"PK\6\6", 48, b"\xff" * 8), "truncated: bytes 18446744073709551615 to"),
        (patch(content, b"PK\6\6", 40, b"\xff" * 8), "18446744073709551615 bytes of metadata, expected at most"),
        (patch(content, b"PK\6\6", 32, b"\xff" * 8), r"18446744073709551615 entries stated, 7 found"),
        (patch(content, b"PK\6\6", 40, (end - start - 40).to_bytes(8, "little")), "7 entries stated, 6 found"),
        (patch(content, b"PK\6\6", 0, b"PK\6\5"), "zip64 end is not where it should be"),
        (patch(content, b"PK\1\2", 0, b"PK\1\1"), "7 entries stated, 6 found"),
        (content[: storage - 30] + b"PK\3\5" + content[storage - 26 :], "'slide/data/0' is not where the directory"),
        (content[:storage] + b"slide/data/1" + content[storage + 12 :], "'slide/data/0' is not where the directory"),
        (content[: in_directory - 38] + b"\1" + content[in_directory - 37 :], "'slide/data/0' is encrypted"),
        (content[: in_directory - 36] + b"\x08" + content[in_directory - 35 :], "'slide/data/0' is compressed"),
        (content[: in_directory - 26] + b"\x8d" + content[in_directory - 25 :], "'slide/data/0' is compressed"),
        (content[: in_directory - 4] + b"\xff" * 4 + content[in_directory:], "4 GiB or more without its size"),
        (content[: in_directory - 26] + b"\0\0\0\1" * 2 + content[in_directory - 18 :], "truncated: entry .* ends at"),
    ]:
        assert len(damage) <= len(content) + 1
        file.write_bytes(damage)
        refuses(read_piece, file, message)


# Programs that would take forever, fill the memory or end the process in a standard unpickler.


def run(program):
    def locate(key, nbytes):
        if key == "0" and nbytes == 140:
            return 64
        raise sf.ArchiveError("slide.pt: no such storage")

    return decode(Path("slide.pt"), program, locate)


def test_a_memo_index_that_would_fill_the_memory():
    assert run(b"\x80\2K\1r\xff\xff\xff\xff.") == 1


def test_a_text_longer_than_the_program():
    for program in (b"X\xff\xff\xff\xff.", b"\x95" + b"\xff" * 8, b"\x8a\xff\1."):
        with pytest.raises(sf.ArchiveError, match="it ends early"):
            run(program)


def test_keys_that_would_be_hashed_without_end():
    doubling = b")q\0" + b"h\0h\0\x86q\0" * 100
    nested = b")" + b"\x85" * 1_000_000 + b"q\0"
    for key in (doubling, nested):
        with pytest.raises(sf.ArchiveError, match="key of type tuple"):
            run(key + b"}h\0K\1s.")


def test_a_list_that_holds_itself(file):
    write_zip(file, data_pkl=b"]q\0h\0a.")
    refuses(read_piece, file, "found a list of 1")


class Malicious:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (self.victim,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_pickle_is_not_run(file, tmp_path, protocol):
    victim = tmp_path / "victim"
    torch.save({"features": FEATURES, "label": Malicious(str(victim))}, file, pickle_protocol=protocol)
    refuses(read_piece, file, "pickled posix.mkdir; refused, as reading it may run any code")
    assert not victim.exists()
    torch.load(file, weights_only=False)
    assert victim.exists()


# Property tests.


def save(records, protocol=2):
    stream = io.BytesIO()
    torch.save(records, stream, pickle_protocol=protocol)
    return stream.getvalue()


VICTIM = os.path.join(tempfile.gettempdir(), f"shazam_fast-{os.getpid()}")
SAVED = [
    save(FEATURES[:, 1:4]),
    save((FEATURES, LABELS)),
    save({"features": FEATURES.bfloat16(), "coords": COORDS, "label": LABELS}, protocol=4),
    save({"features": FEATURES, "label": Malicious(VICTIM)}),
]
DESCRIPTIONS = [  # the pickle with its header, and the zip directory
    [*range(content.index(b"PK", 4)), *range(content.index(b"PK\1\2"), len(content))] for content in SAVED
]


@FUZZ
@given(damaged(SAVED, DESCRIPTIONS))
def test_any_damage_is_survived(file, content):
    survives(file, content, read_piece)
    assert not Path(VICTIM).exists()


SIZES = st.one_of(st.integers(0, 8), st.sampled_from([35, -1, 2**31, 2**62, 2**63 - 1, 2**63, 2**64, True, 1.0, "1"]))


@FUZZ
@given(st.sampled_from([35, 17, 0]), SIZES, st.lists(SIZES, max_size=3), st.lists(SIZES, max_size=3), st.booleans())
def test_any_view_is_survived(file, values, start, shape, stride, labels):
    tensor = Tensor(Storage(values), start, tuple(shape), tuple(stride))
    whole = Tensor(Storage(values), 0, (7, 5), (5, 1))
    records = {"features": whole, "coords": tensor, "label": tensor} if labels else tensor
    write_zip(file, data_pkl=pickled(records), data_0=ENTRIES["data/0"][: values * 4])
    survives(file, file.read_bytes(), read_piece)


PIECES = [
    pickled(Storage(35))[2:-1],
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"cos\nmkdir\n",
]
PIECES += [
    b"X\1\0\0\0a",
    b"\x8c\1a",
    b"\x8a\2\xff\xff",
    b"J\xff\xff\xff\xff",
    b"K\5",
    b"M\7\0",
    b"q\0",
    b"h\0",
    b"j\0\0\0\0",
]
PIECES += [bytes([code]) for code in b"()]}NtaesuRQ.\x85\x86\x87\x88\x89\x93\x94b012lpSIFL\x81\x92\x82"]


@FUZZ
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=2)), max_size=30))
def test_any_program_is_survived(pieces):
    with suppress(sf.ArchiveError):
        run(b"".join(pieces))
