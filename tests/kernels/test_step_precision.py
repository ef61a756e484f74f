"""Losses, gradients and parameters of a step in every precision, against the definition in float64."""

import pytest
import torch
from shazam_fast.kernels.step import trunks
from step_cases import DECAY, RATE, Case

# u: the relative error of rounding a number to so many bits. Forward and back, a gradient of this student of two layers
# passes about twenty products, each of two operands that are rounded independently: an error of some sqrt(40) u / 2,
# where a rounding errs by u / 2 on average. 4 u are allowed: those of the next coarser precision are 4 times as many.
# "ieee" rounds no operand, so that sums, exponentials and divisions count as well: 16 u.
U = {"ieee": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-9, "fp16": 2.0**-11}
OPTIONS = {"B": 4, "dims": (40, 24), "votes": True}
CASES = [(trunk, precision) for trunk in ("bare", "residual") for precision in U]
CASES += [("layered", "ieee"), ("layered", "tf32")]  # as a GPU's scoring, which has no other at such widths


def error(found, wanted):
    return ((found.double().cpu() - wanted).norm() / wanted.norm()).item()


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(("trunk", "precision"), CASES)
def test_a_step_errs_as_its_precision_does(trunk, precision, device, monkeypatch):
    if trunk == "layered":
        monkeypatch.setattr(trunks, "LAYERED", 16)
        monkeypatch.setattr(trunks, "COLUMNS", 16)
    exact = Case("cpu", residual=trunk == "residual", **OPTIONS)
    before = [value.detach().clone() for value in exact.values]
    losses, *wanted = exact.plain_steps([4])
    n = len(before)
    case = Case(device, torch.float32, residual=trunk == "residual", **OPTIONS)
    found_losses, *found = case.fused_steps([4], precision)
    # Triton's interpreter takes tf32 as float32, so what it takes is held to that.
    rounded = precision != "ieee" and (precision != "tf32" or device.type == "cuda")
    allowed = 4 * U[precision] if rounded else 16 * U["ieee"]

    means, squares = found[n : 2 * n], found[2 * n :]
    errors = [error(found_losses, losses), *(error(m, w) for m, w in zip(means, wanted[n : 2 * n], strict=True))]
    assert max(errors) <= allowed
    if rounded:  # and it is what it says: some gradient shows it
        assert max(errors) >= U[precision] / 8
    check_adamw(before, found[:n], means, squares)


def check_adamw(before, after, means, squares):
    """The first step of AdamW in float64, by the gradients that were found: a tenth of them is the first moment."""
    for start, end, mean, square in zip(before, after, means, squares, strict=True):
        gradient = mean.double().cpu() / 0.1
        parameter = start.clone().requires_grad_()
        parameter.grad = gradient
        torch.optim.AdamW([parameter], lr=RATE, weight_decay=DECAY).step()
        assert error(end, parameter.detach()) <= 16 * U["ieee"]
        assert error(square, gradient.square() / 1000) <= 16 * U["ieee"]
