"""Whole slides on the CPU: an epoch of ABMIL against a plain loader, a step of FuseCPath, and the selection of patches.

    pytest benchmarks/bench_slides.py [--quick] --benchmark-json=out.json

"loader" is what published MIL code does: one HDF5 file per slide (as TRIDENT writes it, chunks of one row), opened and
read with h5py, one slide per step, gated ABMIL in eager PyTorch, AdamW. "torchmil" does the same with torchmil's ABMIL
of the same shape, its collate function and PyTorch's DataLoader of batch size 1. "ours" reads the same files through
packs of several slides. All read every patch of every slide once in a round, and compute in float32.

"published" is a step of FuseCPath as its released code computes it, in eager PyTorch: 500 patches padded to 24 x 24, 64
regions of 9, the position term as a convolution of the logits, the regions of all slides of the batch in one attention
of which the 16 largest logits per query are kept, a table [regions, 3, patches, D] for what is sent back. "ours" is the
model "fusecpath" of the same width on 50 clusters of 10 patches per slide. "-128" is the same with our default width.

The records say which share of the ceiling was reached: the time that the products of matrices, which no program of the
same formulas can leave out, take at this machine's rate of large float32 products, or that reading the features takes.
"""

import math

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import shazam_fast as sf
from shazam_fast.slides.bags import make_bags
from shazam_fast.slides.models.packs import Packs
from shazam_fast.slides.models.regions import Room, tabulate
from shazam_fast.slides.options import SlideConfig
from shazam_fast.slides.selecting.clustering import Views, cluster, project_rows
from shazam_fast.slides.selecting.spectral import cluster_spectral
from shazam_fast.slides.students import build_model

COLUMNS, D, CLASSES = 1024, 128, 2
BAGS, KEPT = 8, 16
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


class H5Bags(torch.utils.data.Dataset):
    """Slides as torchmil's bags, each read from its file when it is asked for."""

    def __init__(self, folder, labels):
        self.folder, self.labels = folder, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, slide):
        with h5py.File(self.folder / f"s{slide:03d}.h5") as file:
            return {"X": torch.from_numpy(file["features"][:]), "Y": self.labels[slide]}


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


def epoch_of_ours(folder, labels):
    model = build_model(SlideConfig({"uni": COLUMNS}, "classification", ("a", "b"), "gated_abmil", dropout=0.0))
    bags, step = make_bags(sf.open({"uni": folder}), "slide", {}), stepper(model)
    packs = Packs(bags, np.arange(len(labels)), 4, int(bags.sizes.max()))

    def run():
        seen = 0
        for pack in packs.epoch(np.random.default_rng(0), 0):
            members = torch.from_numpy(pack.bags[pack.bags >= 0])
            features, segments, _ = pack.on(torch.device("cpu"))
            outputs = model(features, segments, packs.places + 1).outputs[: len(members)]
            step(F.cross_entropy(outputs, labels[members]))
            seen += len(members)
        return seen

    return run


EPOCHS = {"loader": epoch_of_loader, "torchmil": epoch_of_torchmil, "ours": epoch_of_ours}


@pytest.mark.parametrize("provider", EPOCHS)
def test_epoch(job, measure, ceilings, provider):
    folder, sizes = job
    torch.manual_seed(0)
    run = EPOCHS[provider](folder, torch.arange(len(sizes)) % CLASSES)
    rows = int(sizes.sum())
    flops = rows * (4 * COLUMNS * D + 12 * D * D)  # no gradient by the features; V and U, forward and backward
    seen = measure(
        "ABMIL epoch", provider, run, rows=rows, nbytes=4 * COLUMNS * rows, flops=flops, baseline="loader",
        ceilings=ceilings, device="cpu", rounds=3, warmup=1, slides=len(sizes),
    )  # fmt: skip
    assert seen == len(sizes)


