"""The distillation kernels against the plain definitions: losses, every gradient, and what they refuse."""

import pytest
import torch
from shazam_fast.kernels import reference
from shazam_fast.kernels.distillation import distillation_loss, distillation_losses
from token_cases import CASES

HUBERS = ["norm", "elementwise"]


def expected(fused, targets, delta, huber, present):
    """What the definitions say; an absent teacher's target is 0 for them, so that a NaN in it cannot matter."""
    if present is not None:
        targets = targets.masked_fill(~present[:, :, None], 0.0)
    far = reference.huber_norm_losses if huber == "norm" else reference.huber_elementwise_losses
    return reference.cosine_losses(fused, targets, present), far(fused, targets, delta, present)


def make_tokens(B, N, D, device, dtype=torch.float64, missing=False):
    """t and T_i with distances on both sides of sqrt(D), and which teachers are present."""
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(B, D, generator=generator, dtype=torch.float64)
    noise = torch.randn(B, N, D, generator=generator, dtype=torch.float64)
    targets = fused[:, None] + 2.0 * torch.rand(B, N, 1, generator=generator, dtype=torch.float64) * noise
    present = (torch.rand(B, N, generator=generator) < 0.6).to(device) if missing else None
    return fused.to(device, dtype).requires_grad_(), targets.to(device, dtype).requires_grad_(), present


def run(function, fused, targets, delta, huber, present, seed=1):
    """Both losses and both gradients for random upstream gradients."""
    losses = function(fused, targets, delta, huber, present)
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in losses]
    return *losses, *torch.autograd.grad(losses, (fused, targets), upstream)


def run_total(function, fused, targets, delta, huber, present, lam=0.75, upstream=1.0):
    total = function(fused, targets, lam, delta, huber, present)[0]
    return total, *torch.autograd.grad(total, (fused, targets), torch.full_like(total, upstream))


def expected_total(fused, targets, lam, delta, huber, present):
    cosine, far = expected(fused, targets, delta, huber, present)
    return (lam * (cosine.sum() + far.sum()),)


def assert_close(found, wanted, **tolerance):
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, **tolerance)


