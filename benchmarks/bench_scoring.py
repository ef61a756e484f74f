"""Scoring on the CPU: the authors' way, eager and compiled PyTorch, and ours; then our cost and memory against size.

    pytest benchmarks/bench_scoring.py [--quick] --benchmark-json=out.json

Bare student, K = 5, teachers of 1280 + 1024 + 1024 + 1536 columns in float16. "authors" is a DataLoader of batches of
64 over tensors in memory and the eager forward pass, "eager" and "compile" take batches of 1,024 float32 rows that are
in memory; "ours" reads and widens the archive. "influence" is ours with the influence of every teacher. The two
ceilings are measured beside every run of ours: "flops", what the folded student's multiplications take at the rate of
1024 x 1024 products on all cores, and "bytes", what a plain read of the files takes. Archives beyond 100,000 rows are
links to (warm) or copies of (cold) one part.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from bench_student import CLASSES, TEACHERS, AuthorsStudent
from torch.utils.data import DataLoader, TensorDataset

import shazam_fast as sf
from shazam_fast.runtime.products import onednn_linear
from shazam_fast.scoring.engine import Scorer

WIDTH = sum(TEACHERS.values())
ROW_BYTES = 2 * WIDTH
CPU = torch.device("cpu")
PART_ROWS = 100_000
ROWS = {128: 28_800, 512: 9_600}  # a second and more for eager PyTorch: threads end a tile apart


def folded_flops(D, K=5):
    N = len(TEACHERS)
    return 2 * D * WIDTH + 2 * N * K * D * D + 2 * K * N * N * D + 2 * D * (D + CLASSES)


def make_student(D):
    config = sf.StudentConfig(TEACHERS, [f"class {c}" for c in range(CLASSES)], dim=D)
    return sf.Student(config, torch.Generator().manual_seed(0))


def product_rate(size=1024, seconds=0.3):
    """FLOP/s of the best square product that PyTorch has, one on every core."""
    x = torch.randn(size, size)
    products = {"mm": torch.mm}
    if torch.backends.mkldnn.is_available():
        products["onednn"] = lambda a, b: onednn_linear(a, b, None)
    threads = torch.get_num_threads()

    def work(product):
        torch.set_num_threads(1)
        product(x, x)
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            product(x, x)
            done += 1
        return done * 2 * size**3 / (time.perf_counter() - started)

    with ThreadPoolExecutor(threads) as pool:
        best = max(sum(pool.map(work, [product] * threads)) for product in products.values())
    torch.set_num_threads(threads)
    return best


def read_rate(files, cold):
    """Bytes/s of reading files with plain reads, as many threads as cores."""
    if cold:
        drop_from_page_cache(files)
    pieces = [(file, start) for file in files for start in range(0, os.path.getsize(file), 16 << 20)]

    def read(piece):
        buffer = bytearray(16 << 20)
        with open(piece[0], "rb", buffering=0) as file:
            return os.preadv(file.fileno(), [buffer], piece[1])

    started = time.perf_counter()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return sum(pool.map(read, pieces)) / (time.perf_counter() - started)


def drop_from_page_cache(files):
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@pytest.fixture(scope="module")
def archive(request, tmp_path_factory):
    rows = 30_000 if request.config.getoption("--quick") else PART_ROWS
    rng = np.random.default_rng(0)

    def chunks():
        for _ in range(rows // 10_000):
            shape = {name: (10_000, dim) for name, dim in TEACHERS.items()}
            yield {n: rng.standard_normal(s, dtype=np.float32).astype(np.float16) for n, s in shape.items()}

    path = tmp_path_factory.mktemp("scoring") / "1.archive"
    yield sf.open(sf.write_archive(path, chunks()))
    shutil.rmtree(path.parent)


def repeat_archive(archive, times, copy):
    """An archive of `times` the rows: its parts are links to one file, or copies of it."""
    manifest = json.loads((archive.path / "archive.json").read_bytes())
    del manifest["document_xxh3"]  # of the document before it is edited here
    (part,) = manifest["parts"]
    path = archive.path.parent / f"{times}{'-copied' if copy else ''}.archive"
    path.mkdir()
    for index in range(times):
        target = path / f"part-{index:05d}.safetensors"
        (shutil.copyfile if copy else os.link)(archive.path / part["file"], target)
    parts = [{**part, "file": f"part-{index:05d}.safetensors"} for index in range(times)]
    manifest |= {"rows": manifest["rows"] * times, "parts": parts}
    (path / "archive.json").write_text(json.dumps(manifest))
    return sf.open(path)


def ceilings(files, cold):
    return {"flops": product_rate(), "bytes": read_rate(files, cold)}


def report(benchmark, rows, flops, before, after):
    """Write what fraction of the two ceilings a run of ours reached, into the record and onto the terminal.

    The ceilings are means of what was measured before and after: the machine's own rate varies.
    """
    bounds = {name: (before[name] + after[name]) / 2 for name in before}
    rate = rows / benchmark.stats.stats.median
    fractions = {"flops": rate * flops / bounds["flops"], "bytes": rate * ROW_BYTES / bounds["bytes"]}
    benchmark.extra_info["ceilings"] = {"flops_per_s": bounds["flops"], "bytes_per_s": bounds["bytes"]}
    benchmark.extra_info["fraction_of_ceilings"] = fractions
    machines, hours = 16, 1e9 / rate / 3600
    benchmark.extra_info["hours_for_1e9_patches"] = {"this machine": hours, f"{machines} of them": hours / machines}
    benchmark.extra_info["in words"] = (
        f"{benchmark.group}: {rate:,.0f} patches/s, {rate * ROW_BYTES / 1e9:.2f} GB/s; {fractions['flops']:.0%} of "
        f"{bounds['flops'] / 1e9:.0f} GFLOP/s, {fractions['bytes']:.0%} of {bounds['bytes'] / 1e9:.1f} GB/s; 10^9 "
        f"patches take {hours:.2f} h on this machine, {hours / machines:.2f} h on {machines} like it"
    )


@pytest.mark.parametrize("D", [128, 512])
@pytest.mark.parametrize("provider", ["authors", "eager", "compile", "ours"])
def test_provider(request, measure, benchmark, archive, provider, D):
    quick = request.config.getoption("--quick")
    rows = ROWS[D]
    case, flops = f"scoring D={D}", folded_flops(D)
    numbers = {"rows": rows, "nbytes": rows * ROW_BYTES, "flops": rows * flops, "baseline": "authors", "device": "cpu"}
    rounds = 1 if quick else 7
    if provider == "ours":
        before = ceilings(archive.files, cold=False)
        with Scorer(make_student(D), archive, CPU, fused=False, allow_missing_teachers=False) as scorer:
            scores = measure(case, provider, lambda: scorer.score(np.arange(rows)), rounds=rounds, warmup=2, **numbers)
        report(benchmark, rows, flops, before, ceilings(archive.files, cold=False))
        assert np.isfinite(scores.probabilities).all()
        return
    features = torch.from_numpy(archive.gather(np.arange(rows)))
    parts = features.split(list(TEACHERS.values()), dim=1)
    student = AuthorsStudent(D, 5, residual=False)
    if provider == "compile":
        student = torch.compile(student)
    loader = DataLoader(TensorDataset(*parts), batch_size=64) if provider == "authors" else None

    def run():
        batches = loader or zip(*(part.split(1024) for part in parts), strict=True)
        with torch.no_grad():
            return torch.cat([student(list(batch))[2].softmax(dim=1) for batch in batches])

    probabilities = measure(case, provider, run, rounds=rounds, warmup=2, **numbers)
    assert probabilities.isfinite().all()


@pytest.mark.parametrize("D", [128, 512])
@pytest.mark.parametrize("provider", ["shares", "influence"])
def test_influence(request, measure, archive, provider, D):
    """Scoring without and with the influence of each of the four teachers: at most 1.3 times the time at D = 128."""
    rows = ROWS[D]
    options = {"fused": False, "allow_missing_teachers": False, "influence": provider == "influence"}
    with Scorer(make_student(D), archive, CPU, **options) as scorer:
        scores = measure(
            f"influence D={D}", provider, lambda: scorer.score(np.arange(rows)), warmup=2, device="cpu",
            rounds=1 if request.config.getoption("--quick") else 7, rows=rows, nbytes=rows * ROW_BYTES,
            flops=rows * folded_flops(D), baseline="shares",
        )  # fmt: skip
    assert scores.influence is None or np.isfinite(scores.influence).all()


@pytest.mark.parametrize("provider", ["float32", "float16"])
def test_stored(measure, benchmark, archive, tmp_path, provider):
    """Bytes on disk per patch: row, six probabilities and four shares, of patches without slides and positions."""

    def run():
        return sf.score(make_student(128), archive, tmp_path / "scores", dtype=provider, device="cpu")

    scores = measure("scores on disk", provider, run, rounds=1, warmup=0, rows=archive.n_rows, nbytes=0, device="cpu")
    size = sum(file.stat().st_size for file in (tmp_path / "scores").iterdir()) / archive.n_rows
    benchmark.extra_info["bytes_per_patch"] = size
    rounded = f"rounded by {scores.rounding_error:.1g} at most"
    benchmark.extra_info["in words"] = f"{provider}: {size:.1f} bytes per patch, {rounded}"
    assert size < 45


SCORE = """
import json, sys, threading, time
import pyarrow.parquet
import shazam_fast as sf
student, archive = sf.load(sys.argv[1]), sf.open(sys.argv[2])

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

