"""Folded scoring with maps in two float16 parts: no more error than float32 has, and where it does not apply."""

import pytest
import torch
from shazam_fast.kernels import reference
from shazam_fast.kernels.halves import projection, stack
from shazam_fast.kernels.halves.split import BLOCK, FAR, split, split_score_maps, split_token_maps
from shazam_fast.kernels.reference import TokenMaps
from students import make_student

from shazam_fast.ops import dispatch as ops
from shazam_fast.scoring.engine import to_scoring_form
from shazam_fast.student.folded import FoldedStudent


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


def make_maps(dims, D, ratio, device, B=40):
    """Float16 features whose spreads range over four decades, their maps, float32 and exact, and a mask."""
    g = torch.Generator().manual_seed(sum(dims))
    width = sum(dims)
    spread = 10 ** (4 * torch.rand(width, generator=g) - 2)
    mean = ratio * spread * torch.randn(width, generator=g)
    weight = torch.randn(width, D, generator=g) / spread[:, None]
    bias = torch.randn(len(dims), D, generator=g)
    features = (torch.randn(B, width, generator=g) * spread + mean).half()
    present = torch.rand(B, len(dims), generator=g) < 0.6
    return (x.to(device) for x in (features, weight, bias, mean, spread, present))


def plain(features, weight, bias, mean, dims, present, dtype):
    maps = TokenMaps(weight.to(dtype), bias.to(dtype), dims, (mean.to(dtype), torch.ones_like(mean, dtype=dtype)))
    return reference.project(features, None, maps, present)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dims", "D", "most"), [((1024, 640, 384), 128, 1.0), ((256,), 200, 1.0), ((65, 3), 16, 1.5)])
def test_tokens_err_no_more_than_in_float32(dims, D, most, masked, device, unwritten_is_nan):
    """Where float32 adds up 256 columns and more; it errs less where there are few."""
    features, weight, bias, mean, spread, present = make_maps(dims, D, 1.0, device)
    given = present if masked else None
    exact = plain(features, weight, bias, mean, dims, given, torch.float64)
    if masked:
        absent = torch.cat([~present[:, [i]].expand(-1, dim) for i, dim in enumerate(dims)], dim=1)
        features = features.masked_fill(absent, float("nan"))
    with unwritten_is_nan():
        found = projection.project(features, split_token_maps(weight, bias, mean, spread, dims), given)
    single = plain(features, weight, bias, mean, dims, given, torch.float32)
    assert error(found, exact) <= most * error(single, exact)


def cut(x, extra):
    """x without the digits that are below those of float32's largest number in each column, and `extra` more."""
    largest = torch.frexp(x.abs().amax(dim=-1, keepdim=True)).exponent
    digit = torch.ldexp(torch.ones_like(largest, dtype=x.dtype), largest - 24 - extra)
    return torch.trunc(x / digit) * digit


def tensor_core_product(x, high, low, extra=1, depth=16):
    """x (high + low) of one block, with sums of `depth` products at a time cut off instead of rounded."""
    found = torch.zeros(len(x), high.shape[1], 1, dtype=torch.float64)
    for part in (low, high):
        for at in range(0, x.shape[1], depth):
            products = x[:, None, at : at + depth].double() * part[at : at + depth].double().T  # [B, D, depth]
            found = cut(cut(torch.cat([products, found], dim=2), extra).sum(dim=2, keepdim=True), 0)
    return found[:, :, 0].float()


@pytest.mark.parametrize("ratio", [0.0, 1.4])
def test_so_do_sums_that_are_cut_off_as_tensor_cores_do(ratio):
    """They do not round; see Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021."""
    dims = (512,)
    features, weight, bias, mean, spread, _ = make_maps(dims, 32, ratio, "cpu", B=16)
    exact = plain(features, weight, bias, mean, dims, None, torch.float64)
    (high, low, units), means, *_ = split_token_maps(weight, bias, mean, spread, dims)
    found = torch.zeros(16, 32)
    for block, (x, a, b) in enumerate(zip(features.split(BLOCK, 1), high.split(BLOCK), low.split(BLOCK), strict=True)):
        found += tensor_core_product(x, a, b) * units[block] - means[block]
    single = plain(features, weight, bias, mean, dims, None, torch.float32)
    assert error((found + bias)[:, None], exact) <= error(single, exact)


