"""The compiled core against NumPy memory maps: values bit by bit, and one named error per misuse."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shazam_fast import _core

STORED = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}
HUGE = 2**63 - 1


def widened(values, dtype):
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def assert_same_floats(found, expected):
    """Equal bit by bit, NaN meaning any NaN."""
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


def make_store(path, values, dtype="float32"):
    """A store of one file that holds `values` and nothing else."""
    values.tofile(path)
    extents = np.array([[0, 0, len(values), values.strides[0]]])
    return _core.FeatureStore(values.shape[1], dtype, [str(path)], extents)


def make_many(folder, count, **options):
    """`count` files of one row of 2; row i holds 2i and 2i + 1."""
    values = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    files = [str(folder / f"{i}.bin") for i in range(count)]
    for file, row in zip(files, values, strict=True):
        row.tofile(file)
    extents = np.array([[i, 0, 1, 8] for i in range(count)])
    return _core.FeatureStore(2, "float32", files, extents, **options), values, files


def gathered(store, rows, threads=1):
    out = np.full((len(rows), store.columns), np.nan, dtype=np.float32)
    store.gather(np.asarray(rows, dtype=np.int64), out, threads)
    return out


@contextmanager
def expect_error(kind, match):
    with pytest.raises(_core.StoreError, match=match) as info:
        yield
    assert info.value.kind == kind


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("columns", [1, 7, 8, 37, 1536])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_gather_and_read_equal_a_memory_map(tmp_path, dtype, columns, threads):
    stored = np.dtype(STORED[dtype])
    random_bits = np.random.default_rng(0).bytes(501 * columns * stored.itemsize)  # NaN and infinity included
    (tmp_path / "a").write_bytes(b"header" + random_bits)
    reference = np.memmap(tmp_path / "a", stored, "r", offset=6, shape=(501, columns))
    extents = np.array([[0, 6, 501, columns * stored.itemsize]])
    store = _core.FeatureStore(columns, dtype, [str(tmp_path / "a")], extents)
    assert (store.rows, store.columns, store.dtype, store.itemsize) == (501, columns, dtype, stored.itemsize)

    rows = np.random.default_rng(1).integers(0, 501, 300)
    for expected, fill in [
        (reference[rows], lambda out: store.gather(rows, out, threads)),
        (reference[3:501], lambda out: store.read(3, 501, out, threads)),
        (reference[13:14], lambda out: store.read(13, 14, out, threads)),
    ]:
        raw, wide = np.empty(expected.shape, stored), np.empty(expected.shape, np.float32)
        fill(raw)
        fill(wide)
        np.testing.assert_array_equal(raw.view(np.uint8), expected.view(np.uint8))
        assert_same_floats(wide, widened(expected, dtype))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_extents_equal_concatenated_slices(tmp_path_factory, data):
    """Extents anywhere in three files, overlapping, interleaved, empty; any request."""
    folder = tmp_path_factory.mktemp("extents")
    columns = data.draw(st.integers(1, 9))
    content = [np.random.default_rng(i).standard_normal(400).astype(np.float32) for i in range(3)]
    extents, parts = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        file, stride = data.draw(st.integers(0, 2)), data.draw(st.integers(columns, 2 * columns))
        offset, rows = data.draw(st.integers(0, 100)), data.draw(st.integers(0, 12))
        extents.append((file, offset * 4, rows, stride * 4))
        parts += [content[file][offset + i * stride :][:columns] for i in range(rows)]
    for i in range(3):
        content[i].tofile(folder / str(i))
    expected = np.array(parts, np.float32).reshape(-1, columns)
    files = [str(folder / str(i)) for i in range(3)]
    store = _core.FeatureStore(columns, "float32", files, np.array(extents), data.draw(st.integers(1, 3)))
    assert store.rows == len(expected)

    rows = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=50)) if len(expected) else []
    np.testing.assert_array_equal(gathered(store, rows), expected[rows])
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    out = np.empty((stop - start, columns), np.float32)
    store.read(start, stop, out)
    np.testing.assert_array_equal(out, expected[start:stop])


def test_output_may_be_a_slice_of_a_wider_buffer(tmp_path):
    values = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float16)
    store = make_store(tmp_path / "a", values, "float16")
    buffer = np.zeros((100, 20), np.float32)
    rows = np.arange(49, -1, -1)
    store.gather(rows, buffer[1:100:2, 3:9][:50])
    np.testing.assert_array_equal(buffer[1:100:2, 3:9], values[::-1])
    store.read(0, 50, buffer[98::-2, 3:9])
    np.testing.assert_array_equal(buffer[98::-2, 3:9], values)
    assert not buffer[:, :3].any()
    assert not buffer[:, 9:].any()


def test_no_rows_and_no_extents(tmp_path):
    store = make_store(tmp_path / "a", np.ones((3, 2), np.float32))
    assert gathered(store, []).shape == (0, 2)
    store.read(3, 3, np.empty((0, 2), np.float32))
    empty = _core.FeatureStore(5, "float16", [], np.empty((0, 4), np.int64))
    assert empty.rows == 0
    assert empty.check_finite(0, 0) == -1
    with expect_error("bounds", r"row 0 at position 0 is outside \[0, 0\)"):
        gathered(empty, [0])


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_finite_names_the_first_bad_row(tmp_path, dtype, bad):
    values = np.full((5000, 33), np.finfo(np.float16).max, np.float32)
    values[[3210, 4000], [32, 0]] = bad
    stored = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values.astype(STORED[dtype])
    store = make_store(tmp_path / "a", stored, dtype)
    assert store.check_finite(0, 5000) == 3210
    assert store.check_finite(3211, 5000) == 4000
    assert store.check_finite(0, 3210) == -1


def test_advice_changes_no_value(tmp_path):
    store, values, _ = make_many(tmp_path, 6, max_open=2)
    for pattern in ("random", "sequential"):
        store.advise(pattern)
        np.testing.assert_array_equal(gathered(store, [5, 0, 3]), values[[5, 0, 3]])
    with expect_error("bounds", "unknown pattern 'often'"):
        store.advise("often")


def test_many_files_with_two_open(tmp_path):
    store, values, files = make_many(tmp_path, 30, max_open=2)
    rows = np.random.default_rng(0).integers(0, 30, 200)
    np.testing.assert_array_equal(gathered(store, rows, threads=4), values[rows])
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[-1] for line in maps}
    assert len(mapped & set(files)) == 2


def test_a_hundred_thousand_files_cost_nothing_until_read(tmp_path):
    count = 100_000
    extents = np.stack([np.arange(count), np.zeros(count), np.full(count, 300), np.full(count, 3072)], axis=1)
    start = time.perf_counter()
    store = _core.FeatureStore(1536, "float16", [f"/nowhere/{i}" for i in range(count)], extents.astype(np.int64))
    assert time.perf_counter() - start < 1
    assert store.rows == 300 * count
    with expect_error("missing", "/nowhere/99999: no such file"):
        gathered(store, [300 * count - 1])


def test_a_file_that_shrinks_or_vanishes(tmp_path):
    store, _, files = make_many(tmp_path, 3, max_open=1)
    gathered(store, [0])
    os.truncate(files[0], 7)
    with expect_error("shrunk", rf"{files[0]}: expected at least 8 bytes, found 7"):
        gathered(store, [0])
    os.remove(files[1])
    with expect_error("missing", files[1]):
        gathered(store, [1])
    np.testing.assert_array_equal(gathered(store, [2]), [[4, 5]])


def test_a_file_that_is_replaced(tmp_path):
    store, _, files = make_many(tmp_path, 2, max_open=1)
    gathered(store, [0])
    np.array([8, 9], np.float32).tofile(tmp_path / "new")
    os.utime(tmp_path / "new", (1, 1))
    os.replace(tmp_path / "new", files[0])
    gathered(store, [1])
    with expect_error("changed", files[0]):
        gathered(store, [0])


@pytest.mark.parametrize("max_open", [1, 2])
def test_a_file_that_is_written_after_it_was_opened(tmp_path, max_open):
    store, values, files = make_many(tmp_path, 2, max_open=max_open)
    gathered(store, [0])
    os.utime(files[0], (1, 1))
    np.testing.assert_array_equal(gathered(store, [1]), values[[1]])  # closes file 0 if one may be open
    with expect_error("changed", files[0]):
        gathered(store, [0])
    again = _core.FeatureStore(2, "float32", files, np.array([[0, 0, 1, 8], [1, 0, 1, 8]]))
    np.testing.assert_array_equal(gathered(again, [0]), values[[0]])


def test_an_extent_beyond_the_end_of_its_file(tmp_path):
    np.zeros(10, np.float32).tofile(tmp_path / "a")
    store = _core.FeatureStore(2, "float32", [str(tmp_path / "a")], np.array([[0, 8, 5, 8]]))
    with expect_error("truncated", "expected at least 48 bytes, found 40"):
        gathered(store, [0])  # the extent is refused as a whole, not just its last row


@pytest.mark.parametrize(
    ("extent", "match"),
    [
        ([0, HUGE, 1, 8], "overflows"),
        ([0, 0, HUGE, HUGE], "overflows"),
        ([0, 8, HUGE // 8, 8], "overflows"),
        ([0, -1, 1, 8], "negative"),
        ([0, 0, -1, 8], "negative"),
        ([0, 0, 1, 7], "row stride of 7"),
        ([1, 0, 1, 8], "file 1 is not one of the 1 files"),
    ],
)
def test_impossible_extents(extent, match):
    with expect_error("bounds", match):
        _core.FeatureStore(2, "float32", ["a"], np.array([extent]))


def test_other_constructor_arguments():
    extents = np.array([[0, 0, 1, 8]])
    with expect_error("dtype", "unknown dtype 'int8'"):
        _core.FeatureStore(2, "int8", ["a"], extents)
    with expect_error("bounds", "0 values"):
        _core.FeatureStore(0, "float32", ["a"], extents)
    with expect_error("bounds", "max_open"):
        _core.FeatureStore(2, "float32", ["a"], extents, 0)
    with expect_error("dtype", "extents: expected int64, found float64"):
        _core.FeatureStore(2, "float32", ["a"], extents.astype(float))
    with expect_error("bounds", "4 columns"):
        _core.FeatureStore(2, "float32", ["a"], extents[:, :3])


def test_rows_and_outputs_that_do_not_fit(tmp_path):
    store = make_store(tmp_path / "a", np.ones((10, 4), np.float16), "float16")
    rows = np.arange(3)
    good = np.empty((3, 4), np.float32)
    read_only = good.copy()
    read_only.flags.writeable = False
    for kind, match, call in [
        ("bounds", "row 10 at position 1", lambda: store.gather(np.array([0, 10]), good[:2])),
        ("bounds", "row -1 at position 0", lambda: store.gather(np.array([-1]), good[:1])),
        ("bounds", r"rows \[8, 11\)", lambda: store.read(8, 11, good)),
        ("bounds", r"\[3, 5\], expected \[3, 4\]", lambda: store.gather(rows, np.empty((3, 5), np.float32))),
        ("bounds", "2 dimensions, found 1", lambda: store.gather(rows, np.empty(12, np.float32))),
        ("bounds", "1 dimensions, found 2", lambda: store.gather(rows[None], good)),
        ("bounds", "threads", lambda: store.gather(rows, good, 0)),
        ("dtype", "rows: expected int64, found float64", lambda: store.gather(rows.astype(float), good)),
        ("dtype", "found float64", lambda: store.gather(rows, good.astype(float))),
        ("dtype", "found >f4", lambda: store.gather(rows, good.astype(">f4"))),
        ("dtype", "holds bfloat16, expected float32 or float16", lambda: store.gather(rows, good.astype(np.uint16))),
        ("dtype", "read-only", lambda: store.gather(rows, read_only)),
        ("dtype", "contiguous", lambda: store.gather(rows, np.empty((4, 3), np.float32).T)),
    ]:
        with expect_error(kind, match):
            call()
    np.testing.assert_array_equal(gathered(store, rows[::2]), np.ones((2, 4)))  # strided rows are fine


def start_prefetcher(tmp_path, buffers, batch=16, spoil=None):
    values = np.random.default_rng(0).standard_normal((400, 5)).astype(np.float16)
    store = make_store(tmp_path / "a", values, "float16")
    rows = np.random.default_rng(1).permutation(400)
    expected = np.concatenate([values[rows], values[rows]], axis=1)
    if spoil is not None:
        rows[spoil] = 400
    bounds = np.append(np.arange(0, 400, batch), 400)
    arrays = [np.full((batch, 12), np.nan, np.float32) for _ in range(buffers)]
    return _core.Prefetcher([(store, 0), (store, 7)], rows, bounds, arrays, 2), arrays, expected


def state(path):
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def test_states_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"{number}.h5" for number in range(700)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * number)
    odd = os.fsdecode(b"\xff\xfe.h5")  # no UTF-8
    (tmp_path / odd).touch()
    (tmp_path / "old").touch()
    os.utime("old", ns=(0, -1_500_000_000))
    os.symlink("3.h5", "link")
    os.symlink("nowhere", "broken")
    files = [*names, odd, os.fsencode(odd), tmp_path / "old", "link"]
    found = _core.file_states([*files, "none", "3.h5/none", "broken", "x" * 5000])
    assert found.dtype == np.int64
    assert found.tolist() == [*map(state, files), *[[-1] * 4] * 4]
    assert _core.file_states([]).shape == (0, 4)


def test_a_time_that_does_not_fit(tmp_path):
    for folder in (tmp_path, "/dev/shm"):
        if os.access(folder, os.W_OK):
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                os.utime(file.name, (0, 10**11))
                fits = os.stat(file.name).st_mtime_ns < 2**63
                assert _core.file_states([file.name]).tolist() == [state(file.name) if fits else [-1] * 4]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint16"])
def test_rows_are_taken_from_memory(dtype):
    features = np.random.default_rng(0).integers(0, 200, (50, 2 * 37)).astype(dtype)[:, :37]
    expected = (features.astype(np.uint32) << 16).view(np.float32) if dtype == "uint16" else features.astype("f4")
    rows, out = np.array([3, 49, 0, 3, 7]), np.zeros((5, 40), np.float32)
    _core.take_rows(features, rows, out[:, 1:38])
    np.testing.assert_array_equal(out[:, 1:38], expected[rows])
    assert not out[:, [0, 38, 39]].any()
    for wrong in ([50, 0, 0, 0, 0], [-1, 0, 0, 0, 0], [0, 1]):
        with pytest.raises(_core.StoreError):
            _core.take_rows(features, np.array(wrong), out[:, 1:38])
    for refused in (out[:, :36], np.zeros((5, 37), np.float16)):
        with pytest.raises(_core.StoreError):
            _core.take_rows(features, rows, refused)


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_prefetcher_keeps_the_order(tmp_path, buffers):
    prefetcher, arrays, expected = start_prefetcher(tmp_path, buffers, batch=17)
    found = []
    while (batch := prefetcher.next()) is not None:
        index, rows = batch
        found.append(arrays[index][:rows, [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]].copy())
        prefetcher.release(index)
    assert [len(batch) for batch in found] == [17] * 23 + [9]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert np.isnan(arrays[0][:, 5:7]).all()
    assert prefetcher.next() is None


def test_prefetcher_stops_early(tmp_path):
    for batches in range(6):
        prefetcher, *_ = start_prefetcher(tmp_path, buffers=2)
        for _ in range(batches):
            prefetcher.release(prefetcher.next()[0])
        if batches % 2:
            prefetcher.close()
            assert prefetcher.next() is None
        del prefetcher  # closes it


def test_prefetcher_raises_in_place(tmp_path):
    prefetcher, *_ = start_prefetcher(tmp_path, buffers=2, spoil=40)
    for _ in range(2):
        prefetcher.release(prefetcher.next()[0])
    for _ in range(2):
        with expect_error("bounds", "row 400 at position 8"):
            prefetcher.next()


def test_prefetcher_refuses_misuse(tmp_path):
    prefetcher, *_ = start_prefetcher(tmp_path, buffers=1)
    index, _ = prefetcher.next()
    with expect_error("bounds", "every buffer is lent"):
        prefetcher.next()
    prefetcher.release(index)
    with expect_error("bounds", "not lent"):
        prefetcher.release(5)
    store = make_store(tmp_path / "b", np.ones((4, 3), np.float16), "float16")
    with expect_error("dtype", "a buffer holds bfloat16"):
        _core.Prefetcher([(store, 0)], np.arange(4), np.array([0, 4]), [np.empty((4, 3), np.uint16)])


FORK = """
import os, sys, numpy as np
from shazam_fast import _core
np.arange(1_000_000, dtype=np.float32).tofile(sys.argv[1])
store = _core.FeatureStore(1000, "float32", [sys.argv[1]], np.array([[0, 0, 1000, 4000]]))
out = np.empty((1000, 1000), np.float32)
store.read(0, 1000, out, 4)  # the pool has threads now
buffers = [np.empty((10, 1000), np.float32)]
prefetcher = _core.Prefetcher([(store, 0)], np.arange(1000), np.arange(0, 1001, 10), buffers)
child = os.fork()
out[:] = 0
store.read(0, 1000, out, 4)
assert (out.ravel() == np.arange(1_000_000)).all()
if child == 0:
    assert len(os.listdir("/proc/self/task")) == 4
    try:
        prefetcher.next()
    except _core.StoreError as error:
        assert error.kind == "system", error.kind
    del prefetcher
else:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_child_reads_with_threads_of_its_own(tmp_path):
    subprocess.run([sys.executable, "-c", FORK, str(tmp_path / "a")], check=True, timeout=60)
