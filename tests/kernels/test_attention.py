"""The attention kernels against the plain definition: results, every gradient, and what they refuse."""

import math

import pytest
import torch
from shazam_fast.kernels import reference
from shazam_fast.kernels.token_attention import token_attention
from token_cases import CASES


def expected(q, k, v, present, pool):
    """What the definition says; rows and columns of absent teachers are 0."""
    if present is not None:
        q, k, v = (x.masked_fill(~present[:, :, None], 0.0) for x in (q, k, v))
    p = reference.attention_weights(q @ k.mT / math.sqrt(q.shape[-1]), present)
    out = p @ v
    if present is not None:
        p, out = (x.masked_fill(~present[:, :, None], 0.0) for x in (p, out))
    return (reference.mean_pool(out, present) if pool else out), p


def make_tokens(B, N, D, device, dtype=torch.float64, missing=False, seed=0):
    """q, k and v as slices of one projection, with scores of a few units, and which teachers are present."""
    generator = torch.Generator().manual_seed(seed)
    projection = 1.5 * torch.randn(B, N, 3 * D, generator=generator, dtype=torch.float64)
    present = None
    if missing:
        present = torch.rand(B, N, generator=generator) < 0.6
        present[torch.arange(B), torch.randint(N, (B,), generator=generator)] = True
        present = present.to(device)
    return [x.requires_grad_() for x in projection.to(device, dtype).split(D, dim=-1)], present


def run(function, tokens, present, pool, seed=1):
    """Output, attention and the three gradients for random upstream gradients of both."""
    out, attention = function(*tokens, present, pool)
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (out, attention)]
    return out, attention, *torch.autograd.grad((out, attention), tokens, upstream)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(("B", "N", "D", "missing"), CASES)
def test_results_and_gradients_are_those_of_the_definition(B, N, D, missing, pool, device):
    tokens, present = make_tokens(B, N, D, device, missing=missing)
    for found, wanted in zip(
        run(token_attention, tokens, present, pool), run(expected, tokens, present, pool), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(("B", "N", "D"), [(5, 4, 128), (1, 8, 1100)])
def test_float32(B, N, D, pool, device):
    tokens, present = make_tokens(B, N, D, device, missing=True)
    single = [x.detach().float().requires_grad_() for x in tokens]
    for found, wanted in zip(
        run(token_attention, single, present, pool), run(expected, tokens, present, pool), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pool", [False, True])
def test_low_precision_errs_at_most_twice_as_much_as_pytorch(dtype, pool, device):
    tokens, present = make_tokens(8, 4, 128, device, dtype, missing=True)
    exact = run(expected, [x.detach().double().requires_grad_() for x in tokens], present, pool)
    ours = run(token_attention, tokens, present, pool)
    plain = run(expected, tokens, present, pool)
    assert [x.dtype for x in ours] == [dtype, torch.float32, dtype, dtype, dtype]
    for found, pytorch, wanted in zip(ours, plain, exact, strict=True):
        error, allowed = ((x.double() - wanted).abs().max().item() for x in (found, pytorch))
        assert error <= 2 * allowed
        assert allowed > 0


@pytest.mark.parametrize("pool", [False, True])
def test_gradcheck(pool, device):
    tokens, present = make_tokens(1, 3, 2, device, missing=True)
    assert torch.autograd.gradcheck(lambda *x: token_attention(*x, present, pool), tokens, fast_mode=True)


@pytest.mark.parametrize("outputs", [slice(0, 1), slice(1, 2)])
def test_gradients_of_one_output_alone(outputs, device):
    tokens, present = make_tokens(3, 4, 6, device, missing=True)
    gradients = []
    for function in (token_attention, expected):
        chosen = function(*tokens, present, False)[outputs]
        gradients.append(torch.autograd.grad([x.square().sum() for x in chosen], tokens, allow_unused=True))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found) if wanted is None else wanted)


def test_upstream_gradients_of_any_strides(device):
    tokens, _ = make_tokens(3, 4, 6, device)
    for transform in (torch.sum, lambda x: x.mT.contiguous().square().sum(), lambda x: x[:, :1].exp().sum()):
        for output in (0, 1):
            found, wanted = (
                torch.autograd.grad(transform(f(*tokens, None, False)[output]), tokens, allow_unused=True)
                for f in (token_attention, expected)
            )
            for left, right in zip(found, wanted, strict=True):
                torch.testing.assert_close(left, torch.zeros_like(left) if right is None else right)


