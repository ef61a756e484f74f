"""The step of a few kernels where a training has nothing else, held to autograd; and what a step launches."""

import pytest
import torch
from launches import recorded
from shazam_fast.kernels.step import trunks
from steps import DEVICE, EVERYTHING, Loop

from shazam_fast.ops import dispatch as ops
from shazam_fast.training.fused import make_fused_step

SIZES = [6, 5, 3]


def take_for_wide(dim, monkeypatch):
    """A width that the interpreter takes in a second goes by layers, as 512 does."""
    monkeypatch.setattr(trunks, "LAYERED", dim)
    monkeypatch.setattr(trunks, "COLUMNS", dim // 2)


def steps(loop, backend, sizes=SIZES):
    """Losses and parameters after steps in a backend."""
    loop.begin()
    with ops.use(backend):
        for size in sizes:
            loop.step.run(size)
    return [loop.losses[: len(sizes)], *(p.detach() for p in loop.student.parameters())]


@pytest.mark.parametrize(
    "options",
    [
        {"targets": "detached"},
        {**EVERYTHING, "huber": "elementwise", "lam": 0.5},
        {**EVERYTHING, "block": "residual"},
        {**EVERYTHING, "dim": 32},
    ],
    ids=["plain", "everything", "residual", "wide"],
)
def test_kernels_take_the_steps_that_autograd_takes(archive, options, monkeypatch):
    take_for_wide(32, monkeypatch)
    dtype, tolerance = (torch.float32, 1e-3) if DEVICE.type == "cuda" else (torch.float64, 1e-9)
    fused, plain = (Loop(archive, dtype, **options) for _ in range(2))
    found, wanted = steps(fused, "triton"), steps(plain, "reference")
    assert fused.step._step != fused.step._differentiate
    assert plain.step._step == plain.step._differentiate
    for left, right in zip(found, wanted, strict=True):
        assert (left - right).norm() <= tolerance * right.norm()
    assert fused.step._optimizer.state_dict()["param_groups"][0]["lr"] == pytest.approx(
        plain.step._optimizer.state_dict()["param_groups"][0]["lr"]
    )


def test_moments_stay_in_the_optimizer(archive):
    """From one way to the other and back, as a resumed training may go."""
    changing, plain = (Loop(archive) for _ in range(2))
    steps(plain, "reference")
    changing.begin()
    for size, backend in zip(SIZES, ("reference", "triton", "reference"), strict=True):
        changing.step._step = None
        with ops.use(backend):
            changing.step.run(size)
    states = [[v for s in loop.step._optimizer.state.values() for v in s.values()] for loop in (changing, plain)]
    for left, right in zip(*states, strict=True):
        assert (left - right).norm() <= 1e-4 * right.norm()


@pytest.mark.parametrize(
    "options",
    [
        {"block": "residual", "dim": 512},
        {"targets": "frozen"},
        {"dim": 24},
    ],
)
def test_what_kernels_do_not_have_is_left_to_autograd(archive, options):
    """Without an error, even where no kernel takes such a width: the backend is asked for then, one by one."""
    step, found = made(archive, options)
    assert found is None
    assert not step._optimizer.state


@pytest.mark.parametrize("options", [{"dim": 512}, {"dim": 256, "block": "residual"}])
def test_the_widest_that_kernels_take(archive, options):
    _, found = made(archive, {**options, "depth": 1})
    assert found is not None


def made(archive, options):
    """A training step, and what makes kernels of it."""
    loop = Loop(archive, **options)
    loop.begin()
    step = loop.step
    parts = step._student, step._optimizer, step._objective, step._feed, step._losses, step._index, step._plan
    with ops.use("triton"):
        return step, make_fused_step(*parts, 1.0)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="kernels are counted in Triton's interpreter")
@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"teacher_dropout": 0.3}, 9),
        (EVERYTHING, 10),
        ({"block": "residual"}, 12),
        ({**EVERYTHING, "block": "residual"}, 13),
        ({"dim": 32, "depth": 5}, 18),
    ],
    ids=["bare", "everything", "residual", "residual everything", "wide"],
)
def test_a_step_launches_no_more_than_this(archive, monkeypatch, options, most):
    """However many layers, but for wide tokens: there two more for each."""
    take_for_wide(32, monkeypatch)
    loop = Loop(archive, **options)
    loop.begin()
    with ops.use("triton"):
        loop.step.run(4)
        with recorded(monkeypatch) as names:
            loop.step.run(4)
    print(len(names), *names)
    assert len(names) <= most, names
