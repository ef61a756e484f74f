"""Training steps, all included: rows picked at random, forward, losses, backward, AdamW.

    pytest benchmarks/bench_training.py [--quick] --benchmark-json=out.json

Providers, on a GPU all with features that are resident there, as float16:
    authors   the loop of the authors' script (github.com/Tuner12/Shazam) around its student, foreach AdamW
    compile   the same with student and losses under torch.compile(mode="reduce-overhead"); GPU only
    plain     our student in plain PyTorch (backend="reference"), step by step
    ours      what `shazam_fast.train` runs: Triton kernels in a CUDA graph on a GPU, the C++ core without one
"ours tf32" and "ours bf16", GPU only, are the same with other operands of the matrix products. A round is an epoch of
short steps, so what a step costs is a round over its steps.
"""

import numpy as np
import pytest
import torch
from bench_student import CLASSES, TEACHERS, AuthorsStudent, authors_loss, forward_flops

import shazam_fast as sf
from shazam_fast.ops import dispatch as ops
from shazam_fast.training.feed import TrainingFeed
from shazam_fast.training.plan import EpochPlan
from shazam_fast.training.step import TrainingStep

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GPU = DEVICE.type == "cuda"
HUNCRC = 100 * -(-76_753 // 64)  # steps of the paper's 100 epochs
DEPTH = 5
BATCH = 64
STEPS = 256 if GPU else 16

PROVIDERS = ["authors", "compile", "plain", "ours", "ours tf32", "ours bf16"]


def write_patches(folder, rows=BATCH * STEPS):
    """Random features, by default of as many patches as the steps of a round need."""
    random = np.random.default_rng(0)
    features = {name: random.standard_normal((rows, dim), dtype=np.float32) for name, dim in TEACHERS.items()}
    path = sf.write_archive(
        folder / f"{rows}.archive",
        features,
        labels=random.integers(0, CLASSES, rows),
        splits=np.zeros(rows, dtype=np.uint8),
        classes=[f"class {c}" for c in range(CLASSES)],
    )
    return sf.open(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("bench"))


class AuthorsLoop:
    """A step of the authors' script, with its features where ours are."""

    def __init__(self, archive, D, residual, compiled):
        table = torch.from_numpy(archive.gather(np.arange(archive.n_rows))).half()
        self.table, self.labels = table.to(DEVICE), torch.tensor(archive.labels, device=DEVICE)
        self.student = AuthorsStudent(D, DEPTH, residual).to(DEVICE)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3, weight_decay=1e-3, foreach=True)
        self.loss = self.losses
        if compiled:
            torch._dynamo.reset()
            self.loss = torch.compile(self.losses, mode="reduce-overhead")

    def losses(self, features, labels):
        return authors_loss(*self.student(features.float().split(list(TEACHERS.values()), 1)), labels)

    def epoch(self, order):
        for rows in torch.from_numpy(order).to(DEVICE).split(BATCH):
            loss = self.loss(self.table[rows], self.labels[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return loss.item()


class OurLoop:
    """What a training runs between two validations."""

    def __init__(self, archive, D, block):
        config = sf.TrainConfig.from_preset("unitopatho", dim=D, depth=DEPTH, block=block, batch_size=BATCH)
        self.student = sf.Student(
            config.student(archive.teachers, archive.classes), torch.Generator().manual_seed(0)
        ).to(DEVICE)
        optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True, capturable=GPU
        )
        self.losses = torch.zeros(-(-archive.n_rows // BATCH), 2 + 2 * len(TEACHERS), device=DEVICE)
        feed = TrainingFeed(archive, np.arange(archive.n_rows), DEVICE, BATCH)
        self.step = TrainingStep(self.student, optimizer, config.objective(), feed, self.losses)

    def epoch(self, order, present=None, plain=False):
        """All batches, the last one short where it must be; `plain` steps are never captured."""
        self.step.begin(EpochPlan(order, present=present), 0)
        run = self.plain_step if plain else self.step.run
        for start in range(0, len(order), BATCH):
            run(min(BATCH, len(order) - start))
        return self.losses[-1, 0].item()

    def plain_step(self, size):
        self.step._feed.fetch()
        self.step._compute(size)


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        quick = metafunc.config.getoption("--quick")
        cases = [(block, D) for block in ("bare", "residual") for D in ((128,) if quick else (128, 512))]
        metafunc.parametrize("case", cases, ids=lambda c: f"{c[0]}-D{c[1]}")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_steps(measure, ceilings, archive, case, provider):
    block, D = case
    if not GPU and provider in ("compile", "ours tf32", "ours bf16"):
        pytest.skip("needs a GPU")
    if provider == "ours bf16" and D > 256:
        pytest.skip("bf16 goes up to D = 256")
    if provider in ("authors", "compile"):
        loop = AuthorsLoop(archive, D, block == "residual", provider == "compile")
    else:
        loop = OurLoop(archive, D, block)
    backend, precision = ("reference" if provider == "plain" else "auto"), "ieee"
    if provider.startswith("ours "):
        precision = provider.removeprefix("ours ")
    order = np.random.default_rng(1).permutation(archive.n_rows)
    parameters = sum(p.numel() for p in loop.student.parameters())
    nbytes = STEPS * (BATCH * archive.row_bytes + 4 * 7 * parameters)  # AdamW reads 4 and writes 3 numbers a parameter
    with ops.use(backend, precision):
        loss = measure(
            f"{STEPS} training steps {block} D={D} B={BATCH}", provider, lambda: loop.epoch(order),
            rows=BATCH * STEPS, flops=STEPS * 3 * forward_flops(BATCH, D, DEPTH, block == "residual"), nbytes=nbytes,
            baseline="authors", rounds=61 if D == 128 else 11, warmup=2, ceilings=ceilings,
            steps=STEPS, steps_of_the_paper_on_huncrc=HUNCRC,
        )  # fmt: skip
    assert np.isfinite(loss)
