"""What every Triton kernel needs of a GPU, compiled ahead of time, and the least time its work can take there.

    PYTHONPATH=tests python benchmarks/kernel_resources.py [FOLDER ...] > benchmarks/results/kernel-resources.md

One table per folder with a Triton (`pip install --no-deps --target FOLDER triton==3.6.0`); without folders one of the
Triton that is installed. The record has the oldest and the newest supported ones.

Registers per thread, bytes spilled per thread and shared memory per block, for K = 5 layers, 4,864 float16 columns of
features in all and 9 classes. Bytes count every input read once and every output written once, FLOPs count matrix
products, two per multiply-add, in halves those of all parts. The floor is the larger of bytes over the memory's rate
and FLOPs over the products' rate, from the data sheets; a batch of 64 fits the second-level cache, so what it really
takes from memory is less. No GPU is needed.
"""

import os
import subprocess
import sys

import triton
from kernel_variants import CLASSES, TEACHERS, Variant, variants

LAYERS = 5
COLUMNS = 4864  # of Virchow, UNI, Phikon-v2 and GigaPath
# Compute capability, bytes/s, and FLOP/s of products with float32 sums (dense), from NVIDIA's data sheets.
GPUS = {
    "RTX 4090": (89, 1.008e12, {"ieee": 82.6e12, "tf32": 82.6e12, "bf16": 165.2e12, "halves": 165.2e12}),
    "H100 SXM": (90, 3.35e12, {"ieee": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "halves": 989.4e12}),
}


def work(variant: Variant) -> tuple[int, int]:
    """FLOPs and bytes of one launch."""
    found = step_work(variant)
    return found[variant.kernel.fn.__name__] if variant.kernel.fn.__name__ in found else operation_work(variant)


def step_work(variant: Variant) -> dict[str, tuple[int, int]]:
    """FLOPs and bytes of the kernels that only a step has, where the variant is one of them."""
    B, K, D, N, C = variant.B, LAYERS, variant.constexprs.get("D", 0), TEACHERS, CLASSES
    row, square, moving = 4 * B * D, 4 * D * D, 6  # a parameter and its two moments are read and written
    votes = N * D * C
    found = {
        "start_step": (0, B * (4 * 8 + 2 * N)),
        "fold_maps": (K * 2 * D**3, K * square * 7),
        "head_and_losses": (4 * B * D * (D + C + N * C), (2 + 2 * N + 3) * row + square + 4 * votes),
        "update_stack": (K * (6 * B * N * D * D + 4 * D**3), K * (3 * N * row + (2 + 3 * moving) * square)),
        "update_head": (2 * B * D * (D + C), 4 * row + moving * square),
        "update_votes": (2 * B * votes, N * row + moving * 4 * votes),
        "fold_residual_maps": (K * 4 * D**3, K * 10 * square),
        "deepen": (2 * B * N * D * D, (variant.constexprs.get("PARTS", N) + 4 * N) * row + N * square),
        "deepen_back": (2 * B * N * D * D, 9 * N * row + N * square),
        "update_residual_stack": (K * (8 * B * N * D * D + 8 * D**3), K * (3 * N * row + (4 + 4 * moving) * square)),
        "update_deep": (2 * B * N * D * D, 6 * N * row + moving * N * square),
        "layer_forward": (4 * B * N * D * D + 4 * B * N * N * D, 6 * N * row + 2 * square),
        "last_layer": (4 * B * N * N * D, (3 * N + 1) * row),
        "layer_backward": (4 * B * N * D * D + 8 * B * N * N * D, 7 * N * row + 2 * square),
    }
    weights = 4 * COLUMNS * D
    if variant.constexprs.get("MIXED"):
        features = 2 * B * COLUMNS
        found["projection_forward"] = (2 * B * COLUMNS * D, features + weights + variant.constexprs["N"] * row)
        found["projection_backward"] = (2 * B * COLUMNS * D, features + moving * weights + N * row)
    return found


def operation_work(variant: Variant) -> tuple[int, int]:
    """FLOPs and bytes of one launch of a kernel that any training or scoring may take."""
    B, N, D = variant.B, variant.constexprs["N"], variant.constexprs["D"]
    K, operand = LAYERS, 2 if variant.precision == "bf16" else 4
    row, scores = B * D * {"fp32": 4, "bf16": 2}[variant.tokens], 4 * B * N * N
    tokens, between = N * row, 2 * B * N * N * D  # bytes of [B, N, D]; FLOPs of one product among a patch's tokens
    maps, by_map = K * 2 * D * D * operand, 2 * B * N * D * D  # bytes of all maps; FLOPs of tokens times one of them
    out = row if variant.constexprs.get("POOL") else tokens
    residual = "residual" in variant.name
    return {
        "attention_forward": (2 * between, 3 * tokens + out + scores),
        "attention_backward": (4 * between, 6 * tokens + out + 2 * scores),
        "distillation_forward": (4 * 2 * B * N * D, tokens + row),
        "distillation_backward": (4 * 2 * B * N * D, 2 * (tokens + row)),
        "stack_forward": (K * 2 * (by_map + between), (1 + K) * tokens + maps + row + K * scores),
        "stack_backward": (
            K * ((3 + residual) * by_map + (5 + residual) * between), (1 + 3 * K) * tokens + maps + row + K * scores
        ),
        "folded_forward": (K * (by_map + between), tokens + maps // 2 + row),
        "folded_in_halves": (K * 3 * (by_map + between), tokens + maps // 2 + row),
        "projection_in_halves": (2 * 2 * B * COLUMNS * D, 2 * B * COLUMNS + 4 * COLUMNS * D + tokens),
        "projection_forward": (2 * B * COLUMNS * D, 2 * B * COLUMNS + 4 * COLUMNS * D + tokens),
        "projection_backward": (2 * B * COLUMNS * D, 2 * B * COLUMNS + 4 * COLUMNS * D + tokens),
    }[variant.kernel.fn.__name__]  # fmt: skip


def print_table() -> None:
    """The table of the Triton that is imported."""
    print(f"\nTriton {triton.__version__}\n")
    needs = "registers | spilled | shared"
    print("| kernel | B | warps | MFLOP | MB |" + "".join(f" {gpu}: floor us | {needs} |" for gpu in GPUS))
    print("|---|" + "--:|" * (4 + 4 * len(GPUS)))
    for variant in variants():
        flops, nbytes = work(variant)
        cells = [variant.name, variant.B, variant.num_warps, f"{flops / 1e6:.1f}", f"{nbytes / 1e6:.2f}"]
        for capability, bytes_per_s, flops_per_s in GPUS.values():
            report = variant.compile(capability)
            floor = max(nbytes / bytes_per_s, flops / flops_per_s[variant.precision])
            cells += [
                f"{1e6 * floor:.2f}",
                report.registers,
                report.spill_bytes,
                f"{report.shared_bytes / 1024:.1f} KiB",
            ]
        print("|", " | ".join(map(str, cells)), "|", flush=True)


def main() -> None:
    folders = sys.argv[1:]
    if folders == ["--table"]:
        print_table()
        return
    print(
        "What every kernel needs of a GPU, and the least time its work can take there, compiled ahead of time:\n"
        "benchmarks/kernel_resources.py, which says what is counted."
    )
    for folder in folders or [None]:
        path = os.environ["PYTHONPATH"] if folder is None else f"{folder}:{os.environ['PYTHONPATH']}"
        environment = os.environ | {"PYTHONPATH": path}
        sys.stdout.flush()
        subprocess.run([sys.executable, __file__, "--table"], env=environment, check=True)


if __name__ == "__main__":
    main()
