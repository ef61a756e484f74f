"""What happens to files and to the process while the core reads: each run in a process of its own."""

import os
import subprocess
import sys
import textwrap

import pytest

SHAPE = """
import faulthandler, os, resource, sys, threading, time
import numpy as np
from shazam_fast import _core

def make_store(path, count=4000, width=500):
    np.ones((count, width), np.float32).tofile(path)
    return _core.FeatureStore(width, "float32", [path], np.array([[0, 0, count, 4 * width]]))

path = sys.argv[1]
"""


def run(tmp_path, code, *arguments):
    """Runs `code` after SHAPE; what it returned and wrote to stderr."""
    script = SHAPE + textwrap.dedent(code)
    command = [sys.executable, "-c", script, str(tmp_path / "a"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


REWRITTEN = """
def open_store():
    return _core.FeatureStore(500, "float32", [path], np.array([[0, 0, 4000, 2000]]))

store = make_store(path)
content = open(path, "rb").read()
rows, out = np.random.default_rng(0).permutation(4000), np.empty((4000, 500), np.float32)
buffers = [np.empty((100, 500), np.float32) for _ in range(2)]

def gather():
    store.gather(rows, out, 2)
    assert (out == 1).all()

def stream():
    prefetcher = _core.Prefetcher([(store, 0)], rows, np.arange(0, 4001, 100), buffers, 2)
    while (batch := prefetcher.next()) is not None:
        assert (buffers[batch[0]] == 1).all()
        prefetcher.release(batch[0])

def verify():
    assert store.check_finite(0, 4000) == -1

read = {"gather": gather, "stream": stream, "verify": verify}[sys.argv[2]]
if sys.argv[3] == "before":
    faulthandler.enable()
read()
if sys.argv[3] == "after":
    faulthandler.enable()

def rewrite():
    while not done:
        with open(path, "wb") as file:
            file.write(content)

kinds, done = set(), False
threading.Thread(target=rewrite, daemon=True).start()
begun = time.time()
while time.time() < begun + (0.3 if kinds else 3.0):
    try:
        read()
    except _core.StoreError as error:
        assert path in str(error)
        kinds.add(error.kind)
        store = open_store()  # read through its descriptor first, then through its mapping
done = True
assert kinds and kinds <= {"shrunk", "changed", "truncated"}, kinds
"""


@pytest.mark.parametrize("faulthandler", ["never", "before", "after"])
@pytest.mark.parametrize("work", ["gather", "stream", "verify"])
def test_a_file_rewritten_while_it_is_read_is_an_error(tmp_path, work, faulthandler):
    assert run(tmp_path, REWRITTEN, work, faulthandler) == (0, "")


def test_a_file_cut_short_while_it_is_read_has_shrunk(tmp_path):
    code = """
    store, rows, out = make_store(path), np.arange(4000), np.empty((4000, 500), np.float32)
    store.gather(rows, out)
    threading.Timer(0.2, os.truncate, (path, 4096)).start()
    try:
        while True:
            store.gather(rows, out)
    except _core.StoreError as error:
        assert error.kind == "shrunk", error.kind
    """
    assert run(tmp_path, code) == (0, "")


def test_a_fault_elsewhere_still_reaches_faulthandler(tmp_path):
    code = """
    import mmap
    store = make_store(path)
    faulthandler.enable()
    store.check_finite(0, 4000)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    os.truncate(path, 0)
    mapped[5000]
    """
    status, said = run(tmp_path, code)
    assert status == -7
    assert said.startswith("Fatal Python error: Bus error")
    assert said.count("Fatal Python error") == 1


AT_EXIT = """
store = make_store(path)
kept = []
def ones(*shape):
    return np.ones(shape, np.float32)

def gather():
    out, rows = np.empty((400, 500), np.float32), np.arange(400)
    while True:
        store.gather(rows, out, 2)

def verify():
    while True:
        store.check_finite(0, 4000)

def stream():
    buffers = [np.empty((100, 500), np.float32) for _ in range(3)]
    while True:
        prefetcher = _core.Prefetcher([(store, 0)], np.arange(4000), np.arange(0, 4001, 100), buffers, 2)
        while (batch := prefetcher.next()) is not None:
            prefetcher.release(batch[0])

def wait():
    prefetcher = _core.Prefetcher([(store, 0)], np.arange(4000), np.arange(0, 4001, 100), [ones(100, 500)], 2)
    kept.append(prefetcher)
    prefetcher.next()
    time.sleep(60)

def attend():
    qkv, P, out = ones(4000, 96), ones(1000, 4, 4), ones(1000, 4, 32)
    while True:
        _core.attention_forward(qkv, None, P, out, 2)

def infer():
    core = _core.FoldedStudent([9, 9], ones(18, 8), ones(2, 8), ones(8, 16), ones(8, 8), ones(8), ones(8, 3), ones(3))
    while True:
        core.forward(ones(240, 18), [0, 9], ones(240, 3), ones(240, 2), ones(240, 8))

for _ in range(3):
    threading.Thread(target=globals()[sys.argv[2]], daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.parametrize("work", ["gather", "verify", "stream", "wait", "attend", "infer"])
def test_daemon_threads_do_not_abort_the_exit(tmp_path, work):
    assert run(tmp_path, AT_EXIT, work) == (0, "")


def test_stores_leave_descriptors_to_the_rest_of_the_process(tmp_path):
    code = """
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    os.mkdir(path)
    for i in range(250):
        np.full(2, i, np.float32).tofile(f"{path}/{i}")
    files, extents = [f"{path}/{i}" for i in range(250)], np.array([[i, 0, 1, 8] for i in range(250)])
    stores = [_core.FeatureStore(2, "float32", files, extents) for _ in range(4)]
    before = len(os.listdir("/proc/self/fd"))
    out = np.empty((250, 2), np.float32)
    for _ in range(2):
        for store in stores:
            store.gather(np.arange(250), out, 2)
            assert (out[:, 1] == np.arange(250)).all()
            assert len(os.listdir("/proc/self/fd")) - before <= 64
    os.truncate(files[3], 4)  # noticed with and without a descriptor
    for store in stores:
        try:
            store.gather(np.arange(250), out)
        except _core.StoreError as error:
            assert error.kind == "shrunk" and files[3] in str(error), (error.kind, error)
        else:
            raise AssertionError("not noticed")
    """
    assert run(tmp_path, code) == (0, "")


@pytest.mark.parametrize(("kind", "found"), [("fifo", "a named pipe"), ("folder", "a directory"), ("zero", "a device")])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind, found):
    path = tmp_path / "a"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    code = """
    import sys
    store = _core.FeatureStore(2, "float32", [path], np.array([[0, 0, 1, 8]]))
    for work in (lambda: store.gather(np.arange(1), np.empty((1, 2), np.float32)), lambda: store.check_finite(0, 1)):
        try:
            work()
        except _core.StoreError as error:
            assert error.kind == "unsupported" and str(error) == f"{path}: expected a file, found {sys.argv[2]}", error
        else:
            raise AssertionError("not refused")
    """
    assert run(tmp_path, code, found) == (0, "")
