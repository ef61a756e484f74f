"""The precisions that the kernels can take matrix products in."""

from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """How one product is taken."""

    operand: torch.dtype | None  # what both operands are rounded to; None: they stay as they are
    dot: str  # Triton's `input_precision` for float32 operands


PRECISIONS = {
    "ieee": Precision(None, "ieee"),
    "tf32": Precision(None, "tf32"),
    "bf16": Precision(torch.bfloat16, "tf32"),
    "fp16": Precision(torch.float16, "tf32"),
}


def require_precision(precision: str) -> None:
    """Raise ValueError unless `precision` is one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: one of {', '.join(PRECISIONS)} expected, found {precision!r}")
