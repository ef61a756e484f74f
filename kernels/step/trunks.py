"""From projected features to the fused feature and back, in the three forms that a step has: what each launches.

A trunk has the buffers of batches of one size. Its `saved` begins with the tokens, [B * N, D].
"""

from typing import Any

import triton
from torch import Tensor

from ..launch import mask_arguments, row_blocks, row_launch
from ..precision import PRECISIONS
from ..stack_kernels import stack_backward, stack_forward
from .deep import deepen, deepen_back, update_deep
from .layers import last_layer, layer_backward, layer_forward
from .parts import Parameters, Projected, Trained
from .residual import fold_residual_maps, update_residual_stack
from .start import fold_maps
from .weights import update_stack

LAYERED = 512  # width from which on a layer is a kernel
COLUMNS = 64  # of a program of such a kernel
PATCHES = 4  # of a program of one patch per row
TILE = 16  # rows of a weight that a program updates


def make_trunk(B: int, parameters: Parameters, precision: str) -> "BareTrunk":
    """The trunk of these parameters for batches of B patches."""
    if parameters.residual is not None:
        return ResidualTrunk(B, parameters, precision)
    form = LayeredTrunk if parameters.qkv.value.shape[1] >= LAYERED else BareTrunk
    return form(B, parameters, precision)


class BareTrunk:
    """A bare stack, one kernel in each direction.

    Args:
        B: patches of a batch.
        parameters: what is trained.
        precision: of the products.
    """

    def __init__(self, B: int, parameters: Parameters, precision: str) -> None:
        self._parameters, self._precision = parameters, precision
        like = parameters.qkv.value
        (N, D), K = parameters.projection_bias.value.shape, len(like)
        self._map_blocks = map_blocks(D, precision, like.itemsize)
        self._maps = like.new_empty(K, D, 2 * D, dtype=PRECISIONS[precision].operand or like.dtype)
        self._old = like.new_empty(K, D, (2 if parameters.residual is None else 4) * D)
        self.fused, self.d_tokens = like.new_empty(B, D), like.new_empty(B, N, D)
        self.saved, self._attention = like.new_empty(K, B * N, D), like.new_empty(K, B, N, N)
        self._d_products = like.new_empty(K, B * N, 2 * D)

    def fold(self) -> None:
        """The maps as the stack reads them; apart from all else, so it may run beside the projection."""
        qkv = self._parameters.qkv.value
        fold_maps[self._map_tiles()](qkv, self._maps, self._old, BLOCK_R=TILE, **self._map_blocks)

    def forward(self, projected: Projected, factors: Tensor | None, present: Tensor | None) -> None:
        """Fill `fused`; with `factors` tokens are mixed."""
        self._run_stack(projected, factors, present, None, None, None)

    def backward(self, d_fused: Tensor, d_targets: Tensor | None, present: Tensor | None) -> None:
        """Fill `d_tokens`, the gradients of the projection, and what `update` reads."""
        self._run_stack_back(d_fused, d_targets, present, self.d_tokens, None, None, None)

    def update(self, factors: Tensor) -> None:
        """Move the stack's parameters."""
        qkv = self._parameters.qkv
        tiles, layers = self._map_tiles()
        update_stack[(tiles, 3, layers)](
            self.saved, self._d_products, self._old, *moved(qkv), factors, self.saved.shape[1],
            BLOCK_I=TILE, BLOCK_R=TILE, **self._map_blocks,
        )  # fmt: skip

    def _map_tiles(self) -> tuple[int, int]:
        """Programs for all rows of the maps, and for all layers."""
        K, D, _ = self._maps.shape
        return D // TILE, K

    def _run_stack(
        self, projected: Projected, factors: Tensor | None, present: Tensor | None, *residual: Tensor | None
    ) -> None:
        tokens, firsts, most, bias = projected
        programs, blocks = row_launch(self.d_tokens, self._precision)
        stack_forward[(programs,)](
            tokens, *mask_arguments(present), self._maps, *residual, factors, firsts, bias, self.fused, None,
            self.saved, self._attention, len(tokens), len(self._maps), tokens.shape[1], most, **blocks,
        )  # fmt: skip

    def _run_stack_back(
        self, d_fused: Tensor, d_targets: Tensor | None, present: Tensor | None, d_tokens: Tensor,
        offsets: Tensor | None, gain: Tensor | None, d_norm: Tensor | None,
    ) -> None:  # fmt: skip
        programs, blocks = row_launch(self.d_tokens, self._precision)
        stack_backward[(programs,)](
            d_fused, d_targets, self.saved, self._attention, *mask_arguments(present), self._maps, offsets, gain,
            d_tokens, self._d_products, d_norm, len(d_fused), len(self._maps), **blocks,
        )  # fmt: skip


