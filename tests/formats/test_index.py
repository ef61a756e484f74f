"""Index files that are damaged, of another version or of another machine, and positions told by their digests."""

import os
import random
import sys

import msgspec
import numpy as np
import pytest
import xxhash
from fuzzing import EXAMPLES

from shazam_fast.formats.geometry import Geometry
from shazam_fast.formats.index import folder
from shazam_fast.formats.index.entries import Learned, can_keep, pack
from shazam_fast.formats.index.folder import read_body, write_body
from shazam_fast.formats.index.scan import digest_of
from shazam_fast.formats.index.table import NO_ENTRY, DamagedError, Table
from shazam_fast.formats.pieces import ITEM_BYTES, FileState, Piece, Place, StoredCoords

MUTATIONS = max(EXAMPLES // 10, 50)
NUMBERS = (-1, 0, 1, 2, 9, 1 << 31, 1 << 62, (1 << 63) - 1, -(1 << 63))
ROOT = b"/data/cohort"


def reread():
    raise AssertionError("not to be read")


def learned(rows, dtype="float32", columns=4, seed=0, place=True):
    """A piece of some runs that lie in a file of 10 kB, as `learn` gives it."""
    random = np.random.default_rng(seed)
    item = 2 if dtype == "float16" else 4
    step = columns * item
    offsets = 64 + np.sort(random.permutation(200)[: max(1, rows // 3)]) * step * 4
    runs = np.stack([offsets, np.full(len(offsets), 3), np.full(len(offsets), step)], axis=1)[: rows // 3]
    state = FileState(200 * step * 4 + 1000, 1_700_000_000_123_456_789, 1_700_000_000_200_000_000, 4711 + seed)
    n_rows = 3 * len(runs)
    in_file = Place(np.array([[16, n_rows, 8]]), 2, ">i4") if place else None
    coords = StoredCoords(f"/data/cohort/{seed}.h5", state, in_file, "<i4", b"%016d" % seed, reread)
    piece = Piece(columns, dtype, runs, coords if n_rows else np.empty((0, 2), "<i8"), geometry=Geometry("pixels", 256),
                  encoder="uni", coords_place=in_file if n_rows else None, modified=state.modified)  # fmt: skip
    return Learned((state, FileState(1, 2, 3, 4)), piece)


@pytest.fixture
def entries():
    cases = [
        (30, "float32", 4, 0, True),
        (0, "float32", 0, 1, True),
        (9, "float16", 8, 2, False),
        (60, "bfloat16", 6, 3, True),
    ]
    return {f"/data/cohort/{case[3]}.h5\0?features": learned(*case) for case in cases}


def equal(left, right):
    """Whether two pieces are the same, type by type."""
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, Piece | Place | StoredCoords):
        return type(left) is type(right) and all(
            equal(getattr(left, name), getattr(right, name)) for name in left.__struct_fields__
        )
    return repr(left) == repr(right)


def pieces_of(packed):
    for key, number in packed.numbers.items():
        state = FileState(*packed.states(number)[0])
        yield key, state, packed.piece(number, key.partition("\0")[0], state, reread)


def test_entries_come_back_as_they_were(entries):
    packed = Table(pack("me", ROOT, 17, entries), "me", ROOT)
    assert packed.written == 17
    assert list(packed.numbers) == list(entries)
    for key, state, piece in pieces_of(packed):
        assert equal(piece, entries[key].piece)
        assert piece.n_rows == entries[key].piece.runs[:, 1].sum()
        assert [tuple(s) for s in entries[key].states] == packed.states(packed.numbers[key])
        assert state == entries[key].states[0]


def test_entries_whose_files_are_as_they_were(entries):
    """All files of an entry, as many as it has."""
    table = Table(pack("1", ROOT, 0, entries), "1", ROOT)
    numbers = np.array([table.numbers["/data/cohort/2.h5\0?features"], NO_ENTRY, 0, 1, 3])
    files = [list(one.states) for one in entries.values()]
    files = [files[2], [(-1, -1, -1, -1)], files[0][:1], files[1], [files[3][0], (1, 2, 3, 5)]]
    counts = np.array([len(states) for states in files])
    states = np.array([state for states in files for state in states])
    assert table.are_in(numbers, states, counts).tolist() == [True, False, False, True, False]
    for column in range(4):
        changed = states.copy()
        changed[0, column] += 1
        assert table.are_in(numbers, changed, counts).tolist() == [False, False, False, True, False]
    nothing = np.empty(0, np.int64)
    assert not len(table.are_in(nothing, np.empty((0, 4), np.int64), nothing))
    assert not Table(pack("1", ROOT, 0, {}), "1", ROOT).are_in(numbers[1:2], states[:1], counts[1:2]).any()


def test_no_entries():
    assert Table(pack("me", ROOT, 17, {}), "me", ROOT).numbers == {}


def test_runs_at_uneven_distances_and_far_apart():
    runs = np.array([[4096, 7, 16], [1 << 40, 1, 64], [10, 2, 16], [1 << 41, 3, 1 << 20]])
    one = learned(30)
    state = one.states[0]._replace(size=1 << 42)
    piece = Piece(4, "float32", runs, modified=state.modified)
    packed = Table(pack("me", ROOT, 0, {"a": Learned((state,), piece), "/data/cohort/0.h5": one}), "me", ROOT)
    found = {key: piece for key, _, piece in pieces_of(packed)}
    assert equal(found["a"], piece)
    assert equal(found["/data/cohort/0.h5"], one.piece)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.zeros(30, np.int64)}, {"splits": np.zeros(30, np.uint8)}, {"groups": np.full(30, "g")},
        {"files": ("a",) * 10}, {"coords": np.zeros((30, 2), np.longdouble)}, {"columns": 1 << 31},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_no_entry_can_hold(change):
    from msgspec.structs import replace

    one = learned(30)
    assert can_keep(one)
    assert not can_keep(Learned(one.states, replace(one.piece, **change)))
    assert not can_keep(Learned((one.states[0]._replace(modified=-1),), one.piece))
    assert not can_keep(Learned((one.states[0]._replace(inode=1 << 63),), one.piece))


@pytest.mark.parametrize(("writer", "root"), [("you", ROOT), ("me", b"/data/other")])
def test_an_index_of_another_version_or_directory(entries, writer, root):
    with pytest.raises(DamagedError, match="of another version, machine or directory"):
        Table(pack("me", ROOT, 0, entries), writer, root)


def test_an_index_of_a_machine_of_another_byte_order(entries, monkeypatch):
    body = pack("me", ROOT, 0, entries)
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(DamagedError, match="machine"):
        Table(body, "me", ROOT)


def test_a_changed_byte_is_noticed(entries, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o700)
    file = tmp_path / "cache" / "a.index"
    write_body(file, pack("me", ROOT, 0, entries))
    content = file.read_bytes()
    assert read_body(file) == pack("me", ROOT, 0, entries)
    chosen = random.Random(0)
    for _ in range(MUTATIONS):
        place = chosen.randrange(len(content))
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << chosen.randrange(8)]) + content[place + 1 :])
        with pytest.raises(DamagedError):
            read_body(file)
        file.write_bytes(content[:place])
        with pytest.raises(DamagedError):
            read_body(file)


