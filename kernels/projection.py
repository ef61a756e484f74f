"""Rows of a feature table, gathered, standardised and projected, one token per teacher, eq. (1): one kernel forward,
one for the gradient of the maps.

The table stays as it is stored, float16 as a rule, and is read once: a batch costs its own bytes and those of the maps,
2.5 MB of float32 for four teachers of 4,864 columns at D = 128. Backward gathers and standardises again rather than
keep 4 bytes a value from forward. Features get no gradient.
"""

# Kernels carry no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .adamw import update
from .launch import DTYPES, Parts, alignment, first_columns, mask_arguments, require_mask, require_rows
from .precision import PRECISIONS, require_precision
from .reference import TokenMaps

WIDE = 1024  # patches from which on a batch has programs enough
_TRITON = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def _batch_rows(rows_ptr, present_ptr, stride_present_b, stride_present_n, o_b, m_b, teacher):
    """The row of the table of each patch `o_b`, and which patches have this teacher. [BLOCK_B] each."""
    o_row = o_b.to(tl.int64)
    if rows_ptr is not None:
        o_row = tl.load(rows_ptr + o_b, mask=m_b, other=0).to(tl.int64)
    if present_ptr is not None:
        m_b &= tl.load(present_ptr + o_b * stride_present_b + teacher * stride_present_n, mask=m_b, other=0) != 0
    return o_row, m_b


@triton.jit
def _standardised(
    features_ptr, stride_features, mean_ptr, scale_ptr, columns_ptr, kept_part, o_row, m_row, o_c, m_c,
    dtype: tl.constexpr,
):  # fmt: skip
    """(features - mean) / scale of a tile, 0 outside of it and in columns left out. [BLOCK_B, BLOCK_C]."""
    m_x = m_row[:, None] & m_c[None, :]
    b_x = tl.load(features_ptr + o_row[:, None] * stride_features + o_c[None, :], mask=m_x, other=0.0).to(dtype)
    if mean_ptr is not None:
        b_mean = tl.load(mean_ptr + o_c, mask=m_c, other=0.0)
        b_scale = tl.load(scale_ptr + o_c, mask=m_c, other=1.0)
        if columns_ptr is not None:
            m_x &= (tl.load(columns_ptr + o_c, mask=m_c, other=0) != 0)[None, :]
            b_scale *= kept_part
        b_x = tl.where(m_x, (b_x - b_mean[None, :]) / b_scale[None, :], 0.0)
    return b_x


