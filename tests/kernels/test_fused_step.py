"""A step in a few kernels against the definition: losses, parameters and moments after steps of AdamW."""

import pytest
import torch
from shazam_fast.kernels import launch
from shazam_fast.kernels.step import fused, trunks
from step_cases import Case

CASES = [
    {},
    {"columns": True, "mixed": True, "votes": True, "balance": True, "rates": True, "B": 7, "C": 9},
    {"votes": True, "detached": True, "huber": "elementwise", "K": 1, "streamed": True},
    {"mixed": True, "missing": False, "C": 2, "wide": True, "K": 1},
    {"B": 1, "dims": (5,), "C": 2, "missing": False, "K": 1},
    {"dims": (4, 33, 6), "D": 32, "K": 1},
]
RESIDUAL = [
    {"columns": True, "mixed": True, "votes": True, "balance": True, "rates": True, "B": 7, "C": 9},
    {"detached": True, "huber": "elementwise", "dims": (4, 33, 6), "D": 32, "K": 1, "streamed": True},
    {"B": 1, "dims": (5,), "C": 2, "missing": False, "K": 1},
]
LAYERED = [
    {"K": 3},
    {"columns": True, "mixed": True, "votes": True, "balance": True, "rates": True, "B": 7, "C": 9},
    {"detached": True, "huber": "elementwise", "dims": (4, 33, 6, 5, 3)},
    {"B": 1, "dims": (5,), "C": 2, "missing": False, "K": 1},
]


@pytest.fixture
def check(unwritten_is_nan):
    """A step of a case, or two, in buffers that hold NaN before a kernel writes them."""

    def compare(case):
        sizes = [case.B, 3] if case.options.get("rates") or not case.options else [case.B]  # the second batch is short
        with unwritten_is_nan():
            results = case.fused_steps(sizes, resident=not case.options.get("streamed"))
        for found, wanted in zip(results, case.plain_steps(sizes), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)

    return compare


@pytest.mark.parametrize("options", CASES, ids=lambda options: " ".join(map(str, options)) or "plain")
def test_steps_are_those_of_the_definition(options, device, monkeypatch, check):
    monkeypatch.setattr(launch, "PART_COLUMNS", 32)  # a teacher of 33 columns has two parts
    monkeypatch.setattr(fused, "WIDE", 1 if "wide" in options else 1024)
    check(Case(device, **options))


@pytest.mark.parametrize("options", RESIDUAL, ids=lambda options: " ".join(map(str, options)) or "plain")
def test_residual_steps_are_those_of_the_definition(options, device, monkeypatch, check):
    monkeypatch.setattr(launch, "PART_COLUMNS", 32)
    check(Case(device, residual=True, **options))


@pytest.mark.parametrize("options", LAYERED, ids=lambda options: " ".join(map(str, options)) or "plain")
def test_steps_by_layers_are_those_of_the_definition(options, device, monkeypatch, check):
    """As with D = 512, of which a program has an eighth of the columns; here it has half."""
    monkeypatch.setattr(launch, "PART_COLUMNS", 32)
    monkeypatch.setattr(trunks, "LAYERED", 32)
    monkeypatch.setattr(trunks, "COLUMNS", 16)
    check(Case(device, D=32, **options))