# B, N, D, K
@pytest.mark.parametrize(
    ("B", "N", "D", "K"), [(1, 1, 16, 2), (9, 4, 128, 3), (7, 3, 64, 2), (3, 16, 32, 2), (5, 5, 16, 1)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_stack_errs_like_float32(B, N, D, K, masked, device, unwritten_is_nan):
    g = torch.Generator().manual_seed(B + N)
    size = 10 ** (6 * torch.rand(B, N, 1, generator=g) - 3)  # rows have powers of two of their own
    tokens, maps = torch.randn(B, N, D, generator=g), torch.randn(D, K * D, generator=g) / D
    tokens, maps = (tokens * size).to(device), (maps * 10 ** (torch.arange(K).repeat_interleave(D) - 5.0)).to(device)
    present = (torch.rand(B, N, generator=g) < 0.5).to(device) if masked else None
    if masked:
        present[torch.arange(B), torch.randint(N, (B,), generator=g)] = True
        tokens = tokens.masked_fill(~present[:, :, None], float("nan"))
    exact = reference.folded_stack(tokens.double(), maps.double(), present)
    single = reference.folded_stack(tokens, maps, present)
    with unwritten_is_nan():
        found = stack.folded_stack(tokens, split_score_maps(maps), present)
    for mine, floats, wanted in zip(found, single, exact, strict=True):
        assert error(mine, wanted) <= 1.5 * error(floats, wanted) + 1e-7


def test_a_nan_spoils_its_own_patch_alone(device):
    tokens = torch.randn(20, 3, 16, generator=torch.Generator().manual_seed(0)).to(device)
    tokens[6, 1, 3] = float("nan")
    pooled, shares = stack.folded_stack(tokens, split_score_maps(torch.ones(16, 32, device=device) / 16))
    for found in (pooled, shares):
        assert (~found.isfinite().all(1)).nonzero().flatten().tolist() == [6]


def test_parts_keep_22_bits_whatever_the_size():
    rows = torch.randn(96, 8, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.arange(-40, 56)[:, None]
    high, low, units = split(rows, [1] * 96)
    found = (high.double() + low.double()) * units[:, None]
    assert ((found - rows).abs() <= 2.0**-22 * rows.abs()).all()


def test_what_two_parts_cannot_hold_stays_whole():
    rows = torch.ones(4, 8) / 3
    assert split(rows, [4]) is not None
    assert split(rows * torch.tensor([1.0, 1.0, 2.0**20, 1.0])[:, None], [4]) is None
    assert split(rows * torch.tensor([1.0, float("inf"), 1.0, 1.0])[:, None], [4]) is None
    for ratio, holds in ((0.9 * FAR, True), (1.1 * FAR, False)):
        maps = split_token_maps(rows, torch.zeros(1, 8), torch.full((4,), ratio), torch.ones(4), (4,))
        assert (maps is not None) == holds
    assert split_score_maps(torch.ones(256, 256)) is None


@pytest.mark.parametrize(
    ("features", "message"),
    [(torch.zeros(3, 8), "dtype torch.float16"), (torch.zeros(3, 9).half(), r"shape \[3, 8\]")],
)
def test_other_features_are_refused(features, message):
    maps = split_token_maps(torch.ones(8, 16), torch.zeros(1, 16), torch.zeros(8), torch.ones(8), (8,))
    with pytest.raises(ValueError, match=message):
        projection.project(features, maps)


def test_score_maps_of_another_width_are_refused():
    with pytest.raises(ValueError, match="score_maps"):
        stack.folded_stack(torch.zeros(2, 4, 16), split_score_maps(torch.ones(32, 32)))


def count_calls(monkeypatch):
    """Names of the functions in two parts that are called."""
    calls = []
    for module, name in ((projection, "project"), (stack, "folded_stack")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=original, n=name: calls.append(n) or f(*a))
    return calls


@pytest.mark.skipif(torch.cuda.is_available(), reason="its student stays on the CPU, in the interpreter")
@pytest.mark.parametrize("heads", [False, True])
def test_a_student_on_its_way_to_a_gpu_takes_float16_features_in_two_parts(heads, monkeypatch):
    """With no more error than in float32; float32 features, other precisions and moved students take whole maps."""
    student = make_student(dim=16, depth=1, teachers={"a": 40, "b": 20}, dtype=torch.float32, heads=heads)
    student.feature_mean.zero_()
    calls = count_calls(monkeypatch)
    monkeypatch.setattr(FoldedStudent, "to", lambda self, device: self)
    folded = to_scoring_form(student, torch.device("cuda"))
    monkeypatch.undo()
    calls = count_calls(monkeypatch)
    features = torch.randn(9, 60, generator=torch.Generator().manual_seed(0)).half()
    exact = student.double().fold()(features.double())
    student.float()
    with ops.use("triton"):
        found = folded(features)
        assert calls == ["project", "folded_stack"]
        whole = folded(features.float())
        keep = torch.tensor([[True, False], [False, True]])
        withheld = folded.withhold(features, keep).withheld
    assert calls == ["project", "folded_stack"] + ["project"] + 3 * ["folded_stack"]
    assert error(found.logits, exact.logits) <= 1.5 * error(whole.logits, exact.logits) + 1e-7
    assert error(withheld, student.double().fold().withhold(features.double(), keep).withheld) < 1e-6
    with ops.use("triton", "tf32"):
        folded(features)
    with ops.use("reference"):
        folded(features)
    with ops.use("triton"):
        folded.float()(features)
    assert len(calls) == 6