# T_i = (F_i - mean_i) / scale_i W_i + b_i
@triton.jit(do_not_specialize=["B"])
def projection_forward(
    features_ptr, stride_features, rows_ptr, present_ptr, stride_present_b, stride_present_n, mean_ptr, scale_ptr,
    columns_ptr, stride_columns, mask_ptr, kept_part, starts_ptr, teachers_ptr, weight_ptr, bias_ptr, tokens_ptr,
    B, N: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_B patches, one teacher and BLOCK_D columns of its token.

    `teachers_ptr`: with it, a program has one of N parts of the columns, of this teacher, and leaves out the bias.
    """
    dtype: tl.constexpr = tokens_ptr.dtype.element_ty
    part = tl.program_id(1)
    teacher = part
    if teachers_ptr is not None:
        teacher = tl.load(teachers_ptr + part)
    o_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    o_d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_b, m_d = o_b < B, o_d < D
    o_row, m_row = _batch_rows(rows_ptr, present_ptr, stride_present_b, stride_present_n, o_b, m_b, teacher)
    start = tl.multiple_of(tl.load(starts_ptr + part), ALIGN)
    stop = tl.multiple_of(tl.load(starts_ptr + part + 1), ALIGN)
    if columns_ptr is not None:
        columns_ptr += tl.load(mask_ptr) * stride_columns
    b_tokens = tl.zeros([BLOCK_B, BLOCK_D], dtype)
    for c in tl.range(start, stop, BLOCK_C, num_stages=4):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = o_c < stop
        b_x = _standardised(
            features_ptr, stride_features, mean_ptr, scale_ptr, columns_ptr, kept_part, o_row, m_row, o_c, m_c, dtype
        )
        b_w = tl.load(weight_ptr + o_c[:, None] * D + o_d[None, :], mask=m_c[:, None] & m_d[None, :], other=0.0)
        b_tokens = tl.dot(b_x.to(OPERAND), b_w.to(OPERAND), b_tokens, input_precision=PRECISION, out_dtype=dtype)
    if teachers_ptr is None:
        b_tokens += tl.load(bias_ptr + teacher * D + o_d, mask=m_d, other=0.0)[None, :]
    o_tokens = (o_b.to(tl.int64) * N + part)[:, None] * D + o_d[None, :]
    tl.store(tokens_ptr + o_tokens, b_tokens, mask=m_b[:, None] & m_d[None, :])


# dW_i = ((F_i - mean_i) / scale_i)^T dT_i, db_i = sum of dT_i
@triton.jit(do_not_specialize=["B"])
def projection_backward(
    features_ptr, stride_features, rows_ptr, present_ptr, stride_present_b, stride_present_n, mean_ptr, scale_ptr,
    columns_ptr, stride_columns, mask_ptr, kept_part, starts_ptr, d_tokens_ptr, weight_ptr, bias_ptr,
    factors_ptr, weight_mean_ptr, weight_square_ptr, bias_mean_ptr, bias_square_ptr,
    B, N: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr, MIXED: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_C columns of one teacher's features and BLOCK_D of its token, and goes over all patches.

    Gradients go to `weight_ptr` and `bias_ptr`; with `factors_ptr` these are the parameters, and AdamW moves them.
    MIXED: tokens were mixed with those of the patch at the same distance from the batch's other end.
    """
    dtype: tl.constexpr = d_tokens_ptr.dtype.element_ty
    teacher = tl.program_id(1)
    start = tl.multiple_of(tl.load(starts_ptr + teacher), ALIGN)
    stop = tl.multiple_of(tl.load(starts_ptr + teacher + 1), ALIGN)
    first = start + tl.program_id(0) * BLOCK_C
    o_c = first + tl.arange(0, BLOCK_C)
    o_d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_c, m_d = o_c < stop, o_d < D
    if columns_ptr is not None:
        columns_ptr += tl.load(mask_ptr) * stride_columns
    if first < stop:  # the grid is made for the widest teacher
        b_dw = tl.zeros([BLOCK_C, BLOCK_D], dtype)
        b_db = tl.zeros([BLOCK_B, BLOCK_D], dtype)
        for b in tl.range(0, B, BLOCK_B, num_stages=2):
            o_b = b + tl.arange(0, BLOCK_B)
            m_b = o_b < B
            o_row, m_row = _batch_rows(rows_ptr, present_ptr, stride_present_b, stride_present_n, o_b, m_b, teacher)
            b_x = _standardised(
                features_ptr,
                stride_features,
                mean_ptr,
                scale_ptr,
                columns_ptr,
                kept_part,
                o_row,
                m_row,
                o_c,
                m_c,
                dtype,
            )
            o_tokens = (o_b.to(tl.int64) * N + teacher)[:, None] * D + o_d[None, :]
            b_dt = tl.load(d_tokens_ptr + o_tokens, mask=m_b[:, None] & m_d[None, :], other=0.0)
            if MIXED:
                o_other = ((B - 1 - o_b).to(tl.int64) * N + teacher)[:, None] * D + o_d[None, :]
                b_other = tl.load(d_tokens_ptr + o_other, mask=m_b[:, None] & m_d[None, :], other=0.0)
                b_dt = tl.load(factors_ptr + 3) * b_dt + tl.load(factors_ptr + 4) * b_other
            b_db += b_dt
            b_x = tl.trans(b_x.to(OPERAND))
            b_dw = tl.dot(b_x, b_dt.to(OPERAND), b_dw, input_precision=PRECISION, out_dtype=dtype)
        o_weight, o_bias = o_c[:, None] * D + o_d[None, :], teacher * D + o_d
        m_weight, m_bias = m_c[:, None] & m_d[None, :], m_d & (tl.program_id(0) == 0)
        if factors_ptr is None:
            tl.store(weight_ptr + o_weight, b_dw, mask=m_weight)
            tl.store(bias_ptr + o_bias, tl.sum(b_db, axis=0), mask=m_bias)
        else:
            update(weight_ptr, weight_mean_ptr, weight_square_ptr, factors_ptr, o_weight, b_dw, m_weight)
            update(bias_ptr, bias_mean_ptr, bias_square_ptr, factors_ptr, o_bias, tl.sum(b_db, axis=0), m_bias)


def blocks(B: int, D: int, precision: str, dtype: torch.dtype) -> dict[str, Any]:
    """Constexprs and warps for B patches and width D: many small programs for a training batch, larger ones beyond."""
    wide = B >= WIDE and dtype != torch.float64
    operand, dot = PRECISIONS[precision]
    return {
        "BLOCK_B": 64 if wide else 16,
        "BLOCK_C": 32,
        "BLOCK_D": min(max(16, triton.next_power_of_2(D)), 64),
        "OPERAND": _TRITON[operand or dtype],
        "PRECISION": dot,
        "num_warps": 8 if wide else 4,
    }


class Kept(NamedTuple):
    """The feature columns that a step keeps."""

    masks: Tensor  # bool [masks, sum of dims]
    mask: Tensor  # which of them is the step's, int64 [1]
    part: float  # of the columns, about: scales are multiplied by it


class Inputs:
    """What both kernels read, in the order of their first arguments; arguments as for `project`.

    kept: the columns that are not left out; None: all.
    """

    def __init__(
        self,
        features: Tensor,
        rows: Tensor | None,
        maps: TokenMaps,
        present: Tensor | None,
        kept: Kept | None = None,
    ) -> None:
        mean, scale = maps.standard or (None, None)
        self.batch = len(features if rows is None else rows)
        self.dims = tuple(maps.dims)
        self.align = alignment(self.dims, features.stride(0))
        starts = first_columns(self.dims, features.device)
        columns = (None, 0, None, 1.0) if kept is None else (kept.masks.view(torch.uint8), sum(self.dims), *kept[1:])
        self.arguments = features, features.stride(0), rows, *mask_arguments(present), mean, scale, *columns, starts


def launch_forward(
    inputs: Inputs, weight: Tensor, bias: Tensor, tokens: Tensor, precision: str, parts: Parts | None = None
) -> None:
    """Fill tokens [B, N, D] by the maps, contiguous; with `parts` their sums over each part's columns, without bias."""
    B, N, D = tokens.shape
    arguments = (*inputs.arguments, None) if parts is None else (*inputs.arguments[:-1], parts.starts, parts.teachers)
    options = blocks(B, D, precision, weight.dtype)
    grid = (triton.cdiv(B, options["BLOCK_B"]), N, triton.cdiv(D, options["BLOCK_D"]))
    with torch.cuda.device_of(weight):
        projection_forward[grid](*arguments, weight, bias, tokens, B, N, D, inputs.align, **options)


def launch_backward(
    inputs: Inputs, d_tokens: Tensor, outputs: Sequence[Tensor | None], precision: str, mixed: bool = False
) -> None:
    """Take the gradients of d_tokens [B, N, D], contiguous; `outputs` from `weight_ptr` on, see the kernel."""
    B, N, D = d_tokens.shape
    options = blocks(B, D, precision, d_tokens.dtype)
    grid = (triton.cdiv(max(inputs.dims), options["BLOCK_C"]), N, triton.cdiv(D, options["BLOCK_D"]))
    with torch.cuda.device_of(d_tokens):
        projection_backward[grid](*inputs.arguments, d_tokens, *outputs, B, N, D, inputs.align, mixed, **options)


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, inputs: Inputs, precision: str) -> Tensor:
        tokens = weight.new_empty(inputs.batch, *bias.shape)
        launch_forward(inputs, weight.contiguous(), bias.contiguous(), tokens, precision)
        ctx.inputs, ctx.precision = inputs, precision
        return tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_tokens: Tensor) -> tuple[Tensor | None, ...]:
        inputs, (_, N, D) = ctx.inputs, d_tokens.shape
        wants_weight, wants_bias, *_ = ctx.needs_input_grad
        if not wants_weight:
            return None, d_tokens.sum(0) if wants_bias else None, None, None
        d_weight, d_bias = d_tokens.new_empty(sum(inputs.dims), D), d_tokens.new_empty(N, D)
        launch_backward(inputs, d_tokens.contiguous(), (d_weight, d_bias, *[None] * 5), ctx.precision)
        return d_weight, d_bias if wants_bias else None, None, None


