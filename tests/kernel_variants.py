"""The Triton kernels at the shapes of the presets and at the extremes, and how the JIT would specialise each.

Tests compile them and check limits; `benchmarks/kernel_resources.py` records what each needs.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from compiled import Report, compile_report
from shazam_fast.kernels import distillation, projection, stack_kernels, token_attention
from shazam_fast.kernels.halves import projection as projection_halves
from shazam_fast.kernels.halves import stack as stack_halves
from shazam_fast.kernels.launch import ROWS, row_blocks, token_tile
from shazam_fast.kernels.step import deep, head, layers, residual, start, trunks, weights

TEACHERS = 4
CLASSES = 9
PARTS = 19  # of 4,864 columns
POINTERS = {
    "present_ptr": "*u8", "batch_present_ptr": "*u8", "features_ptr": "*fp16", "starts_ptr": "*i32",
    "teachers_ptr": "*i32", "parts_ptr": "*i32", "columns_ptr": "*u8", "settings_ptr": "*fp64",
    "blocks_ptr": "*i32", "high_ptr": "*fp16", "low_ptr": "*fp16",
}  # fmt: skip
POINTERS |= {
    f"{name}_ptr": "*i64"
    for name in ("rows", "order", "cursor", "labels", "batch_labels", "index", "steps", "positions", "mask")
}
ALWAYS_FLOAT32 = ("attention_ptr", "d_attention_ptr", "losses_ptr", "kept_ptr", "d_cosine_ptr", "d_huber_ptr")
FLOATS = dict.fromkeys(("lam", "delta", "delta_squared", "say", "kept_part"), "fp32")
ANY_STRIDE = ("stride_present_b", "stride_present_n", "stride_d_cosine", "stride_d_huber")  # not always 16 k
OF_STEP = tuple(
    f"{name}_ptr"
    for name in ("columns", "mask", "teachers", "factors", "weight_mean", "weight_square", "bias_mean", "bias_square")
)
OF_RESIDUAL = ("offsets_ptr", "gain_ptr", "shift_ptr", "d_norm_ptr")


class Variant(NamedTuple):
    """A kernel with everything that the compiler is told."""

    name: str
    kernel: Any
    constexprs: dict[str, Any]
    num_warps: int
    B: int = 64  # patches of a batch at which it is used
    precision: str = "ieee"
    tokens: str = "fp32"  # dtype of token-like tensors

    def compile(self, capability: int) -> Report:
        """What it needs of a GPU of compute capability `capability`."""
        constexprs = {name: value for name, value in self.constexprs.items() if name in self.kernel.arg_names}
        signature = {name: self._type(name) for name in self.kernel.arg_names if name not in constexprs}
        return compile_report(self.kernel, signature, constexprs, capability, self.num_warps)

    def _type(self, name: str) -> str:
        if name.startswith("stride_"):
            return "i32" if name in ANY_STRIDE else "i32:16"
        if not name.endswith("_ptr"):
            return FLOATS.get(name, "i32")
        if name == "maps_ptr" and self.precision in ("bf16", "fp16"):
            return f"*{self.precision}:16"
        return POINTERS.get(name, "*fp32" if name in ALWAYS_FLOAT32 else f"*{self.tokens}") + ":16"


def of_tile(name, kernel, N, D, tokens="fp32", **constexprs) -> Variant:
    """A kernel that takes a tile of tokens."""
    tile = token_tile(N, D, itemsize={"fp32": 4, "bf16": 2}[tokens])
    constexprs |= {"N": N, "D": D, "BLOCK_N": tile.N, "BLOCK_B": tile.B, "BLOCK_D": tile.D}
    shape = f"N={N} D={D}" + (f" {tokens}" if tokens != "fp32" else "")
    return Variant(f"{name} {shape}", kernel, constexprs, tile.warps, tokens=tokens)


def of_stack(name, kernel, D, precision, residual=None, N=TEACHERS, B=64, rows=ROWS) -> Variant:
    """A kernel that takes a whole stack in programs of so many rows."""
    constexprs = row_blocks(N, D, precision, itemsize=4, rows=rows)
    num_warps = constexprs.pop("num_warps")
    constexprs |= {"PARTS": PARTS, "MOST": 6}
    absent = {
        None: (),
        True: ("shares_ptr", "factors_ptr", "parts_ptr", "bias_ptr", "d_targets_ptr"),
        False: OF_RESIDUAL,
    }[residual]
    short = "" if rows == ROWS else f" rows={rows}"
    return Variant(
        f"{name} N={N} D={D} {precision}{short}", kernel, {**constexprs, **dict.fromkeys(absent)}, num_warps, B,
        precision,
    )  # fmt: skip


def of_projection(name, kernel, B, D, precision, align=16, updating=False) -> Variant:
    """A kernel that takes rows of the feature table; `updating`: its backward form moves the parameters."""
    constexprs = projection.blocks(B, D, precision, torch.float32)
    num_warps = constexprs.pop("num_warps")
    odd = "" if align == 16 else f" align={align}"
    return Variant(
        f"{name} D={D} B={B} {precision}{odd}", kernel,
        {**constexprs, "N": TEACHERS, "D": D, "ALIGN": align, "MIXED": updating,
         **({} if updating else dict.fromkeys(OF_STEP))},
        num_warps, B, precision,
    )  # fmt: skip


def of_steps(D, precision) -> Iterator[Variant]:
    """The kernels that only steps have."""
    yield from of_step(D, precision)
    yield from (of_residual_step if D < trunks.LAYERED else of_layers)(D, precision)


def of_halves() -> Iterator[Variant]:
    """The kernels of scoring with maps in two float16 parts."""
    for D in (64, 128):
        constexprs = projection_halves.blocks(D)
        num_warps = constexprs.pop("num_warps")
        constexprs |= {"N": TEACHERS, "D": D, "ALIGN": 16}
        kernel = projection_halves.projection_in_halves
        yield Variant(f"projection in halves D={D}", kernel, constexprs, num_warps, 16384, "halves")
    for N, D in ((4, 64), (4, 128), (16, 128)):
        constexprs = stack_halves.blocks(N, D)
        num_warps = constexprs.pop("num_warps")
        kernel = stack_halves.folded_in_halves
        yield Variant(f"folded stack in halves N={N} D={D}", kernel, constexprs, num_warps, 16384, "halves")


def of_step(D, precision) -> Iterator[Variant]:
    """Those of a step of the bare student."""
    blocks, more = _step_blocks(D, precision)
    C = {"C": CLASSES, "BLOCK_K": 16}
    loss = {"N": TEACHERS, "TERMS": 14, "NORM": True, "LEARNED": True, "BLOCK_R": trunks.PATCHES}
    rows = {"BLOCK_I": 16, "BLOCK_R": 16}
    start_blocks = {"N": TEACHERS, "BLOCK_N": TEACHERS, "BLOCK_B": 128, "num_warps": 1}
    for name, kernel, constexprs in (
        ("start", start.start_step, start_blocks),
        ("maps", start.fold_maps, {**blocks, "BLOCK_R": 16}),
        ("head and losses", head.head_and_losses, {**blocks, **C, **loss}),
        ("stack weights", weights.update_stack, {**blocks, **rows}),
        ("votes", weights.update_votes, {**more, **C, **rows, "N": TEACHERS}),
        ("head weights", weights.update_head, {**more, **C, **rows, "TERMS": 14, "BLOCK_L": 16}),
    ):
        yield _of_step(name, kernel, D, precision, constexprs)
    parts = of_projection("projection of parts", projection.projection_forward, 64, D, precision, updating=True)
    yield parts._replace(constexprs={**parts.constexprs, "N": PARTS})
    yield of_projection("projection weights", projection.projection_backward, 64, D, precision, updating=True)


def of_residual_step(D, precision) -> Iterator[Variant]:
    """Those that only a step of the residual student has."""
    blocks, more = _step_blocks(D, precision)
    rows = {"BLOCK_I": 16, "BLOCK_R": 16}
    per_patch = {**blocks, "N": TEACHERS, "BLOCK_R": trunks.PATCHES, "PARTS": PARTS, "MOST": 6}
    for name, kernel, constexprs in (
        ("residual maps", residual.fold_residual_maps, {**blocks, "BLOCK_R": 16}),
        ("deepen", deep.deepen, per_patch),
        ("deepen back", deep.deepen_back, per_patch),
        ("residual stack weights", residual.update_residual_stack, {**blocks, **rows}),
        ("deep weights", deep.update_deep, {**more, **rows, "N": TEACHERS}),
    ):
        yield _of_step(name, kernel, D, precision, constexprs)


def of_layers(D, precision) -> Iterator[Variant]:
    """Those that only a step by layers has."""
    blocks = trunks.layer_blocks(TEACHERS, D, precision, itemsize=4) | {"PARTS": PARTS, "MOST": 6}
    for name, kernel, absent in (
        ("first layer", layers.layer_forward, ()),
        ("layer forward", layers.layer_forward, ("tokens_ptr", "parts_ptr", "bias_ptr", "factors_ptr")),
        ("last layer", layers.last_layer, ()),
        ("last layer backward", layers.layer_backward, ("d_above_ptr",)),
        ("layer backward", layers.layer_backward, ("d_fused_ptr",)),
    ):
        yield _of_step(name, kernel, D, precision, {**blocks, **dict.fromkeys(absent)})


def _of_step(name, kernel, D, precision, constexprs) -> Variant:
    others = {key: value for key, value in constexprs.items() if key != "num_warps"}
    return Variant(f"{name} D={D} {precision}", kernel, others, constexprs["num_warps"], precision=precision)


def _step_blocks(D, precision) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of kernels that multiply by maps, and of those that do not."""
    blocks = trunks.map_blocks(D, precision, itemsize=4)
    return blocks, {"D": D, "PRECISION": blocks["PRECISION"], "num_warps": trunks.tile_warps(D)}