def lie_within_file(packed):
    for _, state, piece in pieces_of(packed):
        for runs, row_bytes in (
            (piece.runs, piece.columns * ITEM_BYTES[piece.dtype]),
            *((p.runs, p.columns * np.dtype(p.dtype).itemsize) for p in [piece.coords_place] if p),
        ):
            for offset, rows, stride in runs.tolist():
                assert offset >= 0
                assert rows > 0
                assert stride >= row_bytes > 0
                assert offset + (rows - 1) * stride + row_bytes <= state.size
        assert piece.coords is None or piece.coords_place is None or piece.coords_place.runs[:, 1].sum() == piece.n_rows


def test_whatever_an_index_says_rows_lie_within_their_files(entries):
    """The checksum holds, as somebody may have made it, and a byte or a number is another."""
    body = pack("me", ROOT, 0, entries)
    chosen = random.Random(1)
    survived = 0
    for _ in range(MUTATIONS):
        place = chosen.randrange(len(body))
        damaged = body[:place] + bytes([chosen.choice([0, 1, 127, 128, 255, body[place] ^ 1])]) + body[place + 1 :]
        try:
            packed = Table(damaged, "me", ROOT)
        except DamagedError:
            continue
        lie_within_file(packed)
        survived += damaged != body
    assert survived  # a time, a digest
    document = msgspec.msgpack.decode(body)
    for _ in range(MUTATIONS):
        changed = {**document, "columns": dict(document["columns"])}
        name = chosen.choice(list(changed["columns"]))
        values = np.frombuffer(changed["columns"][name]["content"], changed["columns"][name]["kind"]).astype("<i8")
        if not len(values):
            continue
        values[chosen.randrange(len(values))] = chosen.choice(
            [-1, 0, 1, 2, 9, 1 << 31, 1 << 62, (1 << 63) - 1, -(1 << 63)]
        )
        changed["columns"][name] = {"kind": "i8", "content": values.tobytes()}
        try:
            packed = Table(msgspec.msgpack.encode(changed), "me", ROOT)
        except DamagedError:
            continue
        lie_within_file(packed)