def _check_maps(maps: TokenMaps) -> None:
    weight, bias, dims, standard = maps
    if weight.dtype not in (torch.float32, torch.float64) or bias.ndim != 2:
        raise ValueError(f"weight: float32 or float64 and bias [N, D] expected, found {weight.dtype}, {bias.shape}")
    N, D = bias.shape
    if len(dims) != N:
        raise ValueError(f"dims: the widths of {N} teachers expected, found {list(dims)}")
    require_rows("weight", weight, (sum(dims), D), weight)
    require_rows("bias", bias, (N, D), weight)
    for name, vector in zip(("mean", "scale"), standard or (), strict=False):
        require_rows(name, vector, (sum(dims),), weight)


def _check_table(features: Tensor, rows: Tensor | None, width: int) -> None:
    neighbours = features.shape[-1] <= 1 or features.stride(-1) == 1
    if features.ndim != 2 or features.shape[1] != width or features.dtype not in DTYPES or not neighbours:
        found = f"{features.dtype} {list(features.shape)}, strides {features.stride()}"
        raise ValueError(f"features: float [R, {width}] with neighbouring columns expected, found {found}")
    if features.requires_grad:
        raise ValueError("features: no gradient expected")
    if rows is not None and (
        rows.ndim != 1 or rows.dtype not in (torch.int32, torch.int64) or not rows.is_contiguous()
    ):
        raise ValueError(f"rows: contiguous int32 or int64 [B] expected, found {rows.dtype} {list(rows.shape)}")


def project(
    features: Tensor, rows: Tensor | None, maps: TokenMaps, present: Tensor | None = None, precision: str = "ieee"
) -> Tensor:
    """Chosen rows of a feature table, standardised, every teacher's columns through its own map: tokens [B, N, D].

    Args:
        features: [R, sum of dims], float16, bfloat16, float32 or float64, columns next to each other; no gradient.
        rows: int32 or int64 [B], rows of the table in any order; None: all of them, in order.
        maps: of one dtype, float32 or float64.
        present: bool [B, N]; an absent teacher's features may hold anything, and its token is its bias.
        precision: of the products: "ieee", "tf32", or operands rounded to "bf16" or "fp16".

    Raises:
        ValueError: anything else than that, with what was expected and what was found. Rows are not looked at.
    """
    _check_maps(maps)
    _check_table(features, rows, sum(maps.dims))
    require_precision(precision)
    require_mask(present, len(features if rows is None else rows), len(maps.bias), maps.weight)
    tokens: Tensor = _Projection.apply(maps.weight, maps.bias, Inputs(features, rows, maps, present), precision)
    return tokens