def variants() -> Iterator[Variant]:
    """All that are recorded and tested."""
    attention = token_attention.attention_forward, token_attention.attention_backward
    losses = distillation.distillation_forward, distillation.distillation_backward
    stack = stack_kernels.stack_forward, stack_kernels.stack_backward
    project = projection.projection_forward, projection.projection_backward
    for direction, kernel in zip(("forward", "backward"), attention, strict=True):
        for D in (128, 1024):
            yield of_tile(f"attention {direction}", kernel, TEACHERS, D, POOL=False)
        yield of_tile(f"attention {direction}", kernel, TEACHERS, 128, "bf16", POOL=False)
        yield of_tile(f"pooled attention {direction}", kernel, TEACHERS, 512, POOL=True)
        unmasked = of_tile(f"attention {direction} without a mask", kernel, TEACHERS, 512, POOL=False)
        yield unmasked._replace(constexprs={**unmasked.constexprs, "present_ptr": None})
    for N, D in ((8, 128), (16, 1024), (32, 128)):
        yield of_tile("attention backward", attention[1], N, D, POOL=False)
    for direction, kernel in zip(("forward", "backward"), losses, strict=True):
        for D in (128, 1024):
            yield of_tile(f"losses {direction}", kernel, TEACHERS, D, NORM=True)
        yield of_tile(f"elementwise losses {direction}", kernel, TEACHERS, 128, NORM=False)
    for D in (128, 256):
        for precision in ("ieee", "tf32", "bf16")[: 3 if D == 128 else 2]:
            for direction, kernel in zip(("forward", "backward"), stack, strict=True):
                for block in ("bare", "residual"):
                    for rows, B in ((4, 64), (16, 512)) if precision == "ieee" else ((16, 64),):
                        yield of_stack(
                            f"{block} stack {direction}", kernel, D, precision, block == "residual", B=B, rows=rows
                        )
            yield of_stack("folded stack", stack_kernels.folded_forward, D, precision, B=16384)
    for direction, kernel in zip(("forward", "backward"), project, strict=True):
        for B, D, precision in (
            (64, 128, "ieee"), (64, 128, "tf32"), (64, 512, "ieee"), (1024, 128, "ieee"), (1024, 512, "tf32"),
            (1024, 128, "bf16"),
        ):  # fmt: skip
            yield of_projection(f"projection {direction}", kernel, B, D, precision)
        yield of_projection(f"projection {direction}", kernel, 64, 128, "ieee", align=1)
    yield from of_halves()
    yield from (v for D, precision in ((128, "ieee"), (128, "tf32"), (256, "ieee")) for v in of_steps(D, precision))
    yield from (v for precision in ("ieee", "tf32") for v in of_steps(512, precision))
