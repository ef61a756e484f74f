"""An epoch in block order over an archive that is larger than memory, against a plain read of the same files.

    python benchmarks/larger_than_memory.py FOLDER [--gigabytes 10] [--memory 2] [--rounds 3] [--train] [--out out.json]

FOLDER, on the disk that is measured, gets an archive of that size, which is deleted afterwards. Memory is limited by a
process that locks all but --memory gigabytes of what is available (root, or `ulimit -l`); if the system runs short,
that process is the first to be ended, and this one stops. Then three readers take turns, each with the page cache
emptied before:

    plain   every file from its first byte to its last, in blocks of 16 MiB
    epoch   the batches of one epoch of `sf.train(shuffle="blocks")`, as they come from the disk; nothing is computed
    random  64-row batches in uniform order, `shuffle="full"`, for ten seconds

--train also trains the student of D = 128 for two epochs and takes the time of the second. Rates are medians; the
shares are those of the plain read.
"""

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from conftest import processor
from feature_readers import TEACHERS, WIDTH, drop_from_page_cache

import shazam_fast as sf
from shazam_fast.training.feed import TrainingFeed
from shazam_fast.training.plan import plan_epoch

ROW_BYTES = 2 * WIDTH
CHUNK_ROWS = 20_000
BATCH = 64
BLOCK = 16 << 20
RANDOM_SECONDS = 10
CLASSES = 5

LOCK = """
import ctypes, mmap, os, sys
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("1000")  # the first to be ended
count = int(sys.argv[1])
memory = mmap.mmap(-1, count)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc = ctypes.CDLL(None, use_errno=True)
if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(count)):
    sys.exit(f"{count / 1e9:.1f} GB cannot be locked: {os.strerror(ctypes.get_errno())}")
print("locked", flush=True)
sys.stdin.read()
"""


def write(path, gigabytes):
    """An archive of float16 features; its chunks repeat, its labels do not."""
    rng = np.random.default_rng(0)
    count = round(gigabytes * 1e9 / ROW_BYTES / CHUNK_ROWS)
    chunk = {n: rng.standard_normal((CHUNK_ROWS, d), dtype=np.float32).astype(np.float16) for n, d in TEACHERS.items()}
    labels = rng.integers(0, CLASSES, count * CHUNK_ROWS)
    splits = np.where(np.arange(len(labels)) < 0.99 * len(labels), 0, 1).astype(np.uint8)  # 1% validation
    return sf.write_archive(path, (chunk for _ in range(count)), labels=labels, splits=splits)


def available():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) * 1024


class Locked:
    """All memory but `left` bytes is locked within the block. Raises SystemExit when the lock did not last."""

    def __init__(self, left):
        self.left = left

    def __enter__(self):
        n_bytes = int(available() - self.left)
        if n_bytes <= 0:
            raise SystemExit(f"only {available() / 1e9:.1f} GB of memory are available")
        command = [sys.executable, "-c", LOCK, str(n_bytes)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "locked\n":
            raise SystemExit("memory could not be locked")
        return n_bytes

    def require(self):
        if self.process.poll() is not None:
            raise SystemExit("the memory was needed by others, and the lock ended: nothing was measured")

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def plain(path):
    """Bytes of features that were read."""
    buffer = bytearray(BLOCK)
    total = 0
    for part in sorted(path.glob("part-*")):
        with part.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def epoch(path, shuffle, seconds=float("inf")):
    """Bytes of features that an epoch took, or took in some seconds."""
    archive = sf.open(path)
    rows = np.arange(archive.n_rows)
    feed = TrainingFeed(archive, rows, torch.device("cpu"), BATCH)
    plan = plan_epoch(sf.TrainConfig(shuffle=shuffle), 0, len(rows), range(len(TEACHERS)), archive.width)
    feed.begin(plan.order, 0, plan.window)
    started, done = time.perf_counter(), 0
    while done < len(rows) and time.perf_counter() - started < seconds:
        feed.fetch()
        done = min(done + BATCH, len(rows))
    return done * ROW_BYTES


def train(path):
    """Bytes and seconds of the second epoch of a training; the first reads the features twice."""
    times = []
    sf.train(sf.open(path), dim=128, epochs=2, shuffle="blocks", batch_size=BATCH, device="cpu",
             on_epoch=lambda _: times.append(time.perf_counter()))  # fmt: skip
    return sf.open(path).n_rows * ROW_BYTES, times[1] - times[0]


READERS = {
    "plain": plain,
    "epoch": lambda path: epoch(path, "blocks"),
    "random": lambda path: epoch(path, "full", RANDOM_SECONDS),
}


def rate(read, path):
    """Bytes per second, from an empty page cache on, and CPU seconds per GB."""
    gc.collect()  # files that are still mapped would stay in the page cache
    drop_from_page_cache(*path.glob("part-*"))
    started, cpu = time.perf_counter(), time.process_time()
    total = read(path)
    return total / (time.perf_counter() - started), (time.process_time() - cpu) / total * 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--memory", type=float, default=2, help="gigabytes that are left")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    given = parser.parse_args()
    path = given.folder / "larger-than-memory.archive"
    try:
        write(path, given.gigabytes)
        report(given, path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def report(given, path):
    found = {name: [] for name in READERS}
    limit = Locked(given.memory * 1e9)
    with limit as locked:
        for _ in range(given.rounds):
            for name, read in READERS.items():
                found[name].append(rate(read, path))
                limit.require()
        trained = train(path) if given.train else None
        limit.require()
    record = {"device": processor(), "gigabytes": given.gigabytes, "memory_gb": given.memory, "locked_gb": locked / 1e9}
    base = statistics.median(speed for speed, _ in found["plain"])
    for name, measured in found.items():
        speed, cpu = (statistics.median(values) for values in zip(*measured, strict=True))
        record[name] = {"bytes_per_s": [s for s, _ in measured], "share_of_plain": speed / base, "cpu_s_per_gb": cpu}
        print(f"{name:>7}  {speed / 1e9:5.2f} GB/s  {speed / ROW_BYTES:11,.0f} rows/s  {speed / base:5.0%} of plain  "
              f"{cpu:5.2f} CPU s per GB")  # fmt: skip
    if trained:
        speed = trained[0] / trained[1]
        record["train"] = {"bytes_per_s": speed, "share_of_plain": speed / base}
        print(f"  train  {speed / 1e9:5.2f} GB/s  {speed / ROW_BYTES:11,.0f} rows/s  {speed / base:5.0%} of plain")
    if given.out:
        given.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
