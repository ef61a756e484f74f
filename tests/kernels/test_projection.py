"""Gather, standardisation and projection in one kernel: values and gradients against the definition."""

import pytest
import torch
from compiled import skip_float64_products
from shazam_fast.kernels import reference
from shazam_fast.kernels.launch import alignment
from shazam_fast.kernels.projection import project
from shazam_fast.kernels.reference import TokenMaps

SHAPES = [(1, 1, [1]), (5, 33, [7, 40, 1]), (17, 16, [33]), (20, 128, [96, 64, 31]), (3, 20, [32, 48])]


def make_inputs(B, D, dims, device, dtype=torch.float64, stored=None, missing=False):
    """Table of 3 B rows, chosen rows with repeats, moments, maps and who is there."""
    skip_float64_products(device, dtype)
    g = torch.Generator().manual_seed(B * 1000 + D)
    N, width = len(dims), sum(dims)
    table = (3 + 2 * torch.randn(3 * B, width, generator=g)).to(stored or dtype)
    rows = torch.randint(3 * B, (B,), generator=g)
    standard = 3 + torch.randn(width, generator=g), 0.5 + torch.rand(width, generator=g)
    maps = torch.randn(width, D, generator=g) / width**0.5, torch.randn(N, D, generator=g)
    present = None
    if missing:
        present = torch.rand(B, N, generator=g) < 0.5
        present[torch.arange(B), torch.randint(N, (B,), generator=g)] = True
        present = present.to(device)
    standard = tuple(x.to(device, dtype) for x in standard)
    return table.to(device), rows.to(device), standard, [x.to(device, dtype).requires_grad_() for x in maps], present


def with_gradients(tokens, maps):
    g = torch.Generator().manual_seed(1)
    upstream = torch.randn(tokens.shape, generator=g, dtype=torch.float64).to(tokens)
    return tokens, *torch.autograd.grad(tokens, maps, upstream)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(("B", "D", "dims"), SHAPES)
def test_values_and_gradients(B, D, dims, missing, device):
    table, rows, standard, maps, present = make_inputs(B, D, dims, device, missing=missing)
    found = with_gradients(project(table, rows, TokenMaps(*maps, dims, standard), present), maps)
    wanted = with_gradients(reference.project(table, rows, TokenMaps(*maps, dims, standard), present), maps)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_outputs_are_overwritten_entirely(unwritten_is_nan, device):
    """The widest teacher decides the grid; the narrow one's columns are written all the same."""
    table, rows, standard, maps, present = make_inputs(5, 20, [70, 3], device, missing=True)
    with unwritten_is_nan():
        found = with_gradients(project(table, rows, TokenMaps(*maps, [70, 3], standard), present), maps)
    wanted = with_gradients(reference.project(table, rows, TokenMaps(*maps, [70, 3], standard), present), maps)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows_dtype", [None, torch.int32, torch.int64])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_dtypes_with_and_without_rows(stored, rows_dtype, device):
    table, rows, _, maps, _ = make_inputs(9, 20, [30, 5], device, torch.float32, stored)
    rows = None if rows_dtype is None else rows.to(rows_dtype)
    found = with_gradients(project(table, rows, TokenMaps(*maps, [30, 5])), maps)
    wanted = with_gradients(reference.project(table, rows, TokenMaps(*maps, [30, 5]), None), maps)
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(("precision", "tolerance"), [("ieee", 2e-6), ("tf32", 2e-3), ("bf16", 2e-2), ("fp16", 2e-3)])
def test_precisions(precision, tolerance, device):
    table, rows, standard, maps, _ = make_inputs(40, 32, [100, 60], device, torch.float32)
    found = with_gradients(project(table, rows, TokenMaps(*maps, [100, 60], standard), None, precision), maps)
    exact = [x.detach().double().requires_grad_() for x in maps]
    moments = tuple(x.double() for x in standard)
    wanted = with_gradients(reference.project(table.double(), rows, TokenMaps(*exact, [100, 60], moments), None), exact)
    for left, right in zip(found, wanted, strict=True):
        assert (left - right).norm() <= tolerance * right.norm()


@pytest.mark.usefixtures("bfloat16")
def test_bf16_has_the_range_of_float32(device):
    table, rows, standard, (weight, bias), _ = make_inputs(3, 16, [20, 6], device, torch.float32)
    large = weight.detach() * 1e6
    assert project(table, rows, TokenMaps(large, bias, [20, 6], standard), None, "bf16").isfinite().all()


def test_gradcheck(device):
    table, rows, standard, maps, present = make_inputs(3, 5, [7, 2], device, missing=True)
    assert torch.autograd.gradcheck(
        lambda *x: project(table, rows, TokenMaps(*x, [7, 2], standard), present), maps, fast_mode=True
    )


def test_a_large_batch_takes_larger_tiles(device):
    table, rows, standard, maps, _ = make_inputs(1030, 20, [12, 50], device, torch.float32)
    torch.testing.assert_close(
        project(table, rows, TokenMaps(*maps, [12, 50], standard)),
        reference.project(table, rows, TokenMaps(*maps, [12, 50], standard), None),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_absent_teachers_may_hold_anything(device):
    dims = [6, 9]
    table, rows, standard, maps, present = make_inputs(8, 16, dims, device, missing=True)
    clean = with_gradients(project(table, rows, TokenMaps(*maps, dims, standard), present), maps)
    hidden = ~present.repeat_interleave(torch.tensor(dims, device=device), dim=1)
    poisoned = table[rows].masked_fill(hidden, float("nan"))
    found = with_gradients(project(poisoned, None, TokenMaps(*maps, dims, standard), present), maps)
    for left, right in zip(found, clean, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp8"}, "precision: one of ieee, tf32"),
        ({"dims": [6, 10]}, r"weight: shape \[16, 16\]"),
        ({"dims": [15]}, "dims: the widths of 2 teachers"),
        ({"features": torch.zeros(8, 16)}, r"features: float \[R, 15\]"),
        ({"features": torch.zeros(15, 8).T}, "features: float .* with neighbouring columns"),
        ({"rows": torch.tensor([0.5])}, "rows: contiguous int32 or int64"),
        ({"rows": torch.arange(8)[::2]}, "rows: contiguous"),
        ({"features": torch.zeros(8, 15, dtype=torch.int32)}, "features: float"),
        ({"features": torch.zeros(8, 15, requires_grad=True)}, "features: no gradient"),
        ({"weight": torch.zeros(15, 16, dtype=torch.float16)}, "weight: float32 or float64"),
        ({"standard": (torch.zeros(15), torch.zeros(14))}, "scale: shape"),
        ({"present": torch.ones(3, 2, dtype=torch.bool)}, "present"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"features": torch.zeros(8, 15), "rows": None, **change}
    maps = {"weight": torch.zeros(15, 16), "bias": torch.zeros(2, 16), "dims": [6, 9]}
    maps |= {name: arguments.pop(name) for name in TokenMaps._fields if name in change}
    with pytest.raises(ValueError, match=message):
        project(**arguments, maps=TokenMaps(**maps))


@pytest.mark.parametrize(
    ("dims", "stride", "wanted"),
    [((1024, 1280, 512), 2816, 16), ((768,), 768, 16), ((24, 40), 64, 8), ((1024, 1025), 2049, 1), ((32,), 33, 1)],
)
def test_what_starts_and_rows_can_be_divided_by(dims, stride, wanted):
    assert alignment(dims, stride) == wanted
