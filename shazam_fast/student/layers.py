"""The layers of a student: projections of the teachers, and what the residual block adds. Initialised as nn.Linear."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import dispatch as ops
from ..ops.masks import hide_missing

TEACHERS_SAY = 0.75  # weight of the teacher heads' logits beside the head's, chosen by benchmarks/search_recipe.py


class Projection(nn.Module):
    """A linear map per teacher, eq. (1): `weight` [sum of dims, D], one map below the other (x W), `bias` [N, D].

    Args:
        dims: columns of each teacher.
        D: width of the tokens.
        generator: draws the initial values, as nn.Linear does; PyTorch's global one by default.
    """

    def __init__(self, dims: Sequence[int], D: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dims = list(dims)
        self.weight = nn.Parameter(torch.empty(sum(dims), D))
        self.bias = nn.Parameter(torch.empty(len(dims), D))
        with torch.no_grad():
            for weight, bias in zip(self.weight.split(self.dims), self.bias, strict=True):
                fill_uniform([weight, bias], len(weight), generator)

    def forward(
        self, features: Tensor, rows: Tensor | None, standard: tuple[Tensor, Tensor], present: Tensor | None
    ) -> Tensor:
        """Standardised features through each teacher's map.

        Args:
            features: [R, sum of dims].
            rows: int64 [B], which rows of `features` to take; None: all, B = R.
            standard: mean and scale of the columns, [sum of dims] each.
            present: bool [B, N], which teachers a patch has; None: all.

        Returns tokens [B, N, D].
        """
        maps = ops.TokenMaps(self.weight, self.bias, self.dims, standard)
        return ops.project(features, rows, maps, present)


class TeacherHeads(nn.Module):
    """A linear classifier on each teacher's token: `weight` [N, D, C] (x W), `bias` [N, C].

    Args:
        N: teachers.
        D: width of the tokens.
        C: classes.
        generator: draws the initial values, as nn.Linear does; PyTorch's global one by default.
    """

    def __init__(self, N: int, D: int, C: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(N, D, C))
        self.bias = nn.Parameter(torch.empty(N, C))
        with torch.no_grad():
            fill_uniform([self.weight, self.bias], D, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits by each teacher's token alone. [B, N, D] -> [B, N, C]."""
        return torch.baddbmm(self.bias[:, None], tokens.transpose(0, 1), self.weight).transpose(0, 1)

    def mean(self, tokens: Tensor, present: Tensor | None) -> Tensor:
        """Mean over all teachers of their logits, 0 of one that a patch lacks: who is withheld shifts no other's say.

        Args:
            tokens: [B, N, D].
            present: bool [B, N]; None: all.

        Returns [B, C].
        """
        return hide_missing(self(tokens), present).mean(dim=1)


def with_votes(logits: Tensor, votes: Tensor) -> Tensor:
    """Logits of the head, with the say of the teacher heads' mean logits; shapes alike."""
    return (1.0 - TEACHERS_SAY) * logits + TEACHERS_SAY * votes


class Norm(nn.Module):
    """LayerNorms side by side, gain and shift [n, D]; of teachers: [B, n, D] -> [B, n, D]."""

    def __init__(self, n: int, D: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n, D))
        self.bias = nn.Parameter(torch.zeros(n, D))

    def forward(self, x: Tensor) -> Tensor:
        """Every row by its own gain and shift."""
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:]), self.weight)


class ResidualBlocks(nn.Module):
    """What the residual student has beyond the bare one: deeper projections, biases, output maps and norms.

    T_i = Linear -> LN -> ReLU -> Linear -> LN -> ReLU, of which the first map is the student's `projection`.
    """

    def __init__(self, N: int, D: int, K: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.first_norm, self.second_norm = Norm(N, D), Norm(N, D)
        self.second_weight = nn.Parameter(torch.empty(N, D, D))  # x W
        self.second_bias = nn.Parameter(torch.empty(N, D))
        self.qkv_bias = nn.Parameter(torch.empty(K, 3 * D))
        self.out_weight = nn.Parameter(torch.empty(K, D, D))  # x W
        self.out_bias = nn.Parameter(torch.empty(K, D))
        self.norm = Norm(K, D)
        with torch.no_grad():
            maps = [self.second_weight, self.second_bias, self.qkv_bias, self.out_weight, self.out_bias]
            fill_uniform(maps, D, generator)

    def deepen(self, tokens: Tensor) -> Tensor:
        """What follows the first map of a projection. [B, N, D] -> [B, N, D]."""
        hidden = self.first_norm(tokens).relu()
        hidden = torch.baddbmm(self.second_bias[:, None], hidden.transpose(0, 1), self.second_weight)  # [N, B, D]
        deep: Tensor = self.second_norm(hidden.transpose(0, 1)).relu()
        return deep

    def attend(self, tokens: Tensor, qkv: Tensor, present: Tensor | None) -> Tensor:
        """All K layers and the mean. [B, N, D] -> fused [B, D]."""
        maps = ops.ResidualMaps(qkv, self.qkv_bias, self.out_weight, self.out_bias, self.norm.weight, self.norm.bias)
        return ops.residual_stack(tokens, maps, present)


def empty_linear(inputs: int, outputs: int) -> nn.Linear:
    """An nn.Linear with uninitialised values, so that PyTorch's global random state is not used."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    return linear


def fill_uniform(parameters: Iterable[Tensor], inputs: int, generator: torch.Generator | None) -> None:
    """Fill with values uniform in +-1/sqrt(inputs), PyTorch's default for nn.Linear, drawn from `generator`."""
    bound = 1.0 / math.sqrt(inputs)
    for parameter in parameters:
        parameter.uniform_(-bound, bound, generator=generator)
