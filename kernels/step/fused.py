"""One step of training a student: few kernels, which read and move on whatever a step needs.

    start_step                          which patches, labels, teachers; learning rate; the optimizer's counters
    fold | projection_forward           the maps of the stack beside the projection
    forward of the trunk                to the fused feature
    head_and_losses                     forward and backward
    backward of the trunk
    update, update_head (update_votes) | projection_backward    gradients, and AdamW in their last lines
What stands beside one another runs in two branches on a GPU. No gradient of a weight is ever written to memory, and
no kernel adds to what another one wrote: the same bits every time. The definition is the step through autograd and
`torch.optim.AdamW`, to which tests hold it.

Trunks and their launches, see `trunks`; with heads of teachers one more:
    bare        9, stack_forward and stack_backward
    residual   12, deepen before them and deepen_back behind; update_deep
    layered     8 + 2 K of K layers, for bare students of D = 512
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
from torch import Tensor

from ..launch import cut_columns, mask_arguments
from ..projection import WIDE, Inputs, Kept, launch_backward, launch_forward
from ..reference import TokenMaps
from .head import head_and_losses
from .parts import Parameters, Projected, Settings, Source
from .start import start_step
from .trunks import PATCHES, TILE, make_trunk, map_blocks, moved, tile_warps
from .weights import update_head, update_votes


class _Buffers:
    """What the kernels of a step hand to one another, for batches of one size."""

    def __init__(self, B: int, parameters: Parameters, dims: tuple[int, ...], precision: str) -> None:
        like = parameters.qkv.value
        (N, D), C = parameters.projection_bias.value.shape, len(parameters.last_bias.value)
        self.positions, self.labels = (like.new_empty(B, dtype=torch.int64) for _ in range(2))
        self.present = like.new_empty(B, N, dtype=torch.bool)
        self.factors, self.mask = like.new_empty(5), like.new_empty(1, dtype=torch.int64)
        parts = cut_columns(dims, like.device) if B < WIDE else None
        tokens = like.new_empty(B, N if parts is None else len(parts.teachers), D)
        firsts, most = (None, 1) if parts is None else (parts.firsts, parts.most)
        self.parts, self.projected = parts, Projected(tokens, firsts, most, parameters.projection_bias.value)
        self.trunk = make_trunk(B, parameters, precision)
        self.d_targets = like.new_empty(B, N, D)
        self.d_fused, self.normal, self.d_normed, self.d_hidden = (like.new_empty(B, D) for _ in range(4))
        self.d_logits = like.new_empty(B, C)
        self.d_votes = None if parameters.votes is None else like.new_empty(B, N, C)
        self.losses = like.new_empty(triton.cdiv(B, PATCHES), 2 + (2 if parameters.votes is None else 3) * N)


class FusedStep:
    """Steps of a student, one call each; on a GPU a call only launches kernels and may be captured in a graph.

    Args:
        parameters: what is trained, with the optimizer's state; float32 (float64 in the interpreter with "ieee").
        settings: what does not change.
    """

    def __init__(self, parameters: Parameters, settings: Settings) -> None:
        self._parameters, self._settings = parameters, settings
        qkv = parameters.qkv.value
        addresses = [trained.step.data_ptr() for trained in parameters.all]
        self._counters = torch.tensor(addresses, dtype=torch.int64, device=qkv.device)
        self._stream = torch.cuda.Stream(qkv.device) if qkv.is_cuda else None
        self._buffers: dict[int, _Buffers] = {}
        self._maps = map_blocks(qkv.shape[1], settings.precision, qkv.itemsize)

    def __call__(self, size: int, source: Source) -> None:
        """Train on the next `size` patches."""
        if size not in self._buffers:
            self._buffers[size] = _Buffers(size, self._parameters, tuple(source.dims), self._settings.precision)
        b = self._buffers[size]
        with torch.cuda.device_of(source.batch.order):
            self._start(size, source, b)
            present = None if source.present is None else b.present
            maps = TokenMaps(self._parameters.projection.value, self._parameters.projection_bias.value, source.dims)
            rows = b.positions if source.batch.resident else None
            kept = None if source.kept is None else Kept(source.kept, b.mask, self._settings.kept_part)
            inputs = Inputs(source.batch.features, rows, maps._replace(standard=source.standard), present, kept)
            mixed = source.mixtures is not None
            with self._beside():
                b.trunk.fold()
            launch_forward(inputs, maps.weight, maps.bias, b.projected.tokens, self._settings.precision, b.parts)
            self._join()
            b.trunk.forward(b.projected, b.factors if mixed else None, present)
            self._lose(size, b, present, mixed)
            b.trunk.backward(b.d_fused, self._d_targets(b), present)
            with self._beside():
                b.trunk.update(b.factors)
                if b.d_votes is not None:
                    self._update_votes(b)
                self._update_head(size, source, b)
            weight, bias = self._parameters[:2]
            outputs = weight.value, bias.value, b.factors, weight.mean, weight.square, bias.mean, bias.square
            launch_backward(inputs, b.trunk.d_tokens, outputs, self._settings.precision, mixed)
            self._join()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """What is launched within runs beside what is launched after it, until `_join`."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def _join(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def _start(self, size: int, source: Source, b: _Buffers) -> None:
        present = None if source.present is None else source.present.view(torch.uint8)
        N = len(source.dims)
        start_step[(1,)](
            source.batch.order, source.batch.cursor, source.batch.labels, present, source.rates, source.mixtures,
            source.step, self._settings.optimizer, self._counters,
            b.positions, b.labels, b.present.view(torch.uint8), source.rate,
            None if source.kept is None else b.mask, b.factors,
            size, len(self._counters), 1 if source.kept is None else len(source.kept),
            N, triton.next_power_of_2(N), 128, num_warps=1,
        )  # fmt: skip

    def _lose(self, size: int, b: _Buffers, present: Tensor | None, mixed: bool) -> None:
        head, settings = self._parameters[3:11], self._settings
        C, N = b.d_logits.shape[1], b.d_targets.shape[1]
        head_and_losses[(len(b.losses),)](
            b.trunk.fused, b.trunk.saved, mask_arguments(present)[0], b.labels, settings.offsets,
            settings.class_weights, b.factors if mixed else None,
            *(None if trained is None else trained.value for trained in head),
            b.normal, b.d_normed, b.d_hidden, b.d_logits, b.d_votes, b.d_fused, self._d_targets(b), b.losses,
            size, settings.lam, settings.delta, settings.delta**2, settings.votes / N,
            N, C=C, TERMS=b.losses.shape[1], NORM=settings.norm, LEARNED=settings.learned_targets,
            BLOCK_R=PATCHES, BLOCK_K=triton.next_power_of_2(C), **self._maps,
        )  # fmt: skip

    def _d_targets(self, b: _Buffers) -> Tensor | None:
        return b.d_targets if self._settings.learned_targets or b.d_votes is not None else None

    def _update_head(self, size: int, source: Source, b: _Buffers) -> None:
        C, D, terms = b.d_logits.shape[1], b.d_fused.shape[1], b.losses.shape[1]
        head = [tensor for trained in self._parameters.head for tensor in moved(trained)]
        update_head[(D // TILE,)](
            b.trunk.fused, b.normal, b.d_normed, b.d_hidden, b.d_logits, b.losses, b.factors, *head,
            source.losses, source.step, size, len(b.losses), D, C, terms,
            TILE, TILE, max(TILE, triton.next_power_of_2(C)), triton.next_power_of_2(terms),
            self._maps["PRECISION"], num_warps=tile_warps(D),
        )  # fmt: skip

    def _update_votes(self, b: _Buffers) -> None:
        B, N, D = b.d_targets.shape
        C = b.d_logits.shape[1]
        votes = [tensor for trained in self._parameters[9:11] for tensor in moved(trained)]
        update_votes[(D // TILE, N)](
            b.trunk.saved, b.d_votes, b.factors, *votes, B, N, D, C,
            TILE, TILE, max(TILE, triton.next_power_of_2(C)), self._maps["PRECISION"], num_warps=tile_warps(D),
        )  # fmt: skip