def test_a_file_that_is_no_index(tmp_path, monkeypatch):
    place = tmp_path / "cache"
    place.mkdir(mode=0o700)
    file = place / "a.index"
    with pytest.raises(FileNotFoundError):
        read_body(file)
    file.mkdir()
    with pytest.raises((DamagedError, OSError)):
        read_body(file)
    file.rmdir()
    os.mkfifo(file)
    with pytest.raises(DamagedError, match="not a regular file"):
        read_body(file)
    file.unlink()
    write_body(file, b"body")
    monkeypatch.setattr(folder, "LARGEST", 10)
    with pytest.raises(DamagedError, match="28 bytes"):
        read_body(file)


def test_a_full_disk_leaves_the_index_as_it_was(tmp_path, monkeypatch, caplog):
    file = tmp_path / "cache" / "a.index"
    write_body(file, b"first")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    folder._said.clear()
    write_body(file, b"second")
    assert "No space left" in caplog.text
    assert read_body(file) == b"first"
    assert [path.name for path in file.parent.iterdir()] == ["a.index"]


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SHAZAM_CACHE", "off")
    assert folder.index_folder() is None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHAZAM_CACHE", "here")
    assert folder.index_folder() == tmp_path / "here" / "index"
    monkeypatch.delenv("SHAZAM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder.index_folder() == tmp_path / "shazam_fast" / "index"


def test_digests_are_equal_for_equal_positions_alone():
    xy = np.array([[0, 256], [512, 3]])
    for dtype in (np.int32, np.uint16, np.float32, ">i8", ">f8"):
        assert digest_of(xy.astype(dtype)) == digest_of(xy)
    others = [xy[::-1], xy + 1, xy.T, xy[:1], xy + 0.5, -xy]
    assert len({digest_of(other) for other in [xy, *others]}) == 7
    for nothing in ([[np.nan, 0]], [[np.inf, 0]], np.array([[1 << 63, 0]], np.uint64)):
        assert digest_of(np.asarray(nothing)) == b""
    assert digest_of(np.array([[0.0, 0.5]])) == digest_of(np.array([[-0.0, 0.5]], np.float32))
    assert xxhash.xxh3_128_digest(b"") not in map(digest_of, others)


@pytest.mark.parametrize("what", ["runs", "places"])
def test_the_last_byte_of_a_file_is_the_last_that_an_entry_may_hold(what):
    one = learned(30)
    if what == "runs":
        piece = Piece(4, "float32", np.array([[1000, 5, 64]]))
        end = 1000 + 4 * 64 + 16
    else:
        end = int(one.piece.coords.place.runs[0] @ [1, 8, 0])
        piece = Piece(1, "float16", np.array([[0, 30, 2]]), one.piece.coords)
    for size, fits in ((end, True), (end - 1, False)):
        entries = {"a": Learned((one.states[0]._replace(size=size),), piece)}
        if fits:
            assert list(Table(pack("me", ROOT, 0, entries), "me", ROOT).numbers) == ["a"]
        else:
            with pytest.raises(DamagedError, match="contradict"):
                Table(pack("me", ROOT, 0, entries), "me", ROOT)
