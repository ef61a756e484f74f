"""Matrices in two float16 parts, so that tensor cores multiply by them with no more error than float32 has.

A block of rows is (high + low) times a power of two: high is rounded to float16, low is what that leaves, rounded too.
Together they keep 22 bits, products of float16 numbers are exact in float32, and sums are float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 32  # columns of a teacher with one power of two
WIDEST = 128  # D of score maps whose rows of tokens fit a GPU's registers in two parts
LARGEST = 15  # blocks are scaled to below 2^15, half of float16's range
FAR = 1.5  # |mean| over spread of a teacher's columns, up to which products of features as stored lose no digits
LEAST_BITS = 21  # of the largest value of each row that both parts together must keep


class Halves(NamedTuple):
    """W = (high + low) * its block's unit."""

    high: Tensor  # float16, of W's shape
    low: Tensor  # float16, of W's shape
    units: Tensor  # powers of two, float32 [blocks]


class TokenHalves(NamedTuple):
    """The maps of eq. (1), features' scales multiplied into them, in two parts."""

    maps: Halves  # [sum of dims, D], in blocks of BLOCK columns of one teacher
    means: Tensor  # means of each block's columns times their maps, float32 [blocks, D]
    bias: Tensor  # float32 [N, D]
    dims: tuple[int, ...]  # columns of each teacher


def split(matrix: Tensor, sizes: Sequence[int]) -> Halves | None:
    """A matrix in two float16 parts; None where some row would keep fewer than LEAST_BITS bits.

    That is so where all of a row is 2^18 times smaller than another of its block, and where a value is not finite.

    Args:
        matrix: float32 [R, columns].
        sizes: number of rows of each block, R in all.
    """
    exact = matrix.double()
    rows = exact.abs().amax(dim=1)  # [R]
    blocks = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(matrix.device)  # of each row, [R]
    largest = rows.new_zeros(len(sizes)).scatter_reduce_(0, blocks, rows, "amax")
    exponents = torch.frexp(largest).exponent.clamp_min(-100) - LARGEST  # so that units are normal in float32
    units = torch.ldexp(torch.ones_like(largest), exponents)
    scaled = exact / units[blocks, None]
    high = scaled.half()
    low = (scaled - high).half()
    lost = (high.double() + low - scaled).abs().amax(dim=1) * units[blocks]
    if not bool((lost <= rows * 2.0**-LEAST_BITS).all()):
        return None
    return Halves(high, low, units.float())


def split_token_maps(
    weight: Tensor, bias: Tensor, mean: Tensor, spread: Tensor, dims: Sequence[int]
) -> TokenHalves | None:
    """Maps (F - mean) W + b in two parts; None where `split` has none, or features lie too FAR from 0.

    Features are multiplied as they are stored and their means' part of the token is subtracted, which costs digits
    where means are large for the spread.

    Args:
        weight: float32 [sum of dims, D].
        bias: float32 [N, D].
        mean, spread: of every column, float32 [sum of dims].
        dims: columns of each teacher.
    """
    sizes = [min(BLOCK, dim - start) for dim in dims for start in range(0, dim, BLOCK)]
    maps = split(weight, sizes)
    said = weight.double().norm(dim=1)  # by how much each column moves the token
    far, near = (torch.stack([part.norm() for part in (said * moment).split(list(dims))]) for moment in (mean, spread))
    if maps is None or not bool((far <= FAR * near).all()):
        return None
    units = maps.units.double().repeat_interleave(torch.tensor(sizes, device=weight.device))
    products = (mean * units)[:, None] * (maps.high.double() + maps.low)  # of what is kept of the maps
    means = torch.stack([part.sum(dim=0) for part in products.split(sizes)])
    return TokenHalves(maps, means.float(), bias, tuple(dims))


def split_score_maps(score_maps: Tensor) -> Halves | None:
    """All B_l side by side, float32 [D, K*D], as [K*D, D] in two parts, one block per layer.

    None as for `split`, and for D beyond WIDEST.
    """
    D, width = score_maps.shape
    if D > WIDEST:
        return None
    return split(score_maps.unflatten(1, (-1, D)).transpose(0, 1).flatten(0, 1), [D] * (width // D))
