"""Whole slides on the CPU: an epoch of ABMIL against a plain loader, a step of FuseCPath, selection, scoring, memory.

    pytest benchmarks/bench_slides.py [--quick] --benchmark-json=out.json

"loader" is what published MIL code does: one HDF5 file per slide (as TRIDENT writes it, chunks of one row), opened and
read with h5py, one slide per step, gated ABMIL in eager PyTorch, AdamW. "torchmil" does the same with torchmil's ABMIL
of the same shape, its collate function and PyTorch's DataLoader of batch size 1. "ours" reads the same files through
packs of several slides. All read every patch of every slide once in a round, and compute in float32; "ours-bf16"
multiplies in bfloat16 (`precision="bf16"`). The 200 slides of 1,000 to 20,000 patches are hard links to 20 files of
random numbers, 0.9 GB instead of 8.6, which stay in the system's memory: reading is from there, not from the disk.

"published" is a step of FuseCPath as its released code computes it, in eager PyTorch: 500 patches padded to 24 x 24, 64
regions of 9, the position term as a convolution of the logits, the regions of all slides of the batch in one attention
of which the 16 largest logits per query are kept, a table [regions, 3, patches, D] for what is sent back. "ours" is the
model "fusecpath" of the same width on 50 clusters of 10 patches per slide; "ours-bf16" rounds the features as well.
512 is the published width, 128 our default.

The records say which share of the ceiling was reached: the time that the products of matrices, which no program of the
same formulas can leave out, take at this machine's rate of large float32 products (bfloat16 may exceed it), or that
reading the features takes.
What selection costs by the number of patches: `slides_selection.py`. Memory is measured by `slide_memory.py`.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from slide_peers import CLASSES, COLUMNS, D, EagerABMIL, EagerFuseCPath, H5Bags
from torch import nn
from torch.nn import functional as F

import shazam_fast as sf
from shazam_fast.slides.bags import make_bags
from shazam_fast.slides.models.mixed import multiplying, standardise
from shazam_fast.slides.models.packs import Packs
from shazam_fast.slides.models.regions import Room, tabulate
from shazam_fast.slides.options import SlideConfig
from shazam_fast.slides.selecting.clustering import Views, cluster, project_rows
from shazam_fast.slides.selecting.spectral import cluster_spectral
from shazam_fast.slides.students import SlideStudent, build_model

BAGS, CONTENTS = 8, 10  # slides of a step; slides that have the same file
SELECTED = {"conch_v15": 768, "virchow2": 2560, "gigapath": 1536}


@pytest.fixture(scope="module")
def job(request, tmp_path_factory):
    """Slides of 1,000 to 20,000 patches, a tenth of that in quick mode."""
    quick = request.config.getoption("--quick")
    folder, rng = tmp_path_factory.mktemp("bench") / "features_uni", np.random.default_rng(0)
    folder.mkdir()
    sizes = rng.integers(100, 2000, 40) if quick else rng.integers(1000, 20_000, 200)
    sizes = np.repeat(sizes[::CONTENTS], CONTENTS)
    for slide, n in enumerate(sizes.tolist()):
        path = folder / f"s{slide:03d}.h5"
        if slide % CONTENTS:
            os.link(folder / f"s{slide - slide % CONTENTS:03d}.h5", path)
            continue
        with h5py.File(path, "w") as file:
            x = rng.standard_normal((n, COLUMNS), dtype=np.float32)
            file.create_dataset("features", data=x, chunks=(1, COLUMNS))
            file.create_dataset("coords", data=np.stack([np.arange(n) * 256, np.zeros(n, dtype=int)], axis=1))
    return folder, sizes


def stepper(model):
    """A function that takes a step by a loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def epoch_of_loader(folder, labels):
    model = EagerABMIL()
    step = stepper(model)

    def run():
        for slide in np.random.default_rng(0).permutation(len(labels)).tolist():
            with h5py.File(folder / f"s{slide:03d}.h5") as file:
                x = torch.from_numpy(file["features"][:])
            step(F.cross_entropy(model(x), labels[slide, None]))
        return len(labels)

    return run


def epoch_of_torchmil(folder, labels):
    models, data = pytest.importorskip("torchmil.models"), pytest.importorskip("torchmil.data")
    encoder = nn.Sequential(nn.Linear(COLUMNS, D), nn.ReLU())
    model = models.MILModelWrapper(models.ABMIL((COLUMNS,), att_dim=D, gated=True, feat_ext=encoder))
    bags, step = H5Bags(folder, labels.float()), stepper(model)
    loader = torch.utils.data.DataLoader(bags, batch_size=1, shuffle=True, collate_fn=data.collate_fn)

    def run():
        for batch in loader:
            step(sum(model.compute_loss(batch)[1].values()))
        return len(loader)

    return run


def epoch_of_ours(folder, labels, precision="ieee"):
    model = build_model(SlideConfig({"uni": COLUMNS}, "classification", ("a", "b"), "gated_abmil", dropout=0.0))
    bags, step = make_bags(sf.open({"uni": folder}), "slide", {}), stepper(model)
    standard = (model.feature_mean, model.feature_scale) if precision == "bf16" else None
    packs = Packs(bags, np.arange(len(labels)), 4, int(bags.sizes.max()), standard=standard)

    def run():
        seen = 0
        with multiplying(precision):
            for pack in packs.epoch(np.random.default_rng(0), 0):
                members = torch.from_numpy(pack.bags[pack.bags >= 0])
                features, segments, _ = pack.on(torch.device("cpu"))
                outputs = model(features, segments, packs.places + 1).outputs[: len(members)]
                step(F.cross_entropy(outputs, labels[members]))
                seen += len(members)
        return seen

    return run


