"""The stack kernels against the plain definition: results, every gradient and what they refuse."""

import pytest
import torch
from compiled import skip_float64_products
from shazam_fast.kernels import launch, reference
from shazam_fast.kernels.student_stack import bare_stack, residual_stack

# B, N, D, K: tiles of one patch and of many, whole and not; every slicing of D that runs in seconds
SHAPES = [
    (1, 1, 16, 2), (17, 1, 16, 1), (5, 2, 32, 2), (3, 3, 16, 3), (1, 4, 64, 2), (3, 4, 128, 2), (3, 5, 32, 1),
    (3, 8, 16, 1), (2, 16, 16, 2),
]  # fmt: skip
CASES = [(*shape, True) for shape in SHAPES] + [(1, 1, 16, 2, False), (3, 5, 32, 1, False)]
BLOCKS = ["bare", "residual"]


def make_inputs(block, B, N, D, K, device, dtype=torch.float64, missing=False, sharpness=1.0, seed=0):
    """Tokens, the parameters of a stack, and which teachers are present: some patches have a single one."""
    skip_float64_products(device, dtype)
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    qkv = randn(K, D, 3 * D, scale=D**-0.5)
    qkv[..., : 2 * D] *= sharpness
    inputs = [randn(B, N, D), qkv]
    if block == "residual":
        inputs += [randn(K, 3 * D), randn(K, D, D, scale=D**-0.5), randn(K, D), 1 + randn(K, D, scale=0.3), randn(K, D)]
    present = None
    if missing:
        present = torch.rand(B, N, generator=generator) < 0.5
        present[::3] = False
        present[torch.arange(B), torch.randint(N, (B,), generator=generator)] = True
        present = present.to(device)
    return [x.to(device, dtype).requires_grad_() for x in inputs], present


def fused_stack(block, inputs, present, precision="ieee"):
    """Fused feature and weights by the kernels; no weights for the residual block."""
    if block == "bare":
        return bare_stack(*inputs, present, precision)
    return (residual_stack(inputs[0], reference.ResidualMaps(*inputs[1:]), present, precision),)


def plain_stack(block, inputs, present):
    """The same by the definition."""
    if block == "bare":
        fused, attention = reference.bare_stack(*inputs, present)
        return fused, reference.teacher_shares(attention, present)
    return (reference.residual_stack(inputs[0], reference.ResidualMaps(*inputs[1:]), present),)


def with_gradients(results, inputs):
    """Results and the gradients of the fused feature for a random upstream gradient."""
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(results[0].shape, generator=generator, dtype=torch.float64).to(results[0])
    return *results, *torch.autograd.grad(results[0], inputs, upstream)


def both(block, inputs, present, precision="ieee"):
    """Pairs of what the kernels and the definition give."""
    found = with_gradients(fused_stack(block, inputs, present, precision), inputs)
    wanted = with_gradients(plain_stack(block, inputs, present), inputs)
    return list(zip(found, wanted, strict=True))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("B", "N", "D", "K", "missing"), CASES)
def test_results_and_gradients_are_those_of_the_definition(block, B, N, D, K, missing, device):
    inputs, present = make_inputs(block, B, N, D, K, device, missing=missing)
    for found, wanted in both(block, inputs, present):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rows", [4, 8, 16])
def test_any_number_of_rows_per_program(block, rows, device, monkeypatch):
    """Two teachers: 2, 4 or 8 patches per program, the last one not full. Small batches above take the fewest."""
    inputs, present = make_inputs(block, 9, 2, 16, 2, device, missing=True)
    monkeypatch.setattr(launch, "choose_rows", lambda *_: rows)
    for found, wanted in both(block, inputs, present):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("B", "N", "precision", "wanted"),
    [
        (64, 4, "ieee", 4), (300, 4, "ieee", 8), (528, 4, "ieee", 16), (16384, 4, "ieee", 16), (64, 1, "ieee", 4),
        (64, 5, "ieee", 8), (1, 16, "ieee", 16), (64, 4, "tf32", 16),
    ],
)  # fmt: skip
def test_small_batches_take_programs_of_few_rows(B, N, precision, wanted):
    assert launch.choose_rows(B, N, precision, processors=132) == wanted


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("B", "N", "D", "K"), [(3, 5, 64, 2), (1, 4, 128, 5), (1, 4, 256, 1)])
def test_float32(block, B, N, D, K, device):
    inputs, present = make_inputs(block, B, N, D, K, device, torch.float32, missing=True)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = with_gradients(plain_stack(block, exact, present), exact)
    for found, value in zip(with_gradients(fused_stack(block, inputs, present), inputs), wanted, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


# tf32 rounds to as many bits as float16; the interpreter takes it as float32.
@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("tf32", torch.float16)]
)
def test_low_precision_errs_at_most_twice_as_much_as_pytorch(block, precision, dtype, device):
    inputs, present = make_inputs(block, 8, 4, 32, 2, device, torch.float32, missing=True)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = with_gradients(plain_stack(block, exact, present), exact)
    found = with_gradients(fused_stack(block, inputs, present, precision), inputs)
    with torch.autocast(device.type, dtype):
        plain = with_gradients(plain_stack(block, inputs, present), inputs)
    for ours, pytorch, value in zip(found, plain, wanted, strict=True):
        assert ours.dtype == torch.float32
        error, allowed = ((x.double() - value).abs().max().item() for x in (ours, pytorch))
        assert error <= 2 * allowed + 1e-6 * value.abs().max().item()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("sharpness", [10.0, 100.0])