class ResidualTrunk(BareTrunk):
    """Deeper projections and a residual stack; arguments as for `BareTrunk`."""

    def __init__(self, B: int, parameters: Parameters, precision: str) -> None:
        super().__init__(B, parameters, precision)
        assert parameters.residual is not None
        self._residual, like = parameters.residual, self.saved
        N, D = self.d_tokens.shape[1:]
        self._offsets, self._old_bias = (like.new_empty(len(like), 2 * D) for _ in range(2))
        self._d_norm = like.new_empty(row_launch(self.d_tokens, precision)[0], len(like), 2, D)
        self._tokens, self._hidden, self._first_normal, self._normal = (like.new_empty(B, N, D) for _ in range(4))
        self._d_tokens, self._d_first, self._d_hidden, self._d_last = (like.new_empty(B, N, D) for _ in range(4))
        self._first_rstd, self._rstd = (like.new_empty(B, N) for _ in range(2))
        self._row_tiles = triton.cdiv(B, PATCHES), N

    def fold(self) -> None:
        """With the output maps and all biases."""
        r = self._residual
        fold_residual_maps[self._map_tiles()](
            self._parameters.qkv.value, r.qkv_bias.value, r.out.value, r.out_bias.value, self._maps, self._offsets,
            self._old, self._old_bias, BLOCK_R=TILE, **self._map_blocks,
        )  # fmt: skip

    def forward(self, projected: Projected, factors: Tensor | None, present: Tensor | None) -> None:
        """Fill the deep tokens, then `fused`."""
        tokens, firsts, most, bias = projected
        B, N, _ = self._tokens.shape
        deepen[self._row_tiles](
            tokens, firsts, bias, factors, *(trained.value for trained in self._residual[:6]),
            self._first_normal, self._first_rstd, self._hidden, self._normal, self._rstd, self._tokens,
            B, tokens.shape[1], most, N, BLOCK_R=PATCHES, **self._map_blocks,
        )  # fmt: skip
        deep = Projected(self._tokens, None, 1, bias)
        self._run_stack(deep, None, present, self._offsets, self._residual.gain.value, self._residual.shift.value)

    def backward(self, d_fused: Tensor, d_targets: Tensor | None, present: Tensor | None) -> None:
        """Through the stack to the deep tokens, then to the projection."""
        B, N, _ = self._tokens.shape
        r = self._residual
        self._run_stack_back(d_fused, d_targets, present, self._d_tokens, self._offsets, r.gain.value, self._d_norm)
        deepen_back[self._row_tiles](
            self._d_tokens, self._tokens, self._hidden, self._first_normal, self._first_rstd, self._normal, self._rstd,
            r.first_gain.value, r.second.value, r.second_gain.value, self._d_first, self._d_hidden, self._d_last,
            self.d_tokens, B, N, BLOCK_R=PATCHES, **self._map_blocks,
        )  # fmt: skip

    def update(self, factors: Tensor) -> None:
        """Move the parameters of the stack and of the deeper projections."""
        B, N, D = self._tokens.shape
        tensors = [tensor for trained in (self._parameters.qkv, *self._residual[6:]) for tensor in moved(trained)]
        tiles, layers = self._map_tiles()
        update_residual_stack[(tiles, 4, layers)](
            self.saved, self._d_products, self._old, self._old_bias, self._d_norm, factors, *tensors,
            self.saved.shape[1], len(self._d_norm), BLOCK_I=TILE, BLOCK_R=TILE, **self._map_blocks,
        )  # fmt: skip
        tensors = [tensor for trained in self._residual[:6] for tensor in moved(trained)]
        update_deep[(D // TILE, N)](
            self._hidden, self._first_normal, self._normal, self._d_first, self._d_hidden, self._d_last, factors,
            *tensors, B, N, D, TILE, TILE, self._map_blocks["PRECISION"], num_warps=tile_warps(D),
        )  # fmt: skip


class LayeredTrunk(BareTrunk):
    """A bare stack of wide tokens, one kernel per layer and direction, and one for the mean; see `layers`."""

    def __init__(self, B: int, parameters: Parameters, precision: str) -> None:
        super().__init__(B, parameters, precision)
        like = self.saved
        self._products = like.new_empty(self._d_products.shape)
        self._between = [like.new_empty(self.d_tokens.shape) for _ in range(2)]  # gradients above and below a layer
        N, D = self.d_tokens.shape[1:]
        self._products_blocks = layer_blocks(N, D, precision, self.saved.itemsize)
        self._blocks = {x: self._products_blocks[x] for x in ("N", "D", "BLOCK_R", "BLOCK_N", "BLOCK_S", "num_warps")}
        self._programs = triton.cdiv(B, self._blocks["BLOCK_R"] // self._blocks["BLOCK_N"])

    def forward(self, projected: Projected, factors: Tensor | None, present: Tensor | None) -> None:
        """Layer by layer; the first one sums the parts."""
        tokens, firsts, most, bias = projected
        D, layers = self.saved.shape[-1], len(self.saved)
        kept = self.saved, self._products, self._attention
        for layer in range(layers):
            layer_forward[(self._programs, 2 * D // COLUMNS)](
                None if layer else tokens, firsts, bias, factors, *mask_arguments(present), self._maps, *kept,
                len(tokens), layer, tokens.shape[1], most, **self._products_blocks,
            )  # fmt: skip
        last_layer[(self._programs,)](
            *kept, *mask_arguments(present), self.fused, len(tokens), layers - 1, **self._blocks
        )  # fmt: skip

    def backward(self, d_fused: Tensor, d_targets: Tensor | None, present: Tensor | None) -> None:
        """Layer by layer, the last one first."""
        D, layers = self.saved.shape[-1], len(self.saved)
        for layer in reversed(range(layers)):
            above, below = self._between[layer % 2], self._between[(layer + 1) % 2]
            layer_backward[(self._programs, D // COLUMNS)](
                d_fused if layer == layers - 1 else None, above, None if layer else d_targets,
                self.saved, self._products, self._attention, *mask_arguments(present), self._maps, self._d_products,
                below if layer else self.d_tokens, len(d_fused), layer, **self._products_blocks,
            )  # fmt: skip


def map_blocks(D: int, precision: str, itemsize: int) -> dict[str, Any]:
    """Constexprs and warps of a kernel that multiplies rows by D x D maps."""
    blocks = row_blocks(1, D, "ieee" if precision == "ieee" else "tf32", itemsize)  # weights are not rounded
    return {name: blocks[name] for name in ("D", "BLOCK_C", "BLOCK_S", "PRECISION", "num_warps")}


def layer_blocks(N: int, D: int, precision: str, itemsize: int) -> dict[str, Any]:
    """Constexprs and warps of a kernel of one layer."""
    blocks = row_blocks(N, D, precision, itemsize)
    kept = {name: blocks[name] for name in ("N", "D", "BLOCK_R", "BLOCK_N", "PRECISION")}
    return kept | {"BLOCK_C": COLUMNS, "BLOCK_S": COLUMNS, "num_warps": 4}


def tile_warps(D: int) -> int:
    """Warps of a kernel that has rows of a weight of width D, and multiplies them by nothing."""
    return 4 if D <= 256 else 16


def moved(trained: Trained | None) -> tuple[Tensor, Tensor, Tensor]:
    """What `update` moves, in the order of its arguments."""
    assert trained is not None
    return trained.value, trained.mean, trained.square
