"""The step of nine or ten kernels where a training has nothing else, held to autograd; and what a step launches."""

import pytest
import torch
from launches import recorded
from steps import DEVICE, EVERYTHING, Loop

from shazam_fast.ops import dispatch as ops
from shazam_fast.training.fused import make_fused_step

SIZES = [6, 5, 3]


def steps(loop, backend, sizes=SIZES):
    """Losses and parameters after steps in a backend."""
    loop.begin()
    with ops.use(backend):
        for size in sizes:
            loop.step.run(size)
    return [loop.losses[: len(sizes)], *(p.detach() for p in loop.student.parameters())]


@pytest.mark.parametrize(
    "options",
    [{"targets": "detached"}, {**EVERYTHING, "huber": "elementwise", "lam": 0.5}],
    ids=["plain", "everything"],
)
def test_kernels_take_the_steps_that_autograd_takes(archive, options):
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
        {"block": "residual"},
        {"targets": "frozen"},
        {"dim": 24},
    ],
)
def test_what_kernels_do_not_have_is_left_to_autograd(archive, options):
    """Without an error, even where no kernel takes such a width: the backend is asked for then, one by one."""
    loop = Loop(archive, **options)
    loop.begin()
    step = loop.step
    parts = step._student, step._optimizer, step._objective, step._feed, step._losses, step._index, step._plan
    with ops.use("triton"):
        assert make_fused_step(*parts, 1.0) is None
    assert not step._optimizer.state


@pytest.mark.skipif(DEVICE.type == "cuda", reason="kernels are counted in Triton's interpreter")
@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"teacher_dropout": 0.3}, 9),
        (EVERYTHING, 10),
        ({"block": "residual"}, 91),
    ],
    ids=["bare", "everything", "residual"],
)
def test_a_step_launches_no_more_than_this(archive, monkeypatch, options, most):
    """Bounds of a bare student are those of the design; a residual one has what it has today."""
    loop = Loop(archive, **options)
    loop.begin()
    with ops.use("triton"):
        loop.step.run(4)
        with recorded(monkeypatch) as names:
            loop.step.run(4)
    print(len(names), *names)
    assert len(names) <= most, names
