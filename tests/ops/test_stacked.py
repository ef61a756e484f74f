"""Operations on students side by side against PyTorch in float64, no further from it than PyTorch's own float32."""

import pytest
import torch
from shazam_fast.kernels import reference

from shazam_fast._core import StoreError, product, project, stacked_product
from shazam_fast.ops import stacked

SHAPES = [(1, 1, 1, 1, 1), (3, 1, 4, 5, 2), (2, 64, 3, 33, 5), (2, 7, 2, 128, 1), (1, 300, 1, 16, 2)]  # S, B, N, D, K


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def results(operation, upstream, *inputs):
    """The result and all gradients of an operation."""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    found = operation(*leaves)
    found.backward(upstream.to(found.dtype))
    return [found.detach(), *(x.grad for x in leaves)]


def assert_close(found, exact):
    for mine, truth in zip(found, exact, strict=True):
        if truth is not None:
            assert mine.shape == truth.shape
            assert (mine - truth).norm() <= 2e-6 * truth.norm() + 1e-6 * truth.numel() ** 0.5


def check(operation, upstream, *inputs):
    """An operation in the core against its form for float64."""
    exact = results(operation, upstream, *(x.double() for x in inputs))
    assert_close(results(operation, upstream, *inputs), exact)


def some_present(B, N):
    present = normal(B, N, seed=9) > -0.4
    present[:, 0] = True
    return present


@pytest.mark.parametrize(("S", "B", "N", "D", "K"), SHAPES)
def test_products(S, B, N, D, K):
    E = 5 * N
    for weight in (normal(S, E, D, seed=1), normal(S, D, E, seed=1).mT):
        check(stacked.linear, normal(S, B, D, seed=3), normal(S, B, E), weight, normal(S, D, seed=2))
    by_rows = normal(S, E, B).mT
    check(lambda x, w: stacked.linear(x, w.mT), normal(S, B, D, seed=3), by_rows, normal(S, D, E, seed=1))


@pytest.mark.parametrize(("S", "B", "N", "D", "K"), SHAPES)
def test_projections(S, B, N, D, K):
    dims = [3 + 200 * i for i in range(N)]
    columns = [normal(B, dim, seed=i) for i, dim in enumerate(dims)]
    weights = [normal(S, dim, D, seed=i + 20) for i, dim in enumerate(dims)]

    def project(biases, *maps):
        return stacked.project([x.to(biases.dtype) for x in columns], maps, biases)

    check(project, normal(S, B, N, D, seed=50), normal(S, N, D, seed=51), *weights)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("S", "B", "N", "D", "K"), SHAPES)
def test_bare_stacks(S, B, N, D, K, masked):
    present = some_present(B, N) if masked else None
    tokens, qkv = normal(S, B, N, D), normal(S, K, D, 3 * D, seed=1) / D**0.5
    if masked:
        tokens[:, ~present] = torch.nan  # of teachers that are not there nothing may be read
    check(lambda T, W: stacked.bare_stack(T, W, present), normal(S, B, D, seed=2), tokens, qkv)
    with torch.no_grad():
        found = stacked.bare_stack(tokens, qkv, present)
    for s in range(S):
        assert_close([found[s].double()], [reference.bare_stack(tokens[s].double(), qkv[s].double(), present)[0]])


@pytest.mark.parametrize("huber", ["norm", "elementwise"])
@pytest.mark.parametrize(("S", "B", "N", "D", "K"), SHAPES)
def test_distillation(S, B, N, D, K, huber):
    lams, deltas = [0.5 * s for s in range(S)], [0.3 + s for s in range(S)]
    for present in (None, some_present(B, N)):
        check(
            lambda t, T, p=present: stacked.distil(t, T, lams, deltas, huber, p),
            normal(S, seed=2), normal(S, B, D), normal(S, B, N, D, seed=1),
        )  # fmt: skip
    fixed = normal(S, B, N, D, seed=1)
    check(lambda t: stacked.distil(t, fixed.to(t.dtype), lams, deltas, huber, None), normal(S, seed=2), normal(S, B, D))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": normal(2, 3)}, "left: expected"),
        ({"left": normal(2, 3, 4).double()}, "left: expected float32"),
        ({"left": normal(2, 4, 3).mT}, "left: the values of a row must be contiguous"),
        ({"left": normal(2, 0, 4)}, "left: expected"),
        ({"right": normal(2, 5, 5)}, "right: expected"),
        ({"right": normal(1, 4, 5)}, "right: expected"),
        ({"bias": normal(2, 4)}, "bias: expected"),
        ({"out": normal(2, 3, 4)}, "out: expected"),
        ({"out": normal(1, 3, 5).expand(2, -1, -1)}, "out: expected matrices that do not overlap"),
        ({"out": normal(2, 1, 5).expand(-1, 3, -1)}, "out: expected rows that do not overlap"),
        ({"left_transposed": True, "right_transposed": True}, "not both"),
        ({"threads": 0}, "threads"),
    ],
)
def test_the_core_refuses_what_does_not_fit(change, message):
    arguments = {"left": normal(2, 3, 4), "right": normal(2, 4, 5), "bias": None, "out": normal(2, 3, 5), **change}
    arrays = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(StoreError, match=message):
        stacked_product(**arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": normal(3, 4).double()}, "left"),
        ({"left": normal(3, 8)[:, ::2]}, "left: the values of rows or columns"),
        ({"left": normal(4, 3).T, "right": normal(5, 4).T}, "not both transposed"),
        ({"right": normal(3, 5)}, "right: expected"),
        ({"bias": normal(4)}, "bias: expected"),
        ({"out": normal(5, 3).T}, "out: expected a shape"),
        ({"out": normal(1, 5).expand(3, -1)}, "out: expected rows that do not overlap"),
        ({"threads": 0}, "threads"),
    ],
)
def test_a_product_refuses_what_does_not_fit(change, message):
    arguments = {"left": normal(3, 4), "right": normal(4, 5), "bias": None, "out": normal(3, 5), **change}
    arrays = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(StoreError, match=message):
        product(**arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": normal(6, 7).double()}, "features"),
        ({"rows": torch.tensor([0, 6])}, "rows: expected rows of the features"),
        ({"rows": torch.tensor([0, -1])}, "rows: expected rows of the features"),
        ({"dims": [3, 3]}, "dims"),
        ({"dims": [7, 0]}, "dims"),
        ({"scale": normal(6)}, "scale: expected"),
        ({"present": torch.ones(3, 2).bool()}, "present: expected"),
        ({"columns": normal(6, 7)}, "columns: expected"),
        ({"tokens": normal(2, 7, 5)}, "tokens: expected"),
    ],
)
def test_a_projection_refuses_what_does_not_fit(change, message):
    arguments = {
        "features": normal(6, 7), "rows": torch.tensor([0, 5]), "dims": [3, 4], "mean": normal(7), "scale": normal(7),
        "present": None, "weight": normal(7, 5), "bias": normal(2, 5), "columns": None, "tokens": normal(2, 2, 5),
        "threads": 1, **change,
    }  # fmt: skip
    arrays = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(StoreError, match=message):
        project(**arrays)
