"""Whole slides on the CPU: an epoch of ABMIL against a plain loader, and the selection of patches.

    pytest benchmarks/bench_slides.py [--quick] --benchmark-json=out.json

"loader" is what published MIL code does: one HDF5 file per slide (as TRIDENT writes it, chunks of one row), opened and
read with h5py, one slide per step, gated ABMIL in eager PyTorch, AdamW. "ours" reads the same files through packs of
several slides. Both read every patch of every slide once in a round, and compute in float32.
"""

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import shazam_fast as sf
from shazam_fast.slides.bags import make_bags
from shazam_fast.slides.models.packs import Packs
from shazam_fast.slides.options import SlideConfig
from shazam_fast.slides.selecting.clustering import Views, cluster, project_rows
from shazam_fast.slides.selecting.spectral import cluster_spectral
from shazam_fast.slides.students import build_model

COLUMNS, D, CLASSES = 1024, 128, 2
SELECTED = {"conch_v15": 768, "virchow2": 2560, "gigapath": 1536}


class EagerABMIL(nn.Module):
    """Gated ABMIL on one bag."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(COLUMNS, D)
        self.V, self.U, self.w = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 1, bias=False)
        self.head = nn.Linear(D, CLASSES)

    def forward(self, x):
        h = self.encoder(x).relu()
        a = torch.softmax(self.w(self.V(h).tanh() * self.U(h).sigmoid()), dim=0)
        return self.head((a * h).sum(dim=0, keepdim=True))


@pytest.fixture(scope="module")
def job(request, tmp_path_factory):
    """Slides of 1,000 to 20,000 patches, a tenth of that in quick mode."""
    quick = request.config.getoption("--quick")
    folder, rng = tmp_path_factory.mktemp("bench") / "features_uni", np.random.default_rng(0)
    folder.mkdir()
    sizes = rng.integers(100, 2000, 40) if quick else rng.integers(1000, 20_000, 200)
    for slide, n in enumerate(sizes.tolist()):
        with h5py.File(folder / f"s{slide:03d}.h5", "w") as file:
            x = rng.standard_normal((n, COLUMNS), dtype=np.float32)
            file.create_dataset("features", data=x, chunks=(1, COLUMNS))
            file.create_dataset("coords", data=np.stack([np.arange(n) * 256, np.zeros(n, dtype=int)], axis=1))
    return folder, sizes


@pytest.mark.parametrize("provider", ["loader", "ours"])
def test_epoch(job, measure, provider):
    folder, sizes = job
    labels = torch.arange(len(sizes)) % CLASSES
    torch.manual_seed(0)
    if provider == "loader":
        model = EagerABMIL()
    else:
        model = build_model(SlideConfig({"uni": COLUMNS}, "classification", ("a", "b"), "gated_abmil", dropout=0.0))
        bags = make_bags(sf.open({"uni": folder}), "slide", {})
        packs = Packs(bags, np.arange(len(sizes)), 4, int(sizes.max()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(outputs, known):
        loss = F.cross_entropy(outputs, known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def loader():
        for slide in np.random.default_rng(0).permutation(len(sizes)).tolist():
            with h5py.File(folder / f"s{slide:03d}.h5") as file:
                x = torch.from_numpy(file["features"][:])
            step(model(x), labels[slide, None])
        return len(sizes)

    def ours():
        seen = 0
        for pack in packs.epoch(np.random.default_rng(0), 0):
            members = torch.from_numpy(pack.bags[pack.bags >= 0])
            step(model(pack.features, pack.segments, packs.places + 1).outputs[: len(members)], labels[members])
            seen += len(members)
        return seen

    rows = int(sizes.sum())
    run = {"loader": loader, "ours": ours}[provider]
    seen = measure(
        "ABMIL epoch", provider, run, rows=rows, nbytes=4 * COLUMNS * rows, baseline="loader", device="cpu",
        rounds=3, warmup=1, slides=len(sizes),
    )  # fmt: skip
    assert seen == len(sizes)


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
@pytest.mark.parametrize("rows", [15_000, 50_000, 100_000, 200_000])
def test_selection(request, measure, rows, method):
    """One slide's patches of three teachers: projection, clustering, nothing but reading left out."""
    if request.config.getoption("--quick") and rows > 15_000:
        pytest.skip("not in quick mode")
    rng, width = np.random.default_rng(0), sum(SELECTED.values())
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
