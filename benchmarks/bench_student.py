"""Forward pass and training step of the student: eager PyTorch in the form of the authors' script, and ours.

    pytest benchmarks/bench_student.py [--quick] --benchmark-json=out.json

The authors' form (github.com/Tuner12/Shazam): one nn.Linear each for query, key and value, a Python loop over
layers and over teachers in the loss, AdamW with its defaults. "ours" is what `shazam_fast.train` runs a step,
"folded" what `shazam_fast.score` runs on a bare student.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import shazam_fast as sf
from shazam_fast.training.objective import Objective

TEACHERS = {"virchow": 1280, "uni": 1024, "phikon-v2": 1024, "gigapath": 1536}
CLASSES = 6
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Layer(nn.Module):
    """One attention layer in the authors' form; `residual` adds its output map and LayerNorm."""

    def __init__(self, D, residual):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(D, D, bias=residual) for _ in range(3))
        self.output, self.norm = (nn.Linear(D, D), nn.LayerNorm(D)) if residual else (None, None)

    def forward(self, tokens):
        q, k, v = self.query(tokens), self.key(tokens), self.value(tokens)
        attended = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1) @ v
        return attended if self.norm is None else self.norm(tokens + self.output(attended))


class AuthorsStudent(nn.Module):
    """The student as the authors' script builds it, or with the paper's bare layers."""

    def __init__(self, D, K, residual):
        super().__init__()

        def project(dim):
            if not residual:
                return nn.Linear(dim, D)
            return nn.Sequential(
                nn.Linear(dim, D), nn.LayerNorm(D), nn.ReLU(), nn.Linear(D, D), nn.LayerNorm(D), nn.ReLU()
            )

        self.projections = nn.ModuleList(project(dim) for dim in TEACHERS.values())
        self.layers = nn.ModuleList(Layer(D, residual) for _ in range(K))
        self.head = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.LayerNorm(D), nn.Linear(D, CLASSES))

    def forward(self, features):
        tokens = torch.stack([p(x) for p, x in zip(self.projections, features, strict=True)], dim=1)
        stacked = tokens
        for layer in self.layers:
            stacked = layer(stacked)
        fused = stacked.mean(dim=1)
        return fused, tokens, self.head(fused)


def authors_loss(fused, tokens, logits, labels):
    loss = F.cross_entropy(logits, labels)
    for i in range(tokens.shape[1]):
        target = tokens[:, i]
        cosine = 1 - F.cosine_similarity(fused, target, dim=-1).mean()
        loss = loss + 0.5 * (cosine + F.huber_loss((fused - target).norm(dim=-1), torch.zeros_like(fused[:, 0])))
    return loss


def forward_flops(B, D, K, residual):
    """Multiply-adds count two; projections, K layers of maps and attention, head."""
    N = len(TEACHERS)
    projections = 2 * D * sum(TEACHERS.values()) + (2 * N * D * D if residual else 0)
    layer = 2 * N * D * D * (4 if residual else 3) + 4 * N * N * D
    return B * (projections + K * layer + 2 * D * D + 2 * D * CLASSES)


def make_ours(D, K, block):
    config = sf.StudentConfig(TEACHERS, [f"class {c}" for c in range(CLASSES)], dim=D, depth=K, block=block)
    return sf.Student(config, torch.Generator().manual_seed(0)).to(DEVICE)


def make_batch(B):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(B, sum(TEACHERS.values()), generator=generator).to(DEVICE)
    return features, torch.randint(CLASSES, (B,), generator=generator).to(DEVICE)


def finish():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def cases(config_quick):
    blocks, widths, batches = ("bare", "residual"), (128, 512), (64, 1024)
    return [(b, D, B) for b in blocks for D in widths for B in batches if not config_quick or (D, B) == (128, 64)]


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize(
            "case", cases(metafunc.config.getoption("--quick")), ids=lambda c: f"{c[0]}-D{c[1]}-B{c[2]}"
        )


def compare(measure, case, provider, run, B, flops, features):
    rounds = min(max(int(3e11 / flops), 9), 60)  # about as long for small cases as for large ones
    return measure(case, provider, run, rows=B, flops=flops, nbytes=features.nbytes, baseline="authors", rounds=rounds)


@pytest.mark.parametrize("provider", ["authors", "ours", "folded"])
def test_forward(measure, case, provider):
    block, D, B = case
    if provider == "folded" and block != "bare":
        pytest.skip("only bare students fold")
    features, _ = make_batch(B)
    if provider == "authors":
        student, parts = (
            AuthorsStudent(D, 5, block == "residual").to(DEVICE),
            features.split(list(TEACHERS.values()), 1),
        )

        def run():
            with torch.no_grad():
                out = student(parts)[2]
            finish()
            return out
    else:
        model = make_ours(D, 5, block)
        model = model.fold() if provider == "folded" else model

        def run():
            with torch.no_grad():
                out = model(features).logits
            finish()
            return out

    flops = forward_flops(B, D, 5, block == "residual")
    logits = compare(measure, f"forward {block} D={D} B={B}", provider, run, B, flops, features)
    assert logits.shape == (B, CLASSES)
    assert logits.isfinite().all()


@pytest.mark.parametrize("provider", ["authors", "ours"])
def test_training_step(measure, case, provider):
    block, D, B = case
    features, labels = make_batch(B)
    if provider == "authors":
        student, parts = (
            AuthorsStudent(D, 5, block == "residual").to(DEVICE),
            features.split(list(TEACHERS.values()), 1),
        )
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=1e-3)

        def loss_of():
            return authors_loss(*student(parts), labels)
    else:
        student = make_ours(D, 5, block)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=1e-3, fused=True)
        objective = Objective(lam=0.5, delta=1.0, huber="norm", targets="projected")

        def loss_of():
            return objective(student, features, labels).total

    def run():
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        finish()
        return loss

    flops = 3 * forward_flops(B, D, 5, block == "residual")
    loss = compare(measure, f"training step {block} D={D} B={B}", provider, run, B, flops, features)
    assert loss.isfinite()
