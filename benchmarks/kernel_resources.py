"""What every Triton kernel needs of a GPU, found by compiling ahead of time.

    PYTHONPATH=tests python benchmarks/kernel_resources.py

Registers per thread, bytes spilled per thread, and shared memory per block at the shapes of the presets: 4 teachers,
D = 128, 256 and 512, float32 maps, batches of 64 and (projection) of 1,024 and more. No GPU is needed.
"""

import torch
import triton
from compiled import compile_report
from shazam_fast.kernels import distillation, folded_scoring, projection, stack_kernels, student_stack, token_attention
from shazam_fast.kernels.launch import token_tile

TEACHERS = 4
DTYPES = {"present_ptr": "*u8", "features_ptr": "*fp16", "rows_ptr": "*i64", "starts_ptr": "*i32"}
FLOATS = {"lam": "fp32", "delta": "fp32", "delta_squared": "fp32"}
RESIDUAL = ("offsets_ptr", "gain_ptr", "shift_ptr", "d_norm_ptr")


def per_layer(D, **constexprs):
    """Constexprs and warps of the kernels that take a tile of tokens."""
    tile = token_tile(TEACHERS, D, itemsize=4)
    return {"N": TEACHERS, "D": D, "BLOCK_N": tile.N, "BLOCK_B": tile.B, "BLOCK_D": tile.D, **constexprs}, tile.warps


def whole_stack(D, precision, residual=None):
    """Constexprs and warps of the kernels that have a whole stack."""
    constexprs = student_stack.blocks(TEACHERS, D, precision, itemsize=4)
    warps = constexprs.pop("num_warps")
    absent = () if residual is None else ("weights_ptr",) if residual else RESIDUAL
    return {**constexprs, **dict.fromkeys(absent)}, warps


def projected(B, D, precision):
    constexprs = projection.blocks(B, D, precision, torch.float32)
    warps = constexprs.pop("num_warps")
    return {**constexprs, "N": TEACHERS, "D": D}, warps


def variants():
    """Name, kernel, constexprs with warps."""
    for D in (128, 512):
        for pool in (False, True):
            name = "pooled attention" if pool else "attention"
            yield f"{name} forward D={D}", token_attention.attention_forward, per_layer(D, POOL=pool)
            yield f"{name} backward D={D}", token_attention.attention_backward, per_layer(D, POOL=pool)
        yield f"losses forward D={D}", distillation.distillation_forward, per_layer(D, NORM=True)
        yield f"losses backward D={D}", distillation.distillation_backward, per_layer(D, NORM=True)
    for D in (128, 256):
        for precision in ("ieee", "tf32"):
            for residual in (False, True):
                name = f"{'residual' if residual else 'bare'} stack"
                options = whole_stack(D, precision, residual)
                yield f"{name} forward D={D} {precision}", stack_kernels.stack_forward, options
                yield f"{name} backward D={D} {precision}", stack_kernels.stack_backward, options
            yield f"folded stack D={D} {precision}", folded_scoring.folded_forward, whole_stack(D, precision)
    for B in (64, 1024):
        for precision in ("ieee", "tf32"):
            options = projected(B, 128, precision)
            yield f"projection forward D=128 B={B} {precision}", projection.projection_forward, options
            yield f"projection backward D=128 B={B} {precision}", projection.projection_backward, options


def report(kernel, constexprs, warps, capability):
    signature = {
        name: DTYPES.get(name, "*fp32") + ":16" if name.endswith("_ptr") else FLOATS.get(name, "i32")
        for name in kernel.arg_names
        if name not in constexprs
    }
    constexprs = {name: value for name, value in constexprs.items() if name in kernel.arg_names}
    return compile_report(kernel, signature, constexprs, capability, warps)


def main() -> None:
    print(f"Triton {triton.__version__}\n")
    print("| kernel | warps | sm_89: registers | spilled | shared | sm_90: registers | spilled | shared |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, kernel, (constexprs, warps) in variants():
        found = [report(kernel, constexprs, warps, capability) for capability in (89, 90)]
        cells = " | ".join(f"{r.registers} | {r.spill_bytes} | {r.shared_bytes / 1024:.1f} KiB" for r in found)
        print(f"| {name} | {warps} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
