"""The step of a few kernels where a training has nothing else, held to autograd; and what a step launches."""

from contextlib import nullcontext
from functools import partial

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


def steps(loop, backend, around_last=nullcontext):
    """Losses and parameters after steps in a backend; what the context around the last of them gives."""
    loop.begin()
    with ops.use(backend):
        for size in SIZES[:-1]:
            loop.step.run(size)
        with around_last() as given:
            loop.step.run(SIZES[-1])
    return [loop.losses[: len(SIZES)], *(p.detach() for p in loop.student.parameters())], given


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"targets": "detached", "teacher_dropout": 0.3}, 9),
        ({**EVERYTHING, "huber": "elementwise", "lam": 0.5}, 10),
        ({**EVERYTHING, "block": "residual"}, 13),
        ({"dim": 32}, 8 + 2 * 2),
    ],
    ids=["plain", "everything", "residual everything", "wide"],
)
def test_few_kernels_take_the_steps_that_autograd_takes(archive, options, most, monkeypatch):
    """However many layers, but for wide tokens: there two more for each."""
    take_for_wide(32, monkeypatch)
    dtype, tolerance = (torch.float32, 1e-3) if DEVICE.type == "cuda" else (torch.float64, 1e-9)
    fused, plain = (Loop(archive, dtype, **options) for _ in range(2))
    counted = nullcontext if DEVICE.type == "cuda" else partial(recorded, monkeypatch)  # in Triton's interpreter
    (found, names), (wanted, _) = steps(fused, "triton", counted), steps(plain, "reference")
    assert fused.step._step != fused.step._differentiate
    assert plain.step._step == plain.step._differentiate
    for left, right in zip(found, wanted, strict=True):
        assert (left - right).norm() <= tolerance * right.norm()
    assert fused.step._optimizer.state_dict()["param_groups"][0]["lr"] == pytest.approx(
        plain.step._optimizer.state_dict()["param_groups"][0]["lr"]
    )
    if names is not None:
        print(len(names), *names)
        assert 0 < len(names) <= most, names


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