peak = [0]
def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    scores = sf.score(student, archive, line.strip(), device="cpu")
    print(json.dumps({"rows": len(scores), "peak_anonymous_mb": peak[0] / 1e3}), flush=True)
"""


@pytest.mark.parametrize("D", [128, 512])
@pytest.mark.parametrize("cache", ["warm", "cold"])
@pytest.mark.parametrize("times", [1, 10, 100])
def test_size(request, measure, benchmark, archive, tmp_path, times, cache, D):
    quick = request.config.getoption("--quick")
    if (quick and times > 1) or (cache == "cold" and times == 100) or (D == 512 and times > 1 and cache == "cold"):
        pytest.skip("more than the disk or a quick look has room for")
    if D == 512 and times == 100:
        pytest.skip("minutes that tell nothing new")
    larger = archive if times == 1 else repeat_archive(archive, times, copy=cache == "cold")
    make_student(D).save(tmp_path / "student")
    before = ceilings(larger.files[:10], cache == "cold")
    command = [sys.executable, "-c", SCORE, tmp_path / "student", larger.path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    assert process.stdout.readline() == "ready\n"

    def prepare():
        shutil.rmtree(tmp_path / "scores", ignore_errors=True)
        drop_from_page_cache(larger.files) if cache == "cold" else read_rate(archive.files, cold=False)

    def run():
        process.stdin.write(f"{tmp_path / 'scores'}\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    work = {"nbytes": larger.n_rows * ROW_BYTES, "flops": larger.n_rows * folded_flops(D)}
    case = f"score to disk D={D}, {larger.n_rows:,} rows, {cache}"
    result = measure(
        case, "ours", run, setup=prepare, rounds=3 if times == 1 and D == 128 and not quick else 1,
        rows=larger.n_rows, device="cpu", **work,
    )  # fmt: skip
    process.communicate()
    report(benchmark, larger.n_rows, folded_flops(D), before, ceilings(larger.files[:10], cache == "cold"))
    benchmark.extra_info["peak_anonymous_mb"] = result["peak_anonymous_mb"]
    if times > 1:
        shutil.rmtree(larger.path)
    assert result["rows"] == larger.n_rows
    assert result["peak_anonymous_mb"] < 600
