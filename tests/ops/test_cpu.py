"""The CPU operations against their definition in float64, no further from it than PyTorch's own float32."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shazam_fast.kernels import reference
from shazam_fast.kernels.reference import ResidualMaps

import shazam_fast as sf
from shazam_fast import _core
from shazam_fast.ops import distillation, folding, projection, stack
from shazam_fast.ops.limits import cpu_obstacle
from shazam_fast.runtime import products

TEACHERS = [1, 2, 3, 4, 5, 8, 16, 32]
WIDTHS = [1, 5, 16, 33, 128, 200]
BATCHES = [1, 3, 64]
NAN = float("nan")

cpu_ops = SimpleNamespace(
    project=projection.project_cpu,
    bare_stack=stack.bare_stack_cpu,
    residual_stack=stack.residual_stack_cpu,
    folded_stack=folding.folded_stack_cpu,
    distillation_loss=distillation.distillation_loss_cpu,
)


def generator(*seed):
    return torch.Generator().manual_seed(hash(seed) % 2**31)


def make_present(B, N, g):
    """About two thirds of the teachers, at least one a patch."""
    present = torch.rand(B, N, generator=g) < 0.66
    present[torch.arange(B), torch.randint(N, (B,), generator=g)] = True
    return present


def run(operation, dtype, *inputs, upstream, settings=()):
    """Results and gradients of operation(*inputs, *settings); `upstream` is the first result's gradient."""
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
    results = operation(*leaves, *settings)
    results[0].backward(upstream.to(dtype))
    return [*(x.detach() for x in results), *(x.grad for x in leaves)]


def assert_as_accurate(found, plain, exact, sizes=None):
    """Errors at most twice those of plain float32, but for a few units in the last place.

    `sizes` are norms of what the results are differences of, where that is more than the results' own.
    """
    sizes = sizes or [truth.norm() for truth in exact]
    for mine, torchs, truth, size in zip(found, plain, exact, sizes, strict=True):
        assert mine.shape == truth.shape
        assert mine.dtype == torch.float32
        error, allowed = (mine - truth).norm(), 2 * (torchs - truth).norm()
        assert error <= allowed + 8 * torch.finfo(torch.float32).eps * size


def same_bits(first, second):
    return all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(first, second, strict=True))


def plain_distillation(fused, targets, lam, delta, huber, present):
    cosine = reference.cosine_losses(fused, targets, present)
    if huber == "norm":
        huber_losses = reference.huber_norm_losses(fused, targets, delta, present)
    else:
        huber_losses = reference.huber_elementwise_losses(fused, targets, delta, present)
    return lam * (cosine.sum() + huber_losses.sum()), cosine, huber_losses


@pytest.fixture(params=[False, True], ids=["all", "masked"])
def masked(request):
    return request.param


@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("N", TEACHERS)
class TestEveryShape:
    def test_bare_stack(self, B, N, D, masked):
        g = generator(B, N, D)
        tokens, qkv = torch.randn(B, N, D, generator=g), torch.randn(3, D, 3 * D, generator=g) / D**0.5
        present = make_present(B, N, g) if masked else None
        upstream = torch.randn(B, D, generator=g)
        results = [
            run(stack, dtype, tokens, qkv, upstream=upstream, settings=(present,))
            for stack, dtype in [
                (cpu_ops.bare_stack, torch.float32),
                (reference.bare_stack, torch.float32),
                (reference.bare_stack, torch.float64),
            ]
        ]
        assert_as_accurate(*results)

    @pytest.mark.parametrize("huber", ["norm", "elementwise"])
    def test_distillation(self, B, N, D, huber, masked):
        g = generator(B, N, D)
        fused, targets = torch.randn(B, D, generator=g), torch.randn(B, N, D, generator=g)
        targets *= torch.rand(B, N, 1, generator=g)
        present = make_present(B, N, g) if masked else None
        delta = 1.2 * D**0.5 if huber == "norm" else 1.0  # some distances on either side
        upstream = torch.tensor(-1.7)
        results = [
            run(losses, dtype, fused, targets, upstream=upstream, settings=(0.3, delta, huber, present))
            for losses, dtype in [
                (cpu_ops.distillation_loss, torch.float32),
                (plain_distillation, torch.float32),
                (plain_distillation, torch.float64),
            ]
        ]
        parts = 1.7 * 0.3 / B  # of a cosine's gradient, times 1 / norm; they cancel where vectors are parallel
        sizes = [0.3 * N, 1.0, 0.0, parts * N / fused.norm(dim=-1).min(), parts / targets.norm(dim=-1).min()]
        sizes = [x.norm() + size for x, size in zip(results[2], sizes, strict=True)]
        assert_as_accurate(*results, sizes)

    def test_folded_stack(self, B, N, D, masked):
        g = generator(B, N, D)
        tokens, maps = torch.randn(B, N, D, generator=g), torch.randn(D, 4 * D, generator=g) / D
        present = make_present(B, N, g) if masked else None
        assert_as_accurate(
            cpu_ops.folded_stack(tokens, maps, present),
            reference.folded_stack(tokens, maps, present),
            reference.folded_stack(tokens.double(), maps.double(), present),
        )


