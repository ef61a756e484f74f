"""Opening cohorts of one file per slide, the first time and again.

    pytest benchmarks/bench_opening.py [--quick] --benchmark-json=out.json

100,000 files (quick: 2,000). "without index" reads every file in one process, "first time" reads them side by side and
keeps what was learned, "again" looks only at sizes and times. `cpu_us_per_file` is the CPU time of all processes.
"""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import shazam_fast as sf
from shazam_fast.formats.index.trees import SETTLED_NS


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".h5"])
def test_opening_many_files(measure, request, tmp_path, suffix):
    """One slide a file: 100,000 files (quick: 2,000), opened and one row of each of 64 slides read."""
    count = 2_000 if request.config.getoption("--quick") else 100_000
    write_slides(tmp_path, suffix, count)

    def open_all():
        archive = sf.open(tmp_path)
        archive.gather(np.linspace(0, archive.n_rows - 1, 64, dtype=np.int64))
        return archive

    archive = measure(f"opening {count:,} files", f"ours {suffix}", open_all, rows=count, nbytes=0, rounds=1, warmup=0)
    assert archive.n_rows == 2 * count
    assert len(os.listdir("/proc/self/fd")) < 1024


@pytest.fixture(scope="module")
def cohort(request, tmp_path_factory):
    """A TRIDENT job of one encoder with one tiny slide per file: 100,000 (quick: 2,000)."""
    h5py = pytest.importorskip("h5py")
    count = 2_000 if request.config.getoption("--quick") else 100_000
    job = tmp_path_factory.mktemp("cohort") / "20x_256px_0px_overlap"
    (job / "features_uni_v1").mkdir(parents=True)
    first = job / "first.h5"
    with h5py.File(first, "w") as file:
        features = file.create_dataset("features", data=np.ones((5, 8), "f4"), chunks=(1, 8), maxshape=(None, 8))
        features.attrs["encoder"] = "uni_v1"
        coords = file.create_dataset("coords", data=np.zeros((5, 2), int), chunks=(1, 2), maxshape=(None, 2))
        coords.attrs.update(patch_size=256, patch_size_level0=512, patch_level=0, overlap=0)
    content = first.read_bytes()
    first.unlink()
    for index in range(count):
        (job / "features_uni_v1" / f"TCGA-{index:06d}-01Z-00-DX1.h5").write_bytes(content)
    time.sleep(SETTLED_NS / 1e9 + 1)  # files that changed just before are not remembered
    yield job, count
    shutil.rmtree(job)


def cpu_seconds():
    """Of this process and those that it started and that have ended."""
    return sum(os.times()[:4])


@pytest.mark.parametrize("provider", ["without index", "first time", "again"])
def test_index(measure, benchmark, cohort, monkeypatch, provider):
    """Opening a cohort: every file read by one process, read side by side and kept, and from what was kept."""
    job, count = cohort
    monkeypatch.setenv("SHAZAM_CACHE", str(job.parent / "cache"))
    if provider == "first time":
        shutil.rmtree(job.parent / "cache", ignore_errors=True)
    spent = []

    def open_all():
        before = cpu_seconds()
        archive = sf.open(job, index=provider != "without index")
        spent.append(cpu_seconds() - before)
        return len(archive)

    rows = measure(f"opening {count:,} files of TRIDENT", provider, open_all, rows=count, nbytes=0,
                   baseline="without index", rounds=5 if provider == "again" else 1, warmup=0)  # fmt: skip
    benchmark.extra_info["cpu_us_per_file"] = round(min(spent) / count * 1e6, 1)
    benchmark.extra_info["in words"] = f"{provider}: {min(spent) / count * 1e6:.1f} us of CPU time per file"
    assert rows == 5 * count


def write_slides(folder: Path, suffix: str, count: int):
    features = np.ones((2, 8), np.float16)
    first = folder / f"slide-{0:06d}{suffix}"
    if suffix == ".npy":
        np.save(first, features)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(features), first)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(first, "w") as file:
            file["features"] = features
            file["coords"] = np.array([[0, 0], [1, 1]])
    content = first.read_bytes()
    for index in range(1, count):
        (folder / f"slide-{index:06d}{suffix}").write_bytes(content)
