"""Many students in one pass (`sweep`) against the same ones one after the other (`train`), from archive to students.

    pytest benchmarks/bench_sweep.py [--quick] --benchmark-json=out.json

Providers: "apart", one `train` after the other, and "together", one `sweep`. A round is the whole call: reading,
statistics, all epochs, validation after each, metrics. The archive has no test split, which `sweep` does not read. Both
train all epochs, and that both find the same student is checked after timing.

What bounds the ratio. S students need S times the products of one: a step is 3 x the forward FLOPs of bench_student.py
less the gradient of the features, which nobody asks for, and that does not shrink with S. The bytes of the features are
read and standardised once in place of S times; calls and waits of threads for each other are paid once per stack in
place of once per student. AdamW reads and writes 28 bytes per parameter and student either way. So S students take at
least
    S * (FLOPs / rate of products + 28 bytes * parameters * steps / rate of memory),
recorded as `least_s`, and the ratio cannot fall below least_s / time apart. The more of its time a student alone spends
on calls (narrow teachers, small D, few teachers) the more a sweep saves. On two cores of an AMD EPYC (Zen 4) a step of
the bare student with D = 128 takes 8.3 ms of one core, of which products take 6.5 (5.4 at the rate of large products),
AdamW 0.7 and attention 0.7; of the recommended one 2.7 ms: products 1.4, AdamW 0.25, attention 0.15.
"""

import numpy as np
import pytest
import torch
from bench_student import CLASSES, TEACHERS

import shazam_fast as sf

BATCH, DEPTH, EPOCHS = 64, 5, 2
TRAIN, VAL = 16 * BATCH, 4 * BATCH
ROUNDS = {8: {"rounds": 3, "warmup": 1}, 32: {"rounds": 2, "warmup": 0}}  # one of 32 is long enough to be steady
GPU = torch.cuda.is_available()
SMALL = {"a": 64, "b": 48}  # two small teachers: calls bound these students, not products
CASES = {
    "bare D=128, 4 teachers": (TEACHERS, {"dim": 128, "block": "bare"}),
    "residual D=128, 4 teachers": (TEACHERS, {"dim": 128, "block": "residual"}),
    "bare D=32, 2 narrow teachers": (SMALL, {"dim": 32, "block": "bare"}),
    "recommended, 4 teachers": (TEACHERS, {"preset": "recommended", "dim": 64, "depth": 2, "block": "bare"}),
}


def write_patches(folder, teachers):
    random = np.random.default_rng(0)
    rows = TRAIN + VAL
    labels = random.integers(0, CLASSES, rows)
    return sf.open(
        sf.write_archive(
            folder / f"{len(teachers)}.archive",
            {n: random.standard_normal((rows, d), dtype=np.float32) + labels[:, None] for n, d in teachers.items()},
            labels=labels,
            splits=np.repeat(["train", "val"], [TRAIN, VAL]),
            classes=[f"class {c}" for c in range(CLASSES)],
        )
    )


def step_flops(teachers, D, block, depth=DEPTH):
    """Products of a step's forward and backward pass per patch, and of a forward pass. Multiply-adds count two."""
    N, width = len(teachers), sum(teachers.values())
    maps = depth * 2 * N * D * D * (4 if block == "residual" else 3) + 2 * D * (D + CLASSES)
    maps += 2 * N * D * D if block == "residual" else 0
    attention = depth * 4 * N * N * D
    first = 2 * width * D
    return 2 * first + 3 * (maps + attention), first + maps + attention


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        quick = metafunc.config.getoption("--quick")
        metafunc.parametrize("students", (8,) if quick else (8, 32))
        metafunc.parametrize("case", list(CASES)[::2] if quick else list(CASES))


@pytest.mark.parametrize("provider", ["apart", "together"])
def test_sweep(measure, ceilings, tmp_path, case, students, provider):
    teachers, shape = CASES[case]
    archive = write_patches(tmp_path, teachers)
    options = {
        "preset": "unitopatho", "depth": DEPTH, "epochs": EPOCHS, "patience": EPOCHS, "batch_size": BATCH, **shape
    }  # fmt: skip
    grid = {"seed": range(students // 2), "lam": [0.05, 0.5]}

    def apart():
        seeds, lams = grid.values()
        return [sf.train(archive, **options, seed=seed, lam=lam).student for seed in seeds for lam in lams]

    def together():
        return sf.sweep(archive, grid, **options).students

    step, forward = step_flops(teachers, shape["dim"], shape["block"], options["depth"])
    parameters = sum(p.numel() for p in apart_one(archive, options).parameters())
    flops = students * EPOCHS * (TRAIN * step + VAL * forward)
    nbytes = students * EPOCHS * (TRAIN // BATCH) * 28 * parameters
    found = measure(
        f"{students} students {case}", provider, apart if provider == "apart" else together,
        rows=students * EPOCHS * TRAIN, flops=flops, nbytes=nbytes, baseline="apart", **ROUNDS[students],
        ceilings=ceilings, students=students, parameters=parameters, steps=EPOCHS * TRAIN // BATCH,
        least_s=flops / ceilings["flops_per_s"] + nbytes / ceilings["bytes_per_s"],
    )  # fmt: skip
    alone = apart_one(archive, {**options, "lam": 0.05, "epochs": EPOCHS})  # seed 0, which is the order's
    assert torch.allclose(alone.qkv, found[0].qkv, atol=5e-3)


def apart_one(archive, options):
    return sf.train(archive, **{**options, "seed": 0}).student