@pytest.mark.parametrize("huber", HUBERS)
@pytest.mark.parametrize(("B", "N", "D", "missing"), CASES)
def test_losses_and_gradients_are_those_of_the_definition(B, N, D, missing, huber, device):
    fused, targets, present = make_tokens(B, N, D, device, missing=missing)
    delta = 1.0 if huber == "elementwise" else 2.0 ** ((D - 1).bit_length() // 2)
    arguments = (fused, targets, delta, huber, present)
    assert_close(run(distillation_losses, *arguments), run(expected, *arguments), rtol=1e-11, atol=1e-12)
    wanted = run_total(expected_total, *arguments, upstream=-3.0)
    assert_close(run_total(distillation_loss, *arguments, upstream=-3.0), wanted, rtol=1e-11, atol=1e-12)
    _, *logged = distillation_loss(fused, targets, 0.75, *arguments[2:])
    assert not any(x.requires_grad for x in logged)
    assert_close(logged, expected(*arguments), rtol=1e-11, atol=1e-12)


def test_the_deltas_above_meet_both_branches():
    fused, targets, _ = make_tokens(64, 4, 128, "cpu")
    near = (fused[:, None] - targets).norm(dim=-1) <= 8.0
    assert near.any()
    assert not near.all()


@pytest.mark.parametrize("huber", HUBERS)
@pytest.mark.parametrize(("B", "N", "D"), [(9, 4, 128), (3, 8, 1100)])
def test_float32(B, N, D, huber, device):
    fused, targets, present = make_tokens(B, N, D, device, missing=True)
    single = [x.detach().float().requires_grad_() for x in (fused, targets)]
    found = run(distillation_losses, *single, 1.5, huber, present)
    assert all(x.dtype == torch.float32 for x in found)
    wanted = run(expected, fused, targets, 1.5, huber, present)
    assert_close([x.double() for x in found], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("huber", HUBERS)
def test_low_precision_errs_at_most_twice_as_much_as_pytorch(dtype, huber, device):
    fused, targets, _ = make_tokens(16, 4, 128, device, dtype)
    exact = run(expected, *(x.detach().double().requires_grad_() for x in (fused, targets)), 2.0, huber, None)
    ours = run(distillation_losses, fused, targets, 2.0, huber, None)
    plain = run(expected, fused, targets, 2.0, huber, None)
    assert [x.dtype for x in ours] == [torch.float32, torch.float32, dtype, dtype]
    for found, pytorch, wanted in zip(ours, plain, exact, strict=True):
        error, allowed = ((x.double() - wanted).abs().max().item() for x in (found, pytorch))
        assert error <= 2 * allowed
        assert allowed > 0


def test_float16_gradients_come_with_the_loss_scale(device):
    """Without it they would be below what float16 holds: lam / B alone is 1e-9 here."""
    fused, targets, _ = make_tokens(16, 4, 128, device, torch.float16)
    lam, scale = 1.6e-8, 2.0**24
    total, *found = run_total(distillation_loss, fused, targets, 2.0, "norm", None, lam=lam, upstream=scale)
    double = [x.detach().double().requires_grad_() for x in (fused, targets)]
    wanted = run_total(expected_total, *double, 2.0, "norm", None, lam=lam, upstream=scale)
    assert_close([x.double() for x in found], wanted[1:], rtol=2e-3, atol=1e-6)
    assert total.dtype == torch.float32


@pytest.mark.parametrize("huber", HUBERS)
def test_gradcheck(huber, device):
    fused, targets, present = make_tokens(2, 3, 5, device, missing=True)
    losses = lambda t, T: distillation_losses(t, T, 2.0, huber, present)  # noqa: E731
    assert torch.autograd.gradcheck(losses, (fused, targets), fast_mode=True)
    total = lambda t, T: distillation_loss(t, T, 0.75, 2.0, huber, present)[0]  # noqa: E731
    assert torch.autograd.gradcheck(total, (fused, targets), fast_mode=True)


@pytest.mark.parametrize("huber", HUBERS)
@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-8, 1e-4])
@pytest.mark.parametrize("which", ["fused", "targets", "both"])
def test_norms_at_and_around_zero(huber, size, which, device):
    fused, targets, _ = make_tokens(3, 2, 6, device)
    with torch.no_grad():
        if which != "targets":
            fused[1] *= size
        if which != "fused":
            targets[1] *= size
    wanted = run(expected, fused, targets, 2.0, huber, None)
    found = run(distillation_losses, fused, targets, 2.0, huber, None)
    assert all(x.isfinite().all() for x in found)
    assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_distance_of_exactly_delta_or_zero(dtype, device):
    """r = 5 = delta and r = 0: no NaN from a root at zero, and at delta the quadratic branch."""
    fused = torch.zeros(2, 4, dtype=dtype, device=device)
    targets = torch.zeros(2, 1, 4, dtype=dtype, device=device)
    targets[0, 0, :2] = torch.tensor([3.0, 4.0])
    fused.requires_grad_()
    targets.requires_grad_()
    found = run(distillation_losses, fused, targets, 5.0, "norm", None)
    assert found[1].item() == 6.25
    assert_close(found, run(expected, fused, targets, 5.0, "norm", None), rtol=1e-6, atol=0)


@pytest.mark.parametrize("huber", HUBERS)
def test_absent_teachers_have_no_influence_at_all(huber, device):
    fused, targets, present = make_tokens(9, 5, 12, device, missing=True)
    assert not present.all()
    poisoned = targets.detach().masked_fill(~present[:, :, None], float("nan")).requires_grad_()
    clean = run(distillation_losses, fused, targets, 2.0, huber, present)
    found = run(distillation_losses, fused, poisoned, 2.0, huber, present)
    assert_close(found, clean, rtol=0, atol=0)
    assert (found[3][~present] == 0).all()


