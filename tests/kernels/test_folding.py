"""Folded scoring in one kernel: values against the definition, and what it refuses."""

import pytest
import torch
from compiled import skip_float64_products
from shazam_fast.kernels import reference
from shazam_fast.kernels.folded_scoring import folded_stack

# B, N, D, K: tiles of one patch and of many, whole and not; every slicing of D that runs in seconds
SHAPES = [
    (1, 1, 16, 2), (17, 1, 64, 1), (9, 2, 32, 2), (3, 3, 16, 3), (5, 4, 16, 2), (3, 4, 128, 5), (3, 5, 32, 1),
    (3, 8, 64, 2), (1, 16, 32, 2), (3, 16, 16, 2),
]  # fmt: skip


def make_inputs(B, N, D, K, device, dtype=torch.float64, missing=False):
    skip_float64_products(device, dtype)
    g = torch.Generator().manual_seed(B + N)
    tokens, maps = torch.randn(B, N, D, generator=g), torch.randn(D, K * D, generator=g) / D
    present = None
    if missing:
        present = torch.rand(B, N, generator=g) < 0.5
        present[torch.arange(B), torch.randint(N, (B,), generator=g)] = True
        present = present.to(device)
    return tokens.to(device, dtype), maps.to(device, dtype), present


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(("B", "N", "D", "K"), SHAPES)
def test_float64(B, N, D, K, missing, device):
    tokens, maps, present = make_inputs(B, N, D, K, device, missing=missing)
    if present is not None:
        tokens = tokens.masked_fill(~present[:, :, None], float("nan"))
    for found, wanted in zip(
        folded_stack(tokens, maps, present), reference.folded_stack(tokens, maps, present), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_outputs_are_overwritten_entirely(unwritten_is_nan, device):
    tokens, maps, present = make_inputs(5, 3, 16, 2, device, missing=True)
    with unwritten_is_nan():
        results = folded_stack(tokens, maps, present)
    for found, wanted in zip(results, reference.folded_stack(tokens, maps, present), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(("precision", "tolerance"), [("ieee", 2e-6), ("tf32", 2e-3), ("bf16", 2e-2), ("fp16", 2e-3)])
def test_precisions(precision, tolerance, device):
    tokens, maps, present = make_inputs(9, 4, 64, 5, device, torch.float32, missing=True)
    exact = reference.folded_stack(tokens.double(), maps.double(), present)
    for found, wanted in zip(folded_stack(tokens, maps, present, precision), exact, strict=True):
        assert (found - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize(
    ("tokens", "maps", "message"),
    [
        (torch.zeros(2, 17, 16), torch.zeros(16, 16), "N at most 16"),
        (torch.zeros(2, 4, 16), torch.zeros(16, 24), "score_maps"),
        (torch.zeros(2, 4, 16), torch.zeros(32, 16), "score_maps: shape"),
    ],
)
def test_what_does_not_fit_is_refused(tokens, maps, message):
    with pytest.raises(ValueError, match=message):
        folded_stack(tokens, maps)
