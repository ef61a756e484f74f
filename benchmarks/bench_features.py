"""Reading features: random batches, whole files, cold and warm, against what people use today.

    pytest benchmarks/bench_features.py [--quick] --benchmark-json=out.json

Four teachers, 1280 + 1024 + 1024 + 1536 columns of float16. Providers: ours on a native archive ("ours") and on one
.npy file per teacher ("ours npy"), NumPy memory maps with astype, h5py, zarr, safetensors, and the authors' DataLoader
over a TensorDataset that is already in memory. "memcpy" and "plain read" are the ceilings that bound them all.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_readers import READERS, SLOW, TEACHERS, WIDTH, Cold, bring_into_page_cache

import shazam_fast as sf

THREADS = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def rows(request):
    return 10_000 if request.config.getoption("--quick") else 60_000


@pytest.fixture(scope="module")
def features(rows):
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal((rows, dim), dtype=np.float32).astype(np.float16) for name, dim in TEACHERS.items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory, features):
    folder = tmp_path_factory.mktemp("features")
    sf.write_archive(folder / "a.archive", features)
    for name, array in features.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.mark.parametrize("batch", [64, 4096])
@pytest.mark.parametrize("provider", READERS)
def test_random_batches(measure, files, features, rows, provider, batch):
    """Warm page cache. The slow readers read fewer batches."""
    rng = np.random.default_rng(1)
    read, rounds = READERS[provider](files, features, batch), 3 if provider in SLOW else 200
    indices = [rng.choice(rows, batch, replace=False) for _ in range(rounds)]
    bring_into_page_cache(*(path for path in files.rglob("*") if path.is_file()))
    calls = 0

    def one():
        nonlocal calls
        calls += 1
        return read(indices[calls % rounds])

    got = measure(f"random batches of {batch} rows to float32, warm", provider, one, rows=batch,
                  nbytes=batch * WIDTH * 2, baseline="memmap", rounds=rounds)  # fmt: skip
    last = indices[calls % rounds]
    expected = np.concatenate([features[name][last].astype(np.float32) for name in TEACHERS], axis=1)
    np.testing.assert_array_equal(got if isinstance(got, np.ndarray) else np.concatenate(got, axis=1), expected)


@pytest.mark.parametrize("batch", [64, 4096])
def test_random_batches_of_a_dataloader(measure, features, rows, batch):
    tensors = [torch.from_numpy(features[name].astype(np.float32)) for name in TEACHERS]
    dataset = torch.utils.data.TensorDataset(*tensors, torch.zeros(rows))
    loader = iter(torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=True))
    rounds = min(max(rows // batch - 6, 1), 30)
    got = measure(f"random batches of {batch} rows to float32, warm", "dataloader", lambda: next(loader), rows=batch,
                  nbytes=batch * WIDTH * 2, baseline="memmap", rounds=rounds, warmup=1)  # fmt: skip
    assert got[0].shape == (batch, 1280)


@pytest.fixture(scope="module")
def trident(tmp_path_factory, rows):
    """One slide in TRIDENT's layout: float32 features in chunks of ONE row."""
    h5py = pytest.importorskip("h5py")
    job = tmp_path_factory.mktemp("trident") / "20x_512px_0px_overlap"
    (job / "features_gigapath").mkdir(parents=True)
    n = min(rows, 20_000)
    array = np.random.default_rng(2).standard_normal((n, 1536), dtype=np.float32)
    with h5py.File(job / "features_gigapath" / "slide.h5", "w") as file:
        file.create_dataset("features", data=array, chunks=(1, 1536), maxshape=(None, 1536))
        file.create_dataset("coords", data=np.stack([np.arange(n), np.arange(n)], 1), chunks=(1, 2), maxshape=(None, 2))
    return job, array


@pytest.mark.parametrize("provider", ["h5py", "ours"])
@pytest.mark.parametrize("what", ["full read", "random batches of 64 rows"])
def test_trident(measure, trident, provider, what):
    job, array = trident
    n, full = len(array), what == "full read"
    rng = np.random.default_rng(3)
    rows = np.arange(n) if full else np.sort(rng.choice(n, 64, replace=False))
    if provider == "h5py":
        h5py = pytest.importorskip("h5py")
        dataset = h5py.File(job / "features_gigapath" / "slide.h5", "r")["features"]

        def read():
            return dataset[:] if full else dataset[rows]
    else:
        archive, out = sf.open(job), np.empty((len(rows), 1536), np.float32)

        def read():
            return archive.gather(rows, out=out)

    got = measure(
        f"TRIDENT layout, {what}, warm",
        provider,
        read,
        rows=len(rows),
        nbytes=len(rows) * 6144,
        baseline="h5py",
        rounds=7,
    )
    np.testing.assert_array_equal(got, array[rows])


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(THREADS) as threads:
        yield threads