EPOCHS = {
    "loader": epoch_of_loader,
    "torchmil": epoch_of_torchmil,
    "ours": epoch_of_ours,
    "ours-bf16": partial(epoch_of_ours, precision="bf16"),
}


@pytest.mark.parametrize("provider", EPOCHS)
def test_epoch(job, measure, ceilings, provider):
    folder, sizes = job
    torch.manual_seed(0)
    run = EPOCHS[provider](folder, torch.arange(len(sizes)) % CLASSES)
    rows = int(sizes.sum())
    flops = rows * (4 * COLUMNS * D + 12 * D * D)  # no gradient by the features; V and U, forward and backward
    seen = measure(
        "ABMIL epoch", provider, run, rows=rows, nbytes=4 * COLUMNS * rows, flops=flops, baseline="loader",
        ceilings=ceilings, device="cpu", rounds=2, warmup=1, slides=len(sizes),
    )  # fmt: skip
    assert seen == len(sizes)


def step_flops(patches, summaries, columns, width):
    """FLOPs of the maps of a step, forward and backward; the features need no gradient. Attention's own are few."""
    return 4 * patches * columns * width + 3 * (8 * width * width * (patches + summaries) + 2 * patches * width * 128)


@pytest.mark.parametrize("provider", ["published", "ours", "ours-bf16"])
@pytest.mark.parametrize("width", [512, 128])
def test_fusecpath_step(measure, ceilings, width, provider):
    """A training step on 8 bags of 500 patches of three teachers: forward, backward, optimiser."""
    torch.manual_seed(0)
    columns, published = sum(SELECTED.values()), provider == "published"
    x, labels = torch.randn(BAGS * 500, columns), torch.arange(BAGS) % CLASSES
    if published:
        model = EagerFuseCPath(columns, width)
    else:
        model = build_model(SlideConfig(SELECTED, "classification", ("a", "b"), "fusecpath", width))
        segments = torch.arange(BAGS).repeat_interleave(500)
        regions = tabulate([np.arange(500) % 50] * BAGS, len(x), BAGS, Room(BAGS * 50, 10, 50))
    rounded = torch.zeros(x.shape, dtype=torch.bfloat16) if provider == "ours-bf16" else None
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-5)

    def read():
        if published:
            return model(x.view(BAGS, 500, -1))
        if rounded is None:
            return model(x, segments, BAGS, regions).outputs
        standardise(x, (model.feature_mean, model.feature_scale), rounded)  # as packs do while they read
        with multiplying("bf16"):
            return model(rounded, segments, BAGS, regions).outputs

    def step():
        loss = F.cross_entropy(read(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    found = measure(
        f"FuseCPath step, width {width}", provider, step, rows=len(x), nbytes=4 * x.numel(), baseline="published",
        device="cpu", flops=step_flops(len(x), BAGS * 50 * 3, columns, width), ceilings=ceilings, rounds=5, warmup=1,
    )  # fmt: skip
    assert 0.1 < found < 3


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
def test_selection(measure, method):
    """One slide's 15,000 patches of three teachers: projection, clustering, nothing but reading left out."""
    rng, width, rows = np.random.default_rng(0), sum(SELECTED.values()), 15_000
    centres = rng.standard_normal((60, width), dtype=np.float32)
    batch = rng.standard_normal((5000, width), dtype=np.float32) + 0.5 * centres[rng.integers(0, 60, 5000)]

    def select():
        views = Views(SELECTED, 0)
        points = project_rows(views, (batch * (1 + 0.01 * i) for i in range(rows // 5000)), rows)
        if method == "kmeans":
            return cluster(points, 50, 0)
        return cluster_spectral(points, views.widths, 50, 0)

    found = measure(
        f"selection of {rows:,} patches", method, select, rows=rows, nbytes=4 * width * rows, device="cpu",
        rounds=3, warmup=1,
    )  # fmt: skip
    assert len(found) == rows
    assert len(np.unique(found)) >= 45  # a cluster of the spectral form may be empty


@pytest.mark.parametrize("model", ["gated_abmil", "shazam_abmil"])
def test_scoring(job, measure, ceilings, model):
    """All slides scored: outputs per slide, attention and shares per patch."""
    folder, sizes = job
    config = SlideConfig({"uni": COLUMNS}, "classification", ("a", "b"), model)
    student, archive = SlideStudent(config, [build_model(config)]).eval(), sf.open({"uni": folder})
    rows = int(sizes.sum())
    scores = measure(
        "slides scored", model, lambda: sf.slides.score(student, archive, device="cpu"), rows=rows,
        nbytes=4 * COLUMNS * rows, flops=rows * 2 * COLUMNS * D, ceilings=ceilings, device="cpu", rounds=2, warmup=1,
        slides=len(sizes),
    )  # fmt: skip
    assert scores.patches.num_rows == rows


@pytest.mark.parametrize("patches", [1000, 20_000, 100_000])
@pytest.mark.parametrize("task", ["scoring", "training"])
def test_memory(benchmark, measure, task, patches):
    """Megabytes beyond those of the process, see `slide_memory.py`; the time is that of the whole process."""
    script = Path(__file__).with_name("slide_memory.py")
    command = [sys.executable, str(script), task, str(patches)]
    found = measure(
        f"memory of {task}", f"{patches:,} a slide", rows=6 * patches, nbytes=0, device="cpu", rounds=1, warmup=0,
        function=lambda: subprocess.run(command, check=True, capture_output=True, text=True).stdout,
    )  # fmt: skip
    benchmark.extra_info["memory_mb"] = float(found)
