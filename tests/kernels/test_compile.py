"""The kernels compiled for GPUs that are not here: shared memory suffices and spills stay small, whatever the Triton.

A few bytes of spill cost nothing that could be measured and change with the compiler's version, so they are bounded
and not forbidden; `benchmarks/kernel_resources.py` records the exact figures. To test another Triton than the installed
one, put it first: PYTHONPATH=folder pytest tests/kernels/test_compile.py.
"""

import re

import pytest
from kernel_variants import of_projection, of_stack, of_step, of_steps, of_tile, variants
from shazam_fast.kernels import projection, stack_kernels, token_attention
from shazam_fast.kernels.launch import shared_memory_limit

EASY = {v.name for v in (*of_steps(128, "tf32"), *of_step(512, "tf32"))}  # less of everything than in "ieee"
SPILL_LIMIT = 128  # bytes per thread
VARIANTS = {variant.name: variant for variant in variants() if variant.name not in EASY}
# Shared memory is plentiful on sm_90: those that spill most there, and one of each other kind.
ON_SM_90 = [
    "residual stack backward N=4 D=256 ieee", "residual stack backward N=4 D=256 tf32",
    "residual stack forward N=4 D=256 tf32", "folded stack N=4 D=128 ieee", "attention backward N=4 D=128",
    "projection in halves D=128", "folded stack in halves N=16 D=128",
    "projection forward D=512 B=1024 tf32",
]  # fmt: skip


def check(report, capability):
    assert 0 < report.registers <= 255
    assert report.spill_bytes <= SPILL_LIMIT
    assert report.shared_bytes <= shared_memory_limit(capability)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kernel_fits_an_sm_89(name):
    check(VARIANTS[name].compile(89), 89)


@pytest.mark.parametrize("name", ON_SM_90)
def test_the_largest_kernels_fit_an_sm_90(name):
    check(VARIANTS[name].compile(90), 90)


@pytest.mark.parametrize("kernel", [projection.projection_forward, projection.projection_backward], ids=["fwd", "bwd"])
@pytest.mark.parametrize("B", [64, 1024])
def test_aligned_features_are_read_sixteen_bytes_at_a_time(kernel, B):
    aligned, odd = (of_projection("", kernel, B, 128, "ieee", align).compile(89).ptx for align in (16, 1))
    two_bytes = re.compile(r"ld\.global\.b16|ld\.global\.u16")
    assert two_bytes.search(odd)
    assert not two_bytes.search(aligned)


def test_a_kernel_that_spills_is_seen():
    """32 teachers in a tile made for one: the report must say what the tests above would have to find."""
    variant = of_tile("", token_attention.attention_backward, 32, 512, POOL=False)
    blocks = {"BLOCK_N": 32, "BLOCK_B": 1, "BLOCK_D": 512}
    report = variant._replace(constexprs={**variant.constexprs, **blocks}, num_warps=4).compile(89)
    assert report.spill_bytes > SPILL_LIMIT


def test_a_kernel_with_too_much_shared_memory_is_seen():
    variant = of_stack("", stack_kernels.stack_forward, 256, "ieee", residual=False)
    report = variant._replace(constexprs={**variant.constexprs, "BLOCK_C": 64, "BLOCK_S": 16}).compile(89)
    assert report.shared_bytes > shared_memory_limit(89)
