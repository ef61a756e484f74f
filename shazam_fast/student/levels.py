"""The trunk of the multi-level student (Shazam, arXiv 2503.00736 v2 to v4): low, mid and high features of N teachers.

With p_li the linear token, eq. (1), of teacher i at level l, n the number of teachers that a patch has, and [p_l] the
tokens of a level side by side:
- g_l = softmax(Linear(LN(GELU(Linear([p_l])))))      the gate: one value per teacher, summing to 1
- T_li = n g_li LN_l(p_li)                            what the attention reads
- s_l = mean of K residual attention layers over T_l  a segment of the trunk, with parameters of its own
- o_1 = s_1;  o_2 = LN(s_2 + alpha o_1);  o_3 = LN(s_3 + beta o_2), the fused feature
o_1 is distilled from the low tokens p_1i, o_2 from the mid, o_3 from the high ones.

The authors have LN(g p), which is LN(p) but for the epsilon of the norm: their gate changes nothing. Here it follows
the norm, and n keeps the size that the tokens have without it; it starts at 1/n. Their dropout of 0.1 in gate and head
is left out: a training draws all that is random per epoch, so that it can be resumed. Their tile scripts distil from a
second set of trained linear maps, their slide scripts from the tokens themselves, as here.

Tokens, segments and losses are the operations of ops/, which run in the core or as Triton kernels; gate and joins are
plain PyTorch.
"""

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import dispatch as ops
from ..runtime.levels import LEVELS, group_levels
from .layers import Norm, fill_uniform

L = len(LEVELS)


