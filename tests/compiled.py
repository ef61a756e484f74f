"""Compile a Triton kernel ahead of time for a GPU that is not here, and read what it needs of that GPU.

Compiling and interpreting exclude each other within a process (TRITON_INTERPRET is read when kernels are
imported), so the compiler runs in a worker process of its own, kept for all calls.
"""

import atexit
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from typing import Any, NamedTuple

import pytest
import torch


class Report(NamedTuple):
    registers: int  # per thread
    spill_bytes: int  # per thread, in local memory
    shared_bytes: int  # per block
    ptx: str


def compile_report(
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    capability: int,
    num_warps: int,
    num_stages: int = 3,
) -> Report:
    """What `kernel` needs when compiled for compute capability `capability` (89: RTX 4090, 90: H100).

    Args:
        kernel: a function under `triton.jit`, at the top level of its module; interpreted or not.
        signature: type of each argument that is no constexpr: "*fp32", "*bf16", "*u8", "i32", "fp32". A suffix ":16"
            says that the value is divisible by 16, as the launcher finds for most pointers and strides.
        constexprs: value of each constexpr; None for a pointer that is not given.
    """
    job = (kernel.fn.__module__, kernel.fn.__name__, signature, constexprs, capability, num_warps, num_stages)
    return _compiler().submit(_compile, *job).result()


def skip_float64_products(device: Any, dtype: torch.dtype = torch.float64) -> None:
    """Skip a test whose products of float64 Triton may not compile for a GPU; the interpreter takes them."""
    if dtype == torch.float64 and torch.device(device).type == "cuda":
        pytest.skip("Triton does not compile products of float64 for every GPU")


@cache
def _compiler() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=_never_interpret)
    atexit.register(pool.shutdown)
    return pool


def _never_interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "0"


def _compile(
    module: str,
    name: str,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    capability: int,
    num_warps: int,
    num_stages: int,
) -> Report:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(module), name)
    unknown = set(signature) ^ (set(kernel.arg_names) - set(constexprs))
    assert not unknown, f"{name}: neither more nor fewer arguments than the kernel's, yet {sorted(unknown)}"
    types = {arg: signature[arg].removesuffix(":16") if arg in signature else "constexpr" for arg in kernel.arg_names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(types) if signature.get(arg, "")[-3:] == ":16"}
    source = ASTSource(fn=kernel, signature=types, constexprs=constexprs, attrs=divisible)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack, static_shared, local = _resources(binary.asm["cubin"])
    return Report(registers, stack + local, static_shared + binary.metadata.shared, binary.asm["ptx"])


def _resources(cubin: bytes) -> tuple[int, ...]:
    """Registers, stack, static shared memory and local memory, as cuobjdump prints them."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", printed)
    assert found, f"no resource usage in what cuobjdump printed: {printed}"
    return tuple(int(value) for value in found.groups())