def test_sharp_attention_is_as_good_as_plain_float32(block, sharpness, device):
    """The median over seeds: where two scores nearly tie, a single draw is as good or as bad as chance has it."""
    ratios = []
    for seed in range(3):
        inputs, present = make_inputs(block, 4, 4, 32, 3, device, torch.float32, True, sharpness, seed)
        exact = [x.detach().double().requires_grad_() for x in inputs]
        if sharpness == 100.0:
            q, k, _ = (exact[0] @ exact[1][0]).split(32, dim=-1)
            assert (q @ k.mT).abs().max() / 32**0.5 > 5e3
        wanted = with_gradients(plain_stack(block, exact, present), exact)
        ratios.append([])
        for (ours, pytorch), value in zip(both(block, inputs, present), wanted, strict=True):
            error, allowed = ((x.double() - value).square().mean().sqrt().item() for x in (ours, pytorch))
            ratios[-1].append(error / (allowed + 1e-6 * value.square().mean().sqrt().item()))
    assert (torch.tensor(ratios).median(dim=0).values <= 2).all(), ratios


@pytest.mark.parametrize("block", BLOCKS)
def test_gradcheck(block, device):
    inputs, present = make_inputs(block, 1, 3, 16, 2, device, missing=True)
    assert torch.autograd.gradcheck(lambda *x: fused_stack(block, x, present)[0], inputs, fast_mode=True)