class LevelTrunk(nn.Module):
    """Gates, three segments of attention layers, and what joins them.

    Args:
        teachers: the names of the column blocks, in the order of the tokens; see `group_levels`.
        D: width of the tokens.
        K: attention layers of a segment.
        generator: draws the initial values, as nn.Linear does; PyTorch's global one by default.
    """

    places: Tensor  # positions of the N low, mid and high tokens among all, int64 [3N]
    origins: Tensor  # the inverse: positions among those of a level after the other, int64 [3N]

    def __init__(self, teachers: Mapping[str, int], D: int, K: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        position = {name: index for index, name in enumerate(teachers)}
        groups = group_levels(teachers).values()
        places = torch.tensor([position[name] for name in chain(*zip(*groups, strict=True))], device="cpu")
        self.N, self.K = len(groups), K
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("origins", places.argsort(), persistent=False)
        self.token_norm, self.gate_norm, self.join_norm = Norm(L, D), Norm(L, D), Norm(L - 1, D)
        self.gate_weight_1 = nn.Parameter(torch.empty(L, self.N * D, D))  # x W
        self.gate_bias_1 = nn.Parameter(torch.empty(L, D))
        self.gate_weight_2 = nn.Parameter(torch.zeros(L, D, self.N))  # zeros: all gates start at 1/n
        self.gate_bias_2 = nn.Parameter(torch.zeros(L, self.N))
        self.qkv_bias = nn.Parameter(torch.empty(L * K, 3 * D))
        self.out_weight = nn.Parameter(torch.empty(L * K, D, D))  # x W
        self.out_bias = nn.Parameter(torch.empty(L * K, D))
        self.norm = Norm(L * K, D)
        self.carry = nn.Parameter(torch.ones(L - 1))  # alpha, beta
        with torch.no_grad():
            fill_uniform([self.gate_weight_1, self.gate_bias_1], self.N * D, generator)
            fill_uniform([self.qkv_bias, self.out_weight, self.out_bias], D, generator)

    def forward(self, tokens: Tensor, qkv: Tensor, present: Tensor | None) -> tuple[Tensor, ...]:
        """The outputs o_1, o_2, o_3 of the segments, [B, D] each; the last is the fused feature.

        Args:
            tokens: the linear tokens of all teachers and levels, [B, 3N, D].
            qkv: query, key and value maps of all layers, one segment after the other, [3K, D, 3D].
            present: bool [B, 3N], which of them a patch has, at least one per level; None: all.
        """
        p = self._by_level(tokens)  # [B, 3, N, D]
        there = None if present is None else self._by_level(present)  # [B, 3, N]
        if there is not None:
            p = p.masked_fill(~there[..., None], 0.0)
        gated = self.gates(p, there)[..., None] * self._normalised(p)
        maps = (qkv, self.qkv_bias, self.out_weight, self.out_bias, self.norm.weight, self.norm.bias)
        segments = zip(*(m.split(self.K) for m in maps), strict=True)
        outputs: list[Tensor] = []
        for level, segment in enumerate(segments):
            here = None if there is None else there[:, level].contiguous()
            s = ops.residual_stack(gated[:, level].contiguous(), ops.ResidualMaps(*segment), here)
            outputs.append(self._join(s, outputs[-1], level) if outputs else s)
        return tuple(outputs)

    def gates(self, p: Tensor, there: Tensor | None) -> Tensor:
        """n g_l of every level and teacher, whose mean over the teachers that a patch has is 1; 0 for the others.

        p [B, 3, N, D], 0 for missing teachers; there bool [B, 3, N] or None -> [B, 3, N].
        """
        hidden = torch.baddbmm(self.gate_bias_1[:, None], p.flatten(2).transpose(0, 1), self.gate_weight_1)
        hidden = self.gate_norm(F.gelu(hidden).transpose(0, 1))  # [B, 3, D]
        scores = torch.baddbmm(self.gate_bias_2[:, None], hidden.transpose(0, 1), self.gate_weight_2).transpose(0, 1)
        if there is None:
            return scores.softmax(dim=-1) * self.N
        gates = scores.masked_fill(~there, -torch.inf).softmax(dim=-1)
        return gates * there.sum(dim=-1, keepdim=True)

    def distil(
        self, outputs: tuple[Tensor, ...], targets: Tensor, lam: float, delta: float, huber: str, present: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The distillation losses of every level's output to the targets of that level.

        Args:
            outputs: o_1, o_2, o_3, [B, D] each.
            targets: [B, 3N, D], in the order of the tokens.
            lam, delta, huber, present: as for `ops.distillation_loss`; present [B, 3N].

        Returns the scalar lam * sum(cosine + huber) over levels and teachers to minimise; cosine and huber [3N], means
        over the batch, in the order of the tokens.
        """
        t = self._by_level(targets)
        there = [None] * L if present is None else [m.contiguous() for m in self._by_level(present).unbind(1)]
        losses = [
            ops.distillation_loss(outputs[level], t[:, level].contiguous(), lam, delta, huber, there[level])
            for level in range(L)
        ]
        totals, cosines, hubers = zip(*losses, strict=True)
        return torch.stack(totals).sum(), self._in_order(cosines), self._in_order(hubers)

    def _by_level(self, x: Tensor) -> Tensor:
        """[B, 3N, ...] -> [B, 3, N, ...]."""
        grouped: Tensor = x.index_select(1, self.places).unflatten(1, (L, self.N))
        return grouped

    def _in_order(self, by_level: tuple[Tensor, ...]) -> Tensor:
        """Three of [N] -> [3N] in the order of the tokens."""
        return torch.cat(by_level).index_select(0, self.origins)

    def _normalised(self, p: Tensor) -> Tensor:
        """Every token by the norm of its level. [B, 3, N, D] -> [B, 3, N, D]."""
        gain, shift = self.token_norm.weight[:, None], self.token_norm.bias[:, None]  # [3, 1, D]
        return torch.addcmul(shift, F.layer_norm(p, p.shape[-1:]), gain)

    def _join(self, s: Tensor, before: Tensor, level: int) -> Tensor:
        """LN(s + alpha o) of a segment's mean and the output of the level before. [B, D]."""
        gain, shift = self.join_norm.weight[level - 1], self.join_norm.bias[level - 1]
        return F.layer_norm(s + self.carry[level - 1] * before, gain.shape, gain, shift)
