"""Who computes what: the choice of backend and precision, and that every choice gives the same student."""

import logging

import pytest
import torch
from students import make_batch, make_student

import shazam_fast as sf
from shazam_fast.ops import dispatch as ops
from shazam_fast.training.objective import Objective

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Triton does not compile products of float64 for every GPU.
DTYPE, TOLERANCE = (torch.float32, 1e-4) if DEVICE.type == "cuda" else (torch.float64, 1e-10)
OBJECTIVE = Objective(lam=0.5, delta=1.0, huber="norm", targets="projected")


def step(student, backend, precision="ieee", missing=False):
    """Logits, losses and all gradients of one batch."""
    features, present = make_batch(student, 5, missing=missing)
    features, present = features.to(DEVICE), None if present is None else present.to(DEVICE)
    labels = torch.tensor([0, 1, 2, 1, 0], device=DEVICE)
    student.zero_grad()
    with ops.use(backend, precision):
        output = student(features, present)
        losses = OBJECTIVE(student, features, labels, present)
        losses.total.backward()
        weights = [] if output.shares is None else [output.shares]
    gradients = [p.grad.clone() for p in student.parameters()]
    return [output.logits, *losses, *weights, *gradients]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("dim", [16, 24])  # a whole stack as one kernel; each layer's attention as one
@pytest.mark.parametrize("block", ["bare", "residual"])
def test_triton_and_the_definition_give_the_same_step(block, dim, missing):
    student = make_student(block, dim=dim, dtype=DTYPE).to(DEVICE)
    for found, wanted in zip(
        step(student, "triton", missing=missing), step(student, "reference", missing=missing), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_the_cpu_core_and_the_definition_give_the_same_step(block):
    student = make_student(block, dtype=torch.float32)
    features, _ = make_batch(student, 5)
    with ops.use("reference"):
        wanted = student(features).logits
    torch.testing.assert_close(student(features).logits, wanted)


def test_folded_scoring_on_every_backend():
    student = make_student(dtype=DTYPE).to(DEVICE)
    features, present = (x.to(DEVICE) for x in make_batch(student, 7, missing=True))
    found = []
    for backend in ("triton", "reference"):
        with ops.use(backend):
            output = student.fold()(features, present)
            found.append((output.logits, output.shares, output.fused))
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=TOLERANCE, atol=TOLERANCE)


def test_lower_precision_reaches_every_operation():
    student = make_student(dtype=torch.float32).to(DEVICE)
    exact, rounded = step(student, "triton"), step(student, "triton", "fp16")
    moved = [((a - b).norm() / a.norm()).item() for a, b in zip(exact, rounded, strict=True)]
    assert 1e-6 < moved[0] < 2e-2


@pytest.mark.parametrize(
    ("backend", "precision", "message"),
    [
        ("cuda", "ieee", "backend: one of auto, triton, reference expected, found 'cuda'"),
        ("auto", "fp8", "precision: one of ieee, tf32, bf16, fp16 expected, found 'fp8'"),
        ("reference", "tf32", "precision 'tf32' is the Triton kernels'"),
    ],
)
def test_impossible_choices(backend, precision, message):
    with pytest.raises(sf.ShazamError, match=message), ops.use(backend, precision):
        pass


def test_a_backend_that_was_asked_for_raises_where_it_does_not_apply():
    student = make_student(dim=24, dtype=torch.float32).to(DEVICE)
    features, _ = make_batch(student, 2)
    with ops.use("triton", "bf16"), pytest.raises(sf.ShazamError, match=r"bare_stack cannot run as a Triton kernel"):
        student(features.to(DEVICE))
    with ops.use("triton"), pytest.raises(sf.ShazamError, match="the features want a gradient"):
        student(features.to(DEVICE).requires_grad_())
    with ops.use("triton"), pytest.raises(sf.ShazamError, match=r"the tensors are on meta"):
        student.to("meta")(features.to("meta"))


def test_triton_without_triton(monkeypatch):
    monkeypatch.setattr(ops, "_no_triton", lambda: "triton is not available")
    with ops.use("triton"), pytest.raises(sf.ShazamError, match="triton is not available"):
        step(make_student(), "triton")


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU has these precisions")
def test_precisions_need_a_gpu(archive):
    with pytest.raises(sf.ShazamError, match="precision 'bf16' is the Triton kernels': it needs an NVIDIA GPU"):
        sf.train(archive, epochs=1, precision="bf16", device="cpu")


def test_a_slower_way_is_said_once(caplog):
    ops._say_once.cache_clear()
    many = make_student(teachers={f"t{i}": 3 for i in range(33)}, dtype=torch.float32).to(DEVICE)
    features, _ = make_batch(many, 2)
    with caplog.at_level(logging.WARNING, logger="shazam_fast"):
        many(features.to(DEVICE))
        many(features.to(DEVICE))
    said = [record.getMessage() for record in caplog.records]
    assert said == ["bare_stack runs in plain PyTorch: 33 teachers, more than 32"]


def test_the_choice_ends_with_its_context():
    before = torch.backends.cuda.matmul.fp32_precision
    with ops.use("triton", "tf32"):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert ops._choice.get() == ops._DEFAULT


def test_products_left_to_pytorch_are_as_exact_as_the_precision_says(monkeypatch):
    """Whatever the user set, by PyTorch's older or newer name; it is as before afterwards."""
    cublas = torch.backends.cuda.matmul
    try:
        torch.set_float32_matmul_precision("high")
        with ops.use("auto", "ieee"):
            assert torch.get_float32_matmul_precision() == "highest"
            assert cublas.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "high"
        torch.set_float32_matmul_precision("highest")
        with ops.use("triton", "tf32"):
            assert torch.get_float32_matmul_precision() == "high"  # readable: nobody else's compilation fails
        cublas.fp32_precision = "tf32"
        with ops.use("auto", "ieee"):
            assert cublas.fp32_precision == "ieee"
        assert cublas.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_float64_on_a_gpu_is_left_to_pytorch(monkeypatch):
    """Its products do not compile for every GPU, and the kernels of the losses get lam and delta as float32."""
    from shazam_fast.ops.limits import triton_obstacle

    class OnGpu:
        device, dtype, ndim, shape = torch.device("cuda"), torch.float64, 3, (2, 4, 16)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    for operation in ("project", "bare_stack", "residual_stack", "folded_stack", "distillation_loss"):
        assert "not exact in float64" in triton_obstacle(operation, OnGpu(), None, "ieee")