@pytest.mark.parametrize("block", BLOCKS)
def test_absent_teachers_have_no_influence_at_all(block, device):
    """Not even a NaN in their tokens; their own gradient is 0."""
    inputs, present = make_inputs(block, 5, 5, 16, 2, device, missing=True)
    poisoned = [inputs[0].detach().masked_fill(~present[:, :, None], float("nan")).requires_grad_(), *inputs[1:]]
    clean = with_gradients(fused_stack(block, inputs, present), inputs)
    found = with_gradients(fused_stack(block, poisoned, present), poisoned)
    for left, right in zip(found, clean, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert not present.all()
    assert (found[-len(inputs)][~present] == 0).all()
    if block == "bare":
        assert (found[1][~present] == 0).all()


@pytest.mark.parametrize("block", BLOCKS)
def test_outputs_are_overwritten_entirely(block, unwritten_is_nan, device):
    inputs, present = make_inputs(block, 5, 3, 16, 2, device, missing=True)
    wanted = with_gradients(fused_stack(block, inputs, present), inputs)
    with unwritten_is_nan():
        results = with_gradients(fused_stack(block, inputs, present), inputs)
    for found, clean in zip(results, wanted, strict=True):
        torch.testing.assert_close(found, clean, rtol=0, atol=0)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_same_bits_every_time_however_it_is_laid_out(block, device):
    inputs, present = make_inputs(block, 6, 3, 16, 2, device, torch.float32, missing=True)
    tokens = inputs[0].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    mask = present.T.contiguous().T
    assert not tokens.is_contiguous()
    assert not mask.is_contiguous()
    wanted = with_gradients(fused_stack(block, inputs, present), inputs)
    strided = [tokens, *inputs[1:]]
    for found, clean in zip(with_gradients(fused_stack(block, strided, mask), strided), wanted, strict=True):
        torch.testing.assert_close(found, clean, rtol=0, atol=0)


@pytest.mark.parametrize("block", BLOCKS)
def test_autocast_around_it_changes_nothing(block, device):
    inputs, present = make_inputs(block, 3, 4, 16, 2, device, torch.float32)
    wanted = with_gradients(fused_stack(block, inputs, present), inputs)
    with torch.autocast(device.type, torch.bfloat16):
        results = fused_stack(block, inputs, present)
    for left, right in zip(with_gradients(results, inputs), wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_weights_are_shares_without_gradient(device):
    inputs, present = make_inputs("bare", 5, 4, 16, 3, device, missing=True)
    fused, weights = bare_stack(*inputs, present)
    assert fused.requires_grad
    assert not weights.requires_grad
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    with torch.no_grad():
        torch.testing.assert_close(bare_stack(*inputs, present)[1], weights, rtol=0, atol=0)


@pytest.mark.parametrize("block", BLOCKS)
def test_parameters_that_are_not_trained(block, device):
    inputs, present = make_inputs(block, 3, 4, 16, 2, device)
    inputs = [inputs[0], *(x.detach() for x in inputs[1:])]
    (found,) = torch.autograd.grad(fused_stack(block, inputs, present)[0].sum(), inputs[:1])
    (wanted,) = torch.autograd.grad(plain_stack(block, inputs, present)[0].sum(), inputs[:1])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2, 17, 16), r"tokens: \[B, N, D\] with N at most 16 .*found \[2, 17, 16\]"),
        (0, torch.zeros(2, 4, 24), r"tokens: .*D one of \(16, 32, 64, 128, 256\) expected, found \[2, 4, 24\]"),
        (0, torch.zeros(2, 4, 512), r"tokens: .*found \[2, 4, 512\]"),
        (0, torch.zeros(0, 4, 16), r"tokens: .*found \[0, 4, 16\]"),
        (0, torch.zeros(4, 16), r"tokens: .*found \[4, 16\]"),
        (0, torch.zeros(2, 4, 16).half(), "tokens: torch.float32, or torch.float64 .*found torch.float16 with 'ieee'"),
        (1, torch.zeros(0, 16, 48), r"qkv: \[K, D, 3D\] with at least one layer expected, found \[0, 16, 48\]"),
        (1, torch.zeros(16, 48), r"qkv: \[K, D, 3D\].*found \[16, 48\]"),
        (1, torch.zeros(2, 16, 32), r"qkv: shape \[2, 16, 48\] expected, found \[2, 16, 32\]"),
        (1, torch.zeros(2, 16, 48).double(), "qkv: dtype torch.float32 expected, found torch.float64"),
        (2, torch.zeros(2, 16), r"qkv_bias: shape \[2, 48\] expected, found \[2, 16\]"),
        (3, torch.zeros(1, 16, 16), r"out_weight: shape \[2, 16, 16\] expected, found \[1, 16, 16\]"),
        (4, torch.zeros(2, 48), r"out_bias: shape \[2, 16\] expected, found \[2, 48\]"),
        (5, torch.zeros(16), r"norm_weight: shape \[2, 16\] expected, found \[16\]"),
        (6, torch.zeros(2, 17), r"norm_bias: shape \[2, 16\] expected, found \[2, 17\]"),
        (7, torch.ones(2, 5, dtype=torch.bool), r"present: torch.bool \[2, 4\].*found torch.bool \[2, 5\]"),
        (7, torch.ones(2, 4), r"present: torch.bool \[2, 4\].*found torch.float32"),
        (8, "fp8", "precision: one of ieee, tf32, bf16, fp16 expected, found 'fp8'"),
    ],
)
def test_what_is_refused(position, value, message):
    arguments = [x.detach() for x in make_inputs("residual", 2, 4, 16, 2, "cpu", torch.float32)[0]]
    arguments += [None, "ieee"]
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        residual_stack(arguments[0], reference.ResidualMaps(*arguments[1:7]), *arguments[7:])
    if position in (0, 1, 7, 8):
        with pytest.raises(ValueError, match=message):
            bare_stack(*arguments[:2], *arguments[7:])


def test_float64_is_for_exact_products_only():
    inputs, _ = make_inputs("bare", 2, 4, 16, 2, "cpu")
    with pytest.raises(
        ValueError, match=r"torch.float64 with precision 'ieee', expected, found torch.float64 with 'tf32'"
    ):
        bare_stack(*inputs, None, "tf32")
