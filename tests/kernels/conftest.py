from contextlib import contextmanager

import pytest
import torch


@pytest.fixture
def unwritten_is_nan(monkeypatch):
    """A context in which fresh tensors hold NaN, so that what a kernel leaves unwritten is seen."""
    new_empty = torch.Tensor.new_empty

    def poisoned(like, *args, **options):
        fresh = new_empty(like, *args, **options)
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

    @contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "new_empty", poisoned)
            yield

    return context


@pytest.fixture
def bfloat16(monkeypatch):
    """bfloat16 as GPUs have it: Triton's interpreter cuts off instead of rounding, and multiplies bit patterns."""
    from triton import language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    truncate, dot = builder.create_fp_trunc, builder.create_dot

    def create_fp_trunc(self, x, wanted):
        if wanted.scalar == tl.bfloat16:
            rounded = torch.from_numpy(x.data).bfloat16().float().numpy()
            x = interpreter.TensorHandle(rounded, x.dtype)
        return truncate(self, x, wanted)

    def create_dot(self, a, b, *others):
        a, b = (self.create_fp_ext(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *others)

    monkeypatch.setattr(builder, "create_fp_trunc", create_fp_trunc)
    monkeypatch.setattr(builder, "create_dot", create_dot)
