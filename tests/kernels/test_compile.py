"""The kernels compiled for GPUs that are not here: nothing spills, and shared memory suffices."""

import pytest
from compiled import FEW_BYTES, compile_report
from shazam_fast.kernels import distillation, token_attention
from shazam_fast.kernels.launch import shared_memory_limit, token_tile

POINTERS_TO_BYTES = ("present_ptr",)
POINTERS_TO_FLOAT32 = ("p_ptr", "dp_ptr", "losses_ptr", "kept_ptr", "dcosine_ptr", "dhuber_ptr")
SCALARS = {"B": "i32", "lam": "fp32", "delta": "fp32", "delta_squared": "fp32"}
LOOSE_STRIDES = ("stride_mb", "stride_mn", "stride_dc", "stride_dh")  # not divisible by 16 in practice

KERNELS = {
    "attention forward": (token_attention.attention_forward, {"POOL": False}),
    "attention backward": (token_attention.attention_backward, {"POOL": False}),
    "pooled attention forward": (token_attention.attention_forward, {"POOL": True}),
    "pooled attention backward": (token_attention.attention_backward, {"POOL": True}),
    "distillation forward": (distillation.distillation_forward, {"NORM": True}),
    "distillation backward": (distillation.distillation_backward, {"NORM": True}),
    "elementwise distillation forward": (distillation.distillation_forward, {"NORM": False}),
    "elementwise distillation backward": (distillation.distillation_backward, {"NORM": False}),
}


def report_of(name, N, D, dtype, capability, every_teacher=False):
    kernel, constexprs = KERNELS[name]
    tile = token_tile(N, D, {"fp32": 4, "bf16": 2}[dtype])
    constexprs = {**constexprs, "N": N, "D": D, "BLOCK_N": tile.N, "BLOCK_B": tile.B, "BLOCK_D": tile.D}
    if every_teacher:
        constexprs["present_ptr"] = None
    signature = {}
    for argument in kernel.arg_names:
        if argument in constexprs:
            continue
        if argument in SCALARS:
            signature[argument] = SCALARS[argument]
        elif argument.startswith("stride_"):
            signature[argument] = "i32" if argument in LOOSE_STRIDES else "i32:16"
        elif argument in POINTERS_TO_BYTES:
            signature[argument] = "*u8:16"
        else:
            signature[argument] = "*fp32:16" if argument in POINTERS_TO_FLOAT32 else f"*{dtype}:16"
    return compile_report(kernel, signature, constexprs, capability, tile.warps)


def check(report, capability):
    assert report.spill_bytes == 0
    assert 0 < report.registers <= 255
    assert report.shared_bytes <= shared_memory_limit(capability)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("capability", "D"), [(89, 128), (89, 256), (89, 512), (89, 1024), (90, 128)])
@pytest.mark.parametrize("name", [name for name in KERNELS if "elementwise" not in name])
def test_four_teachers(name, capability, D, dtype):
    check(report_of(name, 4, D, dtype, capability), capability)


@pytest.mark.parametrize("name", [name for name in KERNELS if "elementwise" in name])
def test_the_elementwise_loss(name):
    check(report_of(name, 4, 128, "fp32", 89), 89)


@pytest.mark.parametrize("name", ["attention forward", "attention backward"])
def test_without_a_mask(name):
    check(report_of(name, 4, 128, "fp32", 89, every_teacher=True), 89)


@pytest.mark.parametrize(("N", "D"), [(8, 128), (16, 1024), (32, 128)])
def test_many_teachers_do_not_spill_either(N, D):
    report = report_of("attention backward", N, D, "fp32", 89)
    assert report.spill_bytes <= FEW_BYTES
    assert report.shared_bytes <= shared_memory_limit(89)


def test_a_kernel_that_spills_is_seen():
    """32 teachers in a tile made for one: the report must say what the tests above would have to catch."""
    kernel, constexprs = KERNELS["attention backward"]
    signature = {a: "i32" for a in kernel.arg_names if a == "B" or a.startswith("stride_")}
    signature |= {a: "*fp32:16" for a in kernel.arg_names if a.endswith("_ptr") and a != "present_ptr"}
    constexprs = {**constexprs, "N": 32, "D": 512, "BLOCK_N": 32, "BLOCK_B": 1, "BLOCK_D": 512, "present_ptr": None}
    assert compile_report(kernel, signature, constexprs, 89, num_warps=4).spill_bytes > 0