def test_views_of_any_batch_and_row_stride(device):
    base = torch.randn(4, 7, 3, 10, dtype=torch.float64, device=device)
    q = base[:, 1:5, 0, 2:7]
    k = base.transpose(0, 1)[:4, :, 1, :5]
    v = base[:, 3, :1, 1:6].expand(4, 4, 5)
    assert [x.stride() for x in (q, k, v)] == [(210, 30, 1), (30, 210, 1), (210, 0, 1)]
    for found, wanted in zip(token_attention(q, k, v), expected(q, k, v, None, False), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("pool", [False, True])
def test_absent_teachers_have_no_influence_at_all(pool, device):
    """Not even a NaN in their rows or in their upstream gradient."""
    tokens, present = make_tokens(9, 5, 12, device, missing=True)
    assert not present.all()
    poisoned = [x.detach().masked_fill(~present[:, :, None], float("nan")).requires_grad_() for x in tokens]
    results = []
    for inputs in (tokens, poisoned):
        out, attention = token_attention(*inputs, present, pool)
        upstream = [torch.ones_like(out), torch.ones_like(attention).cumsum(-1)]
        if inputs is poisoned:
            upstream[1][~present] = float("nan")
            upstream[1].mT[~present] = float("nan")
            if not pool:
                upstream[0][~present] = float("nan")
        results.append((out, attention, *torch.autograd.grad((out, attention), inputs, upstream)))
    for clean, found in zip(*results, strict=True):
        torch.testing.assert_close(found, clean, rtol=0, atol=0)
    out, attention, *gradients = results[1]
    for rows in (attention, attention.mT, *gradients, *([] if pool else [out])):
        assert (rows[~present] == 0).all()


@pytest.mark.parametrize("pool", [False, True])
def test_outputs_are_overwritten_entirely(pool, unwritten_is_nan, device):
    tokens, present = make_tokens(5, 3, 33, device, missing=True)
    wanted = run(token_attention, tokens, present, pool)
    with unwritten_is_nan():
        results = run(token_attention, tokens, present, pool)
    for found, clean in zip(results, wanted, strict=True):
        torch.testing.assert_close(found, clean, rtol=0, atol=0)


def test_large_scores_do_not_overflow(device):
    q = torch.full((1, 2, 16), 1e4, device=device)
    k = torch.stack([q[:, 0], 2 * q[:, 0]], dim=1)
    _, attention = token_attention(q, k, q)
    torch.testing.assert_close(attention, torch.tensor([[[0.0, 1.0], [0.0, 1.0]]], device=device))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 33, 8)}, r"q: .*N at most 32, expected, found \[2, 33, 8\]"),
        ({"q": torch.zeros(0, 3, 8)}, r"none 0.*found \[0, 3, 8\]"),
        ({"q": torch.zeros(3, 8)}, r"q: \[B, N, D\].*found \[3, 8\]"),
        ({"q": torch.zeros(2, 3, 8, dtype=torch.int32)}, r"q: dtype .*expected, found torch.int32"),
        ({"k": torch.zeros(2, 3, 8).double()}, "k: dtype torch.float32 expected, found torch.float64"),
        ({"k": torch.zeros(2, 3, 9)}, r"k: shape \[2, 3, 8\] expected, found \[2, 3, 9\]"),
        ({"v": torch.zeros(2, 4, 8)}, r"v: shape \[2, 3, 8\] expected, found \[2, 4, 8\]"),
        ({"v": torch.zeros(2, 8, 3).mT}, "v: neighbouring columns .*found stride 3"),
        ({"v": torch.zeros(2, 3, 8, device="meta")}, "v: device cpu expected, found meta"),
        ({"present": torch.ones(2, 4, dtype=torch.bool)}, r"present: torch.bool \[2, 3\].*found torch.bool \[2, 4\]"),
        ({"present": torch.ones(2, 3)}, r"present: torch.bool \[2, 3\].*found torch.float32"),
    ],
)
def test_what_is_refused(change, message):
    arguments = {"q": torch.zeros(2, 3, 8), "k": torch.zeros(2, 3, 8), "v": torch.zeros(2, 3, 8), **change}
    with pytest.raises(ValueError, match=message):
        token_attention(**arguments)