def test_views_of_any_stride(device):
    base = torch.randn(6, 5, 3, 9, dtype=torch.float64, device=device)
    fused, targets = base[:4, 0, 0, 1:6], base.transpose(0, 1)[:4, 1:4, 2, 2:7]
    fused, targets = fused.detach().requires_grad_(), targets.detach().requires_grad_()
    assert not targets.is_contiguous()
    assert_close(
        run(distillation_losses, fused, targets, 1.0, "norm", None), run(expected, fused, targets, 1.0, "norm", None)
    )
    row = fused[:1].detach().expand(4, 5).requires_grad_()
    assert_close(
        run(distillation_losses, row, targets, 1.0, "norm", None), run(expected, row, targets, 1.0, "norm", None)
    )


def test_upstream_gradients_of_one_loss_alone_and_of_stride_zero(device):
    fused, targets, present = make_tokens(5, 3, 7, device, missing=True)
    for index in (0, 1):
        found, wanted = (
            torch.autograd.grad(f(fused, targets, 2.0, "norm", present)[index].sum(), (fused, targets))
            for f in (distillation_losses, expected)
        )
        assert_close(found, wanted)


def test_detached_targets_and_detached_fused(device):
    fused, targets, _ = make_tokens(5, 3, 7, device)
    for left, right in ((fused, targets.detach()), (fused.detach(), targets)):
        gradients = []
        for function in (distillation_loss, expected_total):
            leaf = left if left.requires_grad else right
            total = function(left, right, 0.5, 2.0, "norm", None)[0]
            gradients.append(torch.autograd.grad(total, leaf))
        assert_close(*gradients)
    with torch.no_grad():
        assert not distillation_loss(fused, targets, 0.5, 2.0, "norm")[0].requires_grad


def test_backward_may_run_again(device):
    fused, targets, _ = make_tokens(5, 3, 7, device)
    total, cosine, _ = distillation_loss(fused, targets, 0.5, 2.0, "norm")
    first = torch.autograd.grad(2 * total, (fused, targets), retain_graph=True)
    assert_close(torch.autograd.grad(2 * total, (fused, targets)), first, rtol=0, atol=0)
    cosine += 1.0  # what is for reading may be changed in place
    assert total.isfinite()


@pytest.mark.parametrize("huber", HUBERS)
def test_outputs_are_overwritten_entirely(huber, unwritten_is_nan, device):
    fused, targets, present = make_tokens(5, 3, 33, device, missing=True)
    wanted = run(distillation_losses, fused, targets, 2.0, huber, present)
    with unwritten_is_nan():
        found = run(distillation_losses, fused, targets, 2.0, huber, present)
    assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(2, 33, 8)}, r"targets: .*N at most 32, expected, found \[2, 33, 8\]"),
        ({"targets": torch.zeros(2, 8)}, r"targets: \[B, N, D\].*found \[2, 8\]"),
        ({"targets": torch.zeros(2, 3, 8).long()}, "targets: dtype .*expected, found torch.int64"),
        ({"targets": torch.zeros(2, 8, 3).mT}, "targets: neighbouring columns .*found stride 3"),
        ({"fused": torch.zeros(3, 8)}, r"fused: shape \[2, 8\] expected, found \[3, 8\]"),
        ({"fused": torch.zeros(2, 8).half()}, "fused: dtype torch.float32 expected, found torch.float16"),
        ({"fused": torch.zeros(8, 2).T}, "fused: neighbouring columns .*found stride 2"),
        ({"present": torch.ones(2, 3)}, r"present: torch.bool \[2, 3\].*found torch.float32"),
        ({"delta": 0.0}, "delta: above 0 expected, found 0.0"),
        ({"delta": float("nan")}, "delta: above 0 expected, found nan"),
        ({"huber": "l1"}, "huber: one of .*expected, found 'l1'"),
    ],
)
def test_what_is_refused(change, message):
    arguments = {"fused": torch.zeros(2, 8), "targets": torch.zeros(2, 3, 8), "delta": 1.0, "huber": "norm", **change}
    with pytest.raises(ValueError, match=message):
        distillation_losses(**arguments)
    with pytest.raises(ValueError, match=message):
        distillation_loss(lam=0.5, **arguments)