@pytest.mark.parametrize("provider", ["memcpy", "ours"])
def test_sequential_warm(measure, files, features, rows, provider, pool):
    """The archive as stored, 2,048 rows at a time into one buffer; memcpy copies the same rows from memory.

    The ceiling copies with as many threads as ours uses.
    """
    archive, block = sf.open(files / "a.archive"), 2048
    bring_into_page_cache(*map(Path, archive.files))
    out = np.empty((block, WIDTH), np.float16)
    starts = range(0, rows - block + 1, block)
    source = np.concatenate([features[name] for name in TEACHERS], axis=1)
    edges = np.linspace(0, block, THREADS + 1, dtype=int)
    shares = list(pairwise(edges.tolist()))

    def copy(start):
        list(pool.map(lambda s: np.copyto(out[s[0] : s[1]], source[start + s[0] : start + s[1]]), shares))

    def read():
        for start in starts:
            if provider == "ours":
                archive.gather(np.arange(start, start + block), out=out)
            else:
                copy(start)
        return out

    count = len(starts) * block
    got = measure("sequential, as stored, warm", provider, read, rows=count, nbytes=count * WIDTH * 2,
                  baseline="memcpy", rounds=15)  # fmt: skip
    np.testing.assert_array_equal(got, source[starts[-1] : starts[-1] + block])


@pytest.mark.parametrize("provider", ["plain read", "ours"])
def test_sequential_cold(measure, files, provider):
    """The whole archive from the disk: a plain read of the same file in blocks of 16 MiB is the ceiling."""
    part = next((files / "a.archive").glob("part-*"))
    buffer = bytearray(16 << 20)
    cold = Cold([part], lambda: part.open("rb", buffering=0) if provider == "plain read" else sf.open(part.parent))
    rows = (part.stat().st_size - 4096) // (WIDTH * 2 + 29)

    def read():
        if provider == "plain read":
            while cold.reader.readinto(buffer):
                pass
        else:
            for _ in cold.reader.stream(np.arange(rows)):
                pass

    measure("sequential to float32, cold", provider, read, rows=rows, nbytes=rows * WIDTH * 2, baseline="plain read",
            rounds=7, setup=cold.reopen)  # fmt: skip


@pytest.mark.parametrize("provider", ["memmap", "ours"])
def test_random_cold(measure, files, rows, provider):
    """One random batch of 512 rows of four .npy files whose pages are all on the disk."""
    rng = np.random.default_rng(4)
    paths = [files / f"{name}.npy" for name in TEACHERS]
    cold = Cold(
        paths,
        lambda: (
            sf.open(dict(zip(TEACHERS, paths, strict=True)))
            if provider == "ours"
            else [np.load(path, mmap_mode="r") for path in paths]
        ),
    )

    def setup():
        cold.reopen()
        return (rng.choice(rows, 512, replace=False),), {}

    def read(index):
        return cold.reader.gather(index) if provider == "ours" else [m[index].astype(np.float32) for m in cold.reader]

    measure("random batches of 512 rows, cold", provider, read, rows=512, nbytes=512 * WIDTH * 2, baseline="memmap",
            rounds=9, setup=setup)  # fmt: skip


STREAM = """
import sys, time
import numpy as np
import shazam_fast as sf
def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) / 1024
archive = sf.open(sys.argv[1])
before = peak = anonymous()
total = 0
for batch in archive.stream():
    total += len(batch.rows)
    peak = max(peak, anonymous())
assert total == archive.n_rows
print(peak - before)
"""


def test_memory_of_a_stream(measure, benchmark, request, tmp_path):
    """Anonymous memory above the start while 10 GB (quick: 1 GB) stream by."""
    gigabytes = 1 if request.config.getoption("--quick") else 10
    chunk = {name: np.ones((10_000, dim), np.float16) for name, dim in TEACHERS.items()}
    count = round(gigabytes * 1e9 / (10_000 * WIDTH * 2))
    path = sf.write_archive(tmp_path / "large.archive", (chunk for _ in range(count)))

    def stream():
        run = subprocess.run([sys.executable, "-c", STREAM, str(path)], capture_output=True, text=True, check=True)
        return float(run.stdout)

    megabytes = measure(f"stream of {gigabytes} GB in a process of its own", "ours", stream, rows=count * 10_000,
                        nbytes=count * 10_000 * WIDTH * 2, rounds=1, warmup=0)  # fmt: skip
    benchmark.extra_info["in words"] = f"{megabytes:.0f} MB of anonymous memory above the start"
    assert megabytes < 200