@pytest.fixture(params=["MKL", "oneDNN", "core"])
def library(request, monkeypatch):
    """By whom matrices are multiplied, the smallest too."""
    monkeypatch.setattr(products, "ONEDNN_PRODUCTS", request.param == "oneDNN" and torch.backends.mkldnn.is_available())
    for module in (products, projection, stack):
        monkeypatch.setattr(module, "CORE_PRODUCTS", request.param == "core")
    monkeypatch.setattr(products, "WORTH", 0)


@pytest.mark.parametrize(("B", "D", "dims"), [(1, 3, [2]), (300, 33, [70, 5, 300]), (64, 128, [1280, 1024, 1536])])
def test_project(B, D, dims, library, masked):
    g = generator(B, D)
    N, width = len(dims), sum(dims)
    inputs = torch.randn(B, width, generator=g), torch.randn(width, D, generator=g), torch.randn(N, D, generator=g)
    moments = torch.randn(width, generator=g), torch.rand(width, generator=g) + 0.5
    present = make_present(B, N, g) if masked else None

    def project(module):
        def tokens(x, weight, bias):
            standard = tuple(moment.to(x.dtype) for moment in moments)
            return (module.project(x, None, reference.TokenMaps(weight, bias, dims, standard), present),)

        return tokens

    upstream = torch.randn(B, N, D, generator=generator(7))
    results = [
        run(project(module), dtype, *inputs, upstream=upstream)
        for module, dtype in [(cpu_ops, torch.float32), (reference, torch.float32), (reference, torch.float64)]
    ]
    assert_as_accurate(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_project_chosen_rows_of_a_table_that_is_only_read(dtype, library, masked):
    g = generator(5)
    B, D, dims = 70, 33, [70, 5, 300]
    table = torch.randn(99, 400, generator=g).to(dtype)[:, 10:385]  # rows with a gap
    rows = torch.randint(99, (B,), generator=g)
    moments = torch.randn(375, generator=g), torch.rand(375, generator=g) + 0.5
    moments[1][7] = torch.inf  # leaves the column out
    inputs = torch.randn(375, D, generator=g), torch.randn(3, D, generator=g)
    present = make_present(B, 3, g) if masked else None

    def project(module):
        def tokens(weight, bias):
            maps = reference.TokenMaps(weight, bias, dims, tuple(moment.to(weight.dtype) for moment in moments))
            return (module.project(table, rows, maps, present),)

        return tokens

    upstream = torch.randn(B, 3, D, generator=g)
    found = run(project(cpu_ops), torch.float32, *inputs, upstream=upstream)
    plain, exact = (run(project(reference), t, *inputs, upstream=upstream) for t in (torch.float32, torch.float64))
    assert_as_accurate(found, plain, exact)
    with torch.no_grad():
        assert_as_accurate(project(cpu_ops)(*inputs), plain[:1], exact[:1])


@pytest.mark.parametrize("rows", [[], [3]])
def test_project_few_rows(library, rows):
    weight, bias = torch.randn(12, 5).requires_grad_(), torch.randn(2, 5)
    maps = reference.TokenMaps(weight, bias, [8, 4], (torch.zeros(12), torch.ones(12)))
    table = torch.randn(9, 12, generator=generator(4))
    cpu_ops.project(table, torch.tensor(rows, dtype=torch.int64), maps, None).sum().backward()
    torch.testing.assert_close(weight.grad, table[rows].sum(dim=0)[:, None].expand(12, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_project_chosen_rows_as_they_are(dtype):
    g = generator(3)
    table, weight, bias = torch.randn(20, 12, generator=g).to(dtype), torch.randn(12, 5, generator=g), torch.randn(2, 5)
    rows = torch.tensor([3, 19, 3, 0])
    maps = reference.TokenMaps(weight, bias, [8, 4])
    found = cpu_ops.project(table, rows, maps, None)
    torch.testing.assert_close(found, reference.project(table[rows], None, maps, None))


@pytest.mark.parametrize(("B", "N", "D"), [(1, 1, 5), (3, 4, 33), (64, 4, 128), (9, 32, 16)])
def test_residual_stack(B, N, D, masked):
    g = generator(B, N, D)

    def normal(*shape, spread=1.0):
        return spread * torch.randn(*shape, generator=g)

    maps = normal(3, D, 3 * D, spread=D**-0.5), normal(3, 3 * D), normal(3, D, D, spread=D**-0.5), normal(3, D)
    inputs = normal(B, N, D), *maps, 1 + normal(3, D, spread=0.1), normal(3, D)
    present = make_present(B, N, g) if masked else None

    def stack(module):
        return lambda tokens, *x: (module.residual_stack(tokens, ResidualMaps(*x), present),)

    upstream = normal(B, D)
    results = [
        run(stack(module), dtype, *inputs, upstream=upstream)
        for module, dtype in [(cpu_ops, torch.float32), (reference, torch.float32), (reference, torch.float64)]
    ]
    # The key bias moves no score: its gradient is rounding alone, as large as that of the other biases lets it be.
    sizes = [truth.norm() for truth in results[2]]
    assert_as_accurate(*results, sizes)


@pytest.mark.parametrize(("B", "N", "D"), [(9, 4, 16), (40, 4, 16), (700, 3, 33)])
def test_stacks_without_gradients(B, N, D, masked):
    """Merged or folded maps, in one block or in several."""
    g = generator(B, N, D)

    def normal(*shape, spread=1.0):
        return spread * torch.randn(*shape, generator=g)

    tokens, qkv, out = normal(B, N, D), normal(3, D, 3 * D, spread=D**-0.5), normal(3, D, D, spread=D**-0.5)
    maps = qkv, normal(3, 3 * D), out, normal(3, D), 1 + normal(3, D, spread=0.1), normal(3, D)
    present = make_present(B, N, g) if masked else None

    def results(module, dtype):
        x, cast = tokens.to(dtype), [m.to(dtype) for m in maps]
        fused, attention = module.bare_stack(x, cast[0], present)
        shares = attention if attention.ndim == 2 else reference.teacher_shares(attention, present)
        return fused, shares, module.residual_stack(x, ResidualMaps(*cast), present)

    assert_as_accurate(
        results(cpu_ops, torch.float32), results(reference, torch.float32), results(reference, torch.float64)
    )


def test_stack_with_any_product(library):
    TestEveryShape().test_bare_stack(64, 4, 128, True)
    TestEveryShape().test_bare_stack(64, 4, 33, False)  # merged maps but in the core
    TestEveryShape().test_folded_stack(64, 4, 128, True)


def test_absent_teachers_have_no_influence():
    g = generator(1)
    B, N, D = 20, 6, 24
    tokens, fused = torch.randn(B, N, D, generator=g), torch.randn(B, D, generator=g)
    qkv = torch.randn(4, D, 3 * D, generator=g) / D**0.5
    present = make_present(B, N, g)
    poisoned = tokens.masked_fill(~present[:, :, None], NAN)

    def stack(t, w):
        return cpu_ops.bare_stack(t, w, present)

    def losses(t, targets):
        return cpu_ops.distillation_loss(t, targets, 0.5, 1.0, "norm", present)

    stacks = [run(stack, torch.float32, t, qkv, upstream=fused) for t in (tokens, poisoned)]
    assert same_bits(*stacks)
    distilled = [run(losses, torch.float32, fused, t, upstream=torch.tensor(1.0)) for t in (tokens, poisoned)]
    assert same_bits(*distilled)
    for gradient in (stacks[1][2], distilled[1][4]):
        assert (gradient[~present] == 0).all()
        assert (gradient[present] != 0).any()
    maps = torch.randn(D, 3 * D, generator=g) / D
    assert same_bits(cpu_ops.folded_stack(tokens, maps, present), cpu_ops.folded_stack(poisoned, maps, present))


def test_sharp_attention():
    """Scores of a million, exact in float32: their softmax is, too."""
    rng = np.random.default_rng(0)
    B, N, D = 50, 4, 16
    qkv = rng.integers(-9, 10, (B * N, 3 * D)).astype(np.float32)
    qkv[:, :D] *= 65536
    P, out = np.full((B, N, N), NAN, np.float32), np.full((B, N, D), NAN, np.float32)
    _core.attention_forward(qkv, None, P, out)
    q, k, v = (torch.from_numpy(qkv).double().view(B, N, 3 * D)).split(D, dim=-1)
    scores = q @ k.mT / 4
    assert scores.abs().max() > 1e6
    torch.testing.assert_close(torch.from_numpy(P).double(), scores.softmax(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.from_numpy(out).double(), scores.softmax(-1) @ v, rtol=1e-6, atol=1e-6)
    d_qkv = np.full_like(qkv, NAN)
    _core.attention_backward(qkv, None, P, out, d_qkv)
    assert np.isfinite(d_qkv).all()


@pytest.mark.parametrize("huber", ["norm", "elementwise"])
def test_losses_at_their_corners(huber):
    """No norm at all, norms below the floor, t = T_i, and r exactly at delta."""
    D, delta = 33, 2.0
    fused, targets = torch.zeros(6, D), torch.zeros(6, 2, D)
    fused[2:, 0] = 1.0
    targets[1, 0, 3] = delta
    targets[2, :, 0] = torch.tensor([1.0 + delta, 1.0])
    targets[3, :, 0] = torch.tensor([1e-9, -1.0])
    fused[4] = 1e-10
    targets[5] = 1e-5
    results = [
        run(losses, dtype, fused, targets, upstream=torch.tensor(1.0), settings=(0.5, delta, huber, None))
        for losses, dtype in [
            (cpu_ops.distillation_loss, torch.float32),
            (plain_distillation, torch.float32),
            (plain_distillation, torch.float64),
        ]
    ]
    assert_as_accurate(*results)
    assert all(x.isfinite().all() for x in results[0])


def core_results(threads):
    """Outputs of every function of the core, poisoned before, on enough patches for several tasks."""
    rng = np.random.default_rng(3)
    B, N, D, K = 300, 5, 130, 3

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    def poison(*shape):
        return np.full(shape, NAN, np.float32)

    present = rng.random((B, N)) < 0.7
    present[:, 2] = True
    qkv, P, maps = normal(B * N, 3 * D), poison(B, K, N, N), poison(B, N, N)
    out, pooled, d_qkv, d_pooled_qkv = poison(B, N, D), poison(B, D), poison(B * N, 3 * D), poison(B * N, 3 * D)
    _core.attention_forward(qkv, None, P[:, 1], out, threads)
    _core.attention_forward(qkv, present, maps, pooled, threads)
    _core.attention_backward(qkv, None, P[:, 1], normal(B, N, D), d_qkv, threads)
    _core.attention_backward(qkv, present, maps, normal(B, D), d_pooled_qkv, threads)
    losses = poison(), poison(N), poison(N), poison(B, D), poison(B, N, D)
    _core.distillation(normal(B, D), normal(B, N, D), present, 0.5, 1.0, False, *losses, threads)
    folded = poison(B, D), poison(B, N)
    _core.folded_scores(normal(B, N * K, D), normal(B, N, D), present, *folded, threads)
    assert np.isnan(P[:, [0, 2]]).all()
    return [P[:, 1].copy(), maps, out, pooled, d_qkv, d_pooled_qkv, *losses, *folded]


def test_threads_do_not_change_a_bit():
    alone = core_results(1)
    assert all(np.isfinite(x).all() for x in alone)
    for threads in (2, 3, 4):
        for first, other in zip(alone, core_results(threads), strict=True):
            assert first.tobytes() == other.tobytes()


def test_repeated_steps_give_the_same_bits():
    g = generator(5)
    inputs = torch.randn(64, 4, 128, generator=g), torch.randn(3, 128, 384, generator=g) / 12

    def step(tokens, qkv):
        fused, attention = cpu_ops.bare_stack(tokens, qkv, None)
        total, *losses = cpu_ops.distillation_loss(fused, tokens, 0.5, 1.0, "norm", None)
        return total, fused, attention, *losses

    first, second = (run(step, torch.float32, *inputs, upstream=torch.tensor(1.0)) for _ in range(2))
    assert same_bits(first, second)


def test_only_the_gradients_asked_for():
    g = generator(6)
    tokens, qkv = torch.randn(5, 3, 8, generator=g), torch.randn(2, 8, 24, generator=g)
    for wanted in ("tokens", "qkv"):
        leaves = {"tokens": tokens.clone(), "qkv": qkv.clone()}
        both = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
        leaves[wanted].requires_grad_()
        for inputs in (leaves, both):
            cpu_ops.bare_stack(**inputs, present=None)[0].square().sum().backward()
        assert torch.equal(leaves[wanted].grad, both[wanted].grad)
    fused = torch.randn(5, 8, generator=g).requires_grad_()
    cpu_ops.distillation_loss(fused, tokens, 0.5, 1.0, "norm", None)[0].backward()
    detached = fused.grad.clone()
    fused.grad = None
    cpu_ops.distillation_loss(fused, tokens.requires_grad_(), 0.5, 1.0, "norm", None)[0].backward()
    assert torch.equal(fused.grad, detached)


def test_results_without_gradients_are_the_same():
    g = generator(8)
    tokens, qkv = torch.randn(5, 3, 8, generator=g), torch.randn(2, 8, 24, generator=g).requires_grad_()
    fused, attention = cpu_ops.bare_stack(tokens, qkv, None)
    assert fused.requires_grad
    assert not attention.requires_grad
    losses = cpu_ops.distillation_loss(fused, tokens, 0.5, 1.0, "norm", None)
    assert [x.requires_grad for x in losses] == [True, False, False]
    with torch.no_grad():
        assert same_bits([fused.detach(), attention], cpu_ops.bare_stack(tokens, qkv, None))
        plain = cpu_ops.distillation_loss(fused, tokens, 0.5, 1.0, "norm", None)
    assert same_bits([x.detach() for x in losses], plain)


def test_any_strides():
    g = generator(9)
    tokens, qkv = torch.randn(3, 8, 5, generator=g).mT, torch.randn(24, 8, 2, generator=g).permute(2, 1, 0)
    plain = tokens.contiguous(), qkv.contiguous()
    assert same_bits(cpu_ops.bare_stack(tokens, qkv, None), cpu_ops.bare_stack(*plain, None))
    present = torch.rand(5, 3, generator=g).T < 2  # all of them
    assert same_bits(cpu_ops.bare_stack(tokens, qkv, present), cpu_ops.bare_stack(*plain, None))
    fused = torch.randn(8, 3, generator=g).T[:, :5]
    distilled = cpu_ops.distillation_loss(fused, tokens[:, :, :5], 0.5, 1.0, "norm", None)
    expected = cpu_ops.distillation_loss(fused.contiguous(), plain[0][:, :, :5].contiguous(), 0.5, 1.0, "norm", None)
    assert same_bits(distilled, expected)


def test_no_patches():
    fused, attention = cpu_ops.bare_stack(torch.empty(0, 3, 8), torch.randn(2, 8, 24), None)
    assert fused.shape == (0, 8)
    assert attention.shape == (0, 2, 3, 3)
    pooled, w = cpu_ops.folded_stack(torch.empty(0, 3, 8), torch.randn(8, 16), None)
    assert pooled.shape == (0, 8)
    assert w.shape == (0, 3)


def test_folded_stack_in_parts(monkeypatch):
    g = generator(10)
    tokens, maps = torch.randn(50, 4, 16, generator=g), torch.randn(16, 48, generator=g) / 16
    present = make_present(50, 4, g)
    whole = cpu_ops.folded_stack(tokens, maps, present)
    monkeypatch.setattr(folding, "FOLDED_BYTES", 7 * 4 * 48 * 4 // torch.get_num_threads())
    for mine, expected in zip(cpu_ops.folded_stack(tokens, maps, present), whole, strict=True):
        torch.testing.assert_close(mine, expected)


def test_what_is_supported():
    assert cpu_obstacle(torch.empty(2, 32, 8)) is None
    assert cpu_obstacle(torch.empty(2, 33, 8)) == "33 teachers, more than 32"
    assert "torch.float64" in cpu_obstacle(torch.empty(2, 4, 8, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"qkv": np.zeros((8, 15))}, "dtype", "qkv: expected float32, found float64"),
        ({"qkv": np.zeros((8, 30), np.float32)[:, ::2]}, "dtype", "qkv: expected contiguous"),
        ({"qkv": np.zeros((8, 16), np.float32)}, "bounds", "qkv"),
        ({"present": np.zeros((2, 3), bool)}, "bounds", "present"),
        ({"present": np.zeros((2, 4), np.uint8)}, "dtype", "present: expected bool"),
        ({"attention": np.zeros((2, 4, 3), np.float32)}, "bounds", "attention"),
        ({"attention": np.zeros((2, 4, 8), np.float32)[:, :, ::2]}, "dtype", "attention"),
        ({"attention": np.zeros((2, 33, 33), np.float32)}, "bounds", "teachers"),
        ({"out": np.zeros((2, 5, 5), np.float32)}, "bounds", "out"),
        ({"out": np.zeros((10,), np.float32)}, "bounds", "tokens"),
        ({"threads": 0}, "bounds", "threads"),
    ],
)
def test_misuse_of_the_core(changes, kind, match):
    arguments = {
        "qkv": np.zeros((8, 15), np.float32),
        "present": None,
        "attention": np.zeros((2, 4, 4), np.float32),
        "out": np.zeros((2, 4, 5), np.float32),
        "threads": 1,
    }
    _core.attention_forward(**arguments)
    with pytest.raises(_core.StoreError, match=match) as info:
        _core.attention_forward(**{**arguments, **changes})
    assert info.value.kind == kind


@pytest.mark.parametrize("name", ["attention", "out"])
def test_read_only_results_are_refused(name):
    arrays = {"attention": np.zeros((2, 4, 4), np.float32), "out": np.zeros((2, 4, 5), np.float32)}
    arrays[name].flags.writeable = False
    with pytest.raises(_core.StoreError, match=f"{name}: the array is read-only"):
        _core.attention_forward(np.zeros((8, 15), np.float32), None, **arrays)


@pytest.mark.parametrize("missing", [False, True])
def test_projections_without_gradient_are_those_with_it(missing, monkeypatch):
    """In blocks of rows, the last one shorter; features of missing teachers may be anything."""
    monkeypatch.setattr("shazam_fast.ops.projection.BLOCK_ROWS", 8)
    config = sf.StudentConfig({"a": 5, "b": 9, "c": 3}, ("x", "y"), dim=6, depth=1)
    student = sf.Student(config, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    student.feature_mean.copy_(torch.randn(17, generator=generator))
    student.feature_scale.copy_(torch.rand(17, generator=generator) + 0.5)
    features = torch.randn(21, 17, generator=generator)
    present = None
    if missing:
        present = torch.rand(21, 3, generator=generator) < 0.6
        present[:, 1] = True
        features[~present[:, 0], 2] = torch.nan
    expected = student.tokens(features, present)
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(student.tokens(features, present), expected.detach())
        rows = torch.tensor([20, 3, 3])
        chosen = None if present is None else present[rows]
        torch.testing.assert_close(student.tokens(features, chosen, rows), expected.detach()[rows])
        assert student.tokens(features[:0], None if present is None else present[:0]).shape == (0, 3, 6)