class EagerAttention(nn.Module):
    """Multi-head attention of FuseCPath's released code, with its top-k."""

    def __init__(self, width, position):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.position = nn.Conv2d(8, 8, (15, 1), padding=(7, 0), groups=8) if position else None

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, 8, C // 8).permute(2, 0, 3, 1, 4)
        logits = q * (C // 8) ** -0.5 @ k.transpose(-2, -1)
        if self.position is not None:
            logits = logits + self.position(logits)
        if N > KEPT:
            smallest = logits.detach().cpu().topk(KEPT, dim=-1).values[..., -1:].expand_as(logits)
            logits = logits.masked_fill(logits < smallest, -torch.finfo(logits.dtype).max)
        return F.dropout(self.out((logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C)), 0.1, self.training)


class EagerFuseCPath(nn.Module):
    """FuseCPath's released model. [B, n, columns] -> [B, CLASSES]."""

    def __init__(self, columns, width):
        super().__init__()
        self.encoder = nn.Linear(columns, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.local, self.across = EagerAttention(width, True), EagerAttention(width, False)
        self.phi = nn.Parameter(torch.randn(width, 3) / width**0.5)
        self.V, self.w, self.head = nn.Linear(width, 128), nn.Linear(128, 1, bias=False), nn.Linear(width, CLASSES)

    def regions(self, x):
        B, n, C = x.shape
        side = math.ceil(math.sqrt(n) / 8) * 8
        x = torch.cat([x, x.new_zeros(B, side * side - n, C)], dim=1)
        r = side // 8
        return x.view(B, 8, r, 8, r, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, r * r, C)

    def patches(self, x, shape):
        B, n, C = shape
        r = math.isqrt(x.shape[1])
        return x.view(B, 8, 8, r, r, C).permute(0, 1, 3, 2, 4, 5).reshape(B, -1, C)[:, :n]

    def forward(self, x):
        x = F.dropout(self.encoder(x).relu(), 0.25, self.training)
        x = x + self.patches(self.local(self.regions(self.norms[0](x))), x.shape)
        z = self.regions(self.norms[1](x))  # [regions of all slides, 9, C]
        logits = torch.einsum("wpc,cn->wpn", z, self.phi).transpose(1, 2)
        combine, dispatch = logits.softmax(dim=-1), logits.softmax(dim=1)
        low, high = logits.amin(dim=-1, keepdim=True), logits.amax(dim=-1, keepdim=True)
        summaries = torch.einsum("wpc,wnp->wnpc", z, combine).sum(dim=-2).transpose(0, 1)
        back = self.across(summaries).transpose(0, 1)
        back = torch.einsum("wnc,wnp->wnpc", back, (logits - low) / (high - low + 1e-8))
        back = torch.einsum("wnpc,wnp->wnpc", back, dispatch).sum(dim=1)
        x = self.norms[2](x + self.patches(back, x.shape))
        a = self.w(self.V(x).relu()).softmax(dim=1)
        return self.head((a * x).sum(dim=1))


def step_flops(patches, summaries, columns, width):
    """FLOPs of the maps of a step, forward and backward; the features need no gradient. Attention's own are few."""
    return 4 * patches * columns * width + 3 * (8 * width * width * (patches + summaries) + 2 * patches * width * 128)


@pytest.mark.parametrize("provider", ["published", "ours", "published-128", "ours-128"])
def test_fusecpath_step(measure, ceilings, provider):
    """A training step on 8 bags of 500 patches of three teachers: forward, backward, optimiser."""
    torch.manual_seed(0)
    columns, width = sum(SELECTED.values()), 128 if provider.endswith("-128") else 512
    published = provider.startswith("published")
    x, labels = torch.randn(BAGS * 500, columns), torch.arange(BAGS) % CLASSES
    if published:
        model = EagerFuseCPath(columns, width)
    else:
        model = build_model(SlideConfig(SELECTED, "classification", ("a", "b"), "fusecpath", width))
        segments = torch.arange(BAGS).repeat_interleave(500)
        regions = tabulate([np.arange(500) % 50] * BAGS, len(x), BAGS, Room(BAGS * 50, 10, 50))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-5)

    def step():
        outputs = model(x.view(BAGS, 500, -1)) if published else model(x, segments, BAGS, regions).outputs
        loss = F.cross_entropy(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    found = measure(
        "FuseCPath step", provider, step, rows=len(x), nbytes=4 * x.numel(), baseline="published", device="cpu",
        flops=step_flops(len(x), BAGS * 50 * 3, columns, width), ceilings=ceilings, rounds=5, warmup=1,
    )  # fmt: skip
    assert 0.1 < found < 3


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
