"""The bare stack by one call of the compiled core per pass, whatever the processor, against its definition."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from shazam_fast.kernels import reference

from shazam_fast import _core
from shazam_fast.ops.core_stack import bare_stack_core
from shazam_fast.ops.distillation import distillation_loss_cpu
from shazam_fast.ops.merged import merged_bare_stack
from shazam_fast.ops.stack import bare_stack_cpu

NAN = float("nan")


def make(B, N, D, K, masked):
    """Tokens, maps, present or None, and a gradient of the result; what is absent is NaN."""
    g = torch.Generator().manual_seed(1000 * B + 100 * N + D + K)
    tokens, qkv = torch.randn(B, N, D, generator=g), torch.randn(K, D, 3 * D, generator=g) / D**0.5
    present = None
    if masked:
        present = torch.rand(B, N, generator=g) < 0.66
        present[torch.arange(B), torch.randint(N, (B,), generator=g)] = True
        tokens[~present] = NAN
    return tokens, qkv, present, torch.randn(B, D, generator=g)


def run(stack, dtype, tokens, qkv, present, upstream, wanted=(True, True)):
    """Fused, attention, d_tokens and d_qkv; None where it is not wanted."""
    leaves = [x.to(dtype, copy=True).requires_grad_(wants) for x, wants in zip((tokens, qkv), wanted, strict=True)]
    fused, attention = stack(*leaves, present)
    fused.backward(upstream.to(dtype))
    return [fused.detach(), attention, *(x.grad for x in leaves)]


def assert_same_bits(first, second):
    for a, b in zip(first, second, strict=True):
        assert a is None or b is None or a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("K", [1, 2, 5])
@pytest.mark.parametrize(
    ("B", "N", "D"),
    [(1, 1, 1), (3, 1, 33), (1, 4, 5), (64, 4, 128), (9, 32, 16), (70, 5, 40), (3, 2, 300), (5, 3, 257)],
)
def test_no_further_from_float64_than_float32_is(B, N, D, K, masked):
    case = make(B, N, D, K, masked)
    found = run(bare_stack_core, torch.float32, *case)
    plain, exact = (run(reference.bare_stack, dtype, *case) for dtype in (torch.float32, torch.float64))
    for mine, torchs, truth in zip(found, *([x.nan_to_num(0.0) for x in r] for r in (plain, exact)), strict=True):
        allowed = 2 * (torchs - truth).norm() + 8 * torch.finfo(torch.float32).eps * truth.norm()
        assert (mine - truth).norm() <= allowed
    if masked:
        assert (found[2][~case[2]] == 0).all()


@pytest.mark.parametrize(("B", "N", "D", "K"), [(64, 4, 128, 5), (301, 5, 33, 2), (2, 3, 8, 1)])
def test_the_same_bits_with_any_threads_and_wishes(B, N, D, K):
    case = make(B, N, D, K, True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(bare_stack_core, torch.float32, *case)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert_same_bits(alone, run(bare_stack_core, torch.float32, *case))
    finally:
        torch.set_num_threads(before)
    for wanted in [(True, False), (False, True)]:
        assert_same_bits(alone, run(bare_stack_core, torch.float32, *case, wanted))
    with torch.no_grad():
        assert_same_bits(alone[:2], bare_stack_core(*case[:3]))


def test_everything_is_written():
    """Outputs and space hold NaN before."""
    (B, N, D), K = (7, 3, 20), 2
    tokens, qkv, _, upstream = (x if x is None else x.numpy() for x in make(B, N, D, K, False))
    space = np.full(_core.bare_stack_space(tokens, qkv, True), NAN, np.float32)
    fused, attention, d_tokens, d_qkv = (
        np.full(shape, NAN, np.float32) for shape in [(B, D), (B, K, N, N), (B, N, D), (K, D, 3 * D)]
    )
    _core.bare_stack_forward(tokens, qkv, None, fused, attention, space, True)
    _core.bare_stack_backward(tokens, qkv, None, attention, upstream, space, d_tokens, d_qkv)
    assert all(np.isfinite(x).all() for x in (fused, attention, d_tokens, d_qkv))


def test_a_graph_that_is_retained_gives_its_gradients_again():
    tokens, qkv, present, upstream = make(64, 3, 8, 2, True)
    leaves = tokens.nan_to_num().requires_grad_(), qkv.requires_grad_()
    loss = (bare_stack_core(*leaves, present)[0] * upstream).sum()
    expected = torch.autograd.grad(loss, leaves, retain_graph=True)
    with ThreadPoolExecutor(4) as pool:  # of whom none may see what another one overwrites
        found = list(pool.map(lambda _: torch.autograd.grad(loss, leaves, retain_graph=True), range(40)))
    assert all(torch.equal(x, y) for one in found for x, y in zip(one, expected, strict=True))


class _Stop(torch.autograd.Function):
    """The identity, which hands back no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return None


@pytest.mark.parametrize("stack", [bare_stack_core, merged_bare_stack, bare_stack_cpu])
def test_no_gradient_comes_from_behind(stack):
    tokens, qkv, *_ = make(5, 3, 8, 2, False)
    _Stop.apply(stack(tokens.requires_grad_(), qkv.requires_grad_(), None)[0]).sum().backward()
    assert all(x.grad is None or not x.grad.any() for x in (tokens, qkv))


def test_no_gradient_comes_from_behind_the_losses():
    fused, targets = torch.randn(5, 8, requires_grad=True), torch.randn(5, 3, 8, requires_grad=True)
    _Stop.apply(distillation_loss_cpu(fused, targets, 0.5, 1.0, "norm", None)[0]).backward()
    assert all(x.grad is None or not x.grad.any() for x in (fused, targets))


def test_scores_far_from_zero():
    """Of a teacher's tokens that are alike but for a large common part, the differences count."""
    tokens, qkv, _, upstream = make(9, 4, 16, 1, False)
    case = 1 + tokens / 1000, qkv * 30, None, upstream
    found, exact = run(bare_stack_core, torch.float32, *case), run(reference.bare_stack, torch.float64, *case)
    torch.testing.assert_close(found[1].double(), exact[1], rtol=1e-4, atol=0)
