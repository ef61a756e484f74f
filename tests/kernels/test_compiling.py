"""Kernels are compiled side by side before the first step: with a compiler and a driver that only say that they ran."""

from threading import Barrier, Thread

import pytest
import torch
import triton
from shazam_fast.kernels.step import compiling
from shazam_fast.kernels.step.compiling import compile_together
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


def first(x_ptr):
    pass


def second(x_ptr):
    pass


class Driver:
    """Of a GPU that is not here; whoever launches something asks it for more than it has."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 89, 32)


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    return JITFunction(first), JITFunction(second)


def compiler(monkeypatch, compile_one):
    """Compiled kernels are names; `compile_one` is called with each."""
    monkeypatch.setattr(triton.compiler, "compile", lambda src, **options: compile_one(src.fn.__name__) or src.fn)


def launch(kernels):
    for kernel in kernels:
        kernel[(1,)](torch.zeros(4))


def test_kernels_are_compiled_side_by_side_and_not_launched(kernels, monkeypatch):
    meeting, met = Barrier(2), []  # whoever is compiled alone waits in vain
    compiler(monkeypatch, lambda name: met.append(meeting.wait(timeout=10)))
    before = JITFunction.run
    compile_together(lambda: launch(kernels))
    assert JITFunction.run is before
    assert sorted(met) == [0, 1]
    assert not compiling._only_compiling.get()
    assert [len(kernel.device_caches[0][0]) for kernel in kernels] == [1, 1]


def test_a_kernel_that_fails_is_left_to_its_launch_and_others_are_compiled(kernels, monkeypatch):
    seen = []

    def compile_one(name):
        seen.append(name)
        if name == "first":
            raise RuntimeError("out of registers")

    compiler(monkeypatch, compile_one)
    for _ in range(2):  # the second time shows that nothing of the first is left
        compile_together(lambda: launch(kernels))
    assert set(seen) == {"first", "second"}
    assert seen.count("second") == 1
    with pytest.raises(RuntimeError, match="out of registers"):
        launch(kernels[:1])


def test_an_error_between_launches_is_the_callers(kernels, monkeypatch):
    compiler(monkeypatch, lambda name: None)
    before = JITFunction.run

    def broken():
        launch(kernels[:1])
        raise ValueError("no such buffer")

    with pytest.raises(ValueError, match="no such buffer"):
        compile_together(broken)
    assert JITFunction.run is before
    compile_together(lambda: launch(kernels[1:]))
    assert triton.runtime._async_compile.active_mode.get() is None


def test_other_threads_launch_as_ever(monkeypatch):
    launched = []
    monkeypatch.setattr(JITFunction, "run", lambda kernel, *, warmup: launched.append((kernel, warmup)))

    def work():
        JITFunction.run("mine", warmup=False)
        other = Thread(target=lambda: JITFunction.run("other's", warmup=False))
        other.start()
        other.join()

    compile_together(work)
    assert launched == [("mine", True), ("other's", False)]
    assert compiling.THREADS > 1
