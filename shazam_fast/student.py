"""The student: one token per teacher, a small self-attention stack, the mean, a head (Shazam, arXiv 2503.00736).

`Student` is what is trained; `FoldedStudent` is the bare student with its maps multiplied out, for scoring.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import ops
from .errors import MismatchError, ShazamError
from .student_config import StudentConfig


@dataclass(frozen=True)
class StudentOutput:
    """What the student says of B patches.

    `logits` [B, C]; `fused` [B, D], the mean token t; `tokens` [B, N, D], the projected teachers T_i;
    `present` bool [B, N] or None.
    """

    logits: Tensor
    fused: Tensor
    tokens: Tensor
    present: Tensor | None
    explain: Callable[[], Tensor] | None

    @property
    def weights(self) -> Tensor | None:
        """Exact share of each teacher in the fused feature [B, N]; None for the residual block, which has none."""
        return None if self.explain is None else self.explain()


class Projection(nn.Module):
    """A linear map per teacher, eq. (1): `weight` [sum of dims, D], one map below the other (x W), `bias` [N, D].

    PyTorch's default initialisation of nn.Linear, from a generator of its own.
    """

    def __init__(self, dims: Sequence[int], D: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dims = list(dims)
        self.weight = nn.Parameter(torch.empty(sum(dims), D))
        self.bias = nn.Parameter(torch.empty(len(dims), D))
        with torch.no_grad():
            for weight, bias in zip(self.weight.split(self.dims), self.bias, strict=True):
                _uniform([weight, bias], len(weight), generator)

    def forward(
        self, features: Tensor, rows: Tensor | None, standard: tuple[Tensor, Tensor], present: Tensor | None
    ) -> Tensor:
        """Standardised features of the chosen rows -> tokens [B, N, D]."""
        return ops.project(features, rows, standard, self.weight, self.bias, self.dims, present)


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
            _uniform(maps, D, generator)

    def deepen(self, tokens: Tensor) -> Tensor:
        """What follows the first map of a projection. [B, N, D] -> [B, N, D]."""
        hidden = self.first_norm(tokens).relu()
        hidden = torch.baddbmm(self.second_bias[:, None], hidden.transpose(0, 1), self.second_weight)  # [N, B, D]
        deep: Tensor = self.second_norm(hidden.transpose(0, 1)).relu()
        return deep

    def attend(self, tokens: Tensor, qkv: Tensor, present: Tensor | None) -> Tensor:
        """All K layers and the mean. [B, N, D] -> fused [B, D]."""
        norm = self.norm
        return ops.residual_stack(
            tokens, qkv, self.qkv_bias, self.out_weight, self.out_bias, norm.weight, norm.bias, present
        )


class Student(nn.Module):
    """Shazam's student network.

    Features are [B, sum of dims], the teachers side by side in the order of `config.teachers`.
    They are standardised by `feature_mean` and `feature_scale`, learned on the training split.
    `frozen_targets` are fixed random maps that it was distilled from if not from its own tokens (the authors'
    script); `training_record` says how it was trained (plain values, saved as JSON).
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: StudentConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.dims = list(config.teachers.values())
        D, K = config.dim, config.depth
        self.register_buffer("feature_mean", torch.zeros(sum(self.dims)))
        self.register_buffer("feature_scale", torch.ones(sum(self.dims)))
        self.projection = Projection(self.dims, D, generator)
        self.qkv = nn.Parameter(torch.empty(K, D, 3 * D))  # x W: query, key and value side by side
        with torch.no_grad():
            _uniform([self.qkv], D, generator)
        self.blocks = ResidualBlocks(len(self.dims), D, K, generator) if config.block == "residual" else None
        self.head = nn.Sequential(_linear(D, D), nn.ReLU(), nn.LayerNorm(D), _linear(D, len(config.classes)))
        with torch.no_grad():
            for linear in (self.head[0], self.head[3]):
                _uniform(linear.parameters(), D, generator)
        self.frozen_targets: Projection | None = None
        self.training_record: dict[str, Any] = {}

    def forward(self, features: Tensor, present: Tensor | None = None, rows: Tensor | None = None) -> StudentOutput:
        """Logits and everything the objective needs.

        Args:
            features: [B, sum of dims], any float dtype.
            present: bool [B, N], which teachers a patch has (at least one each); None when it has all.
                What absent teachers' features hold, NaN included, has no influence.
            rows: int64 [B]; then `features` is a table [R, sum of dims] and these its rows that make up the batch.
        """
        tokens = self.tokens(features, present, rows)
        explain = None
        if self.blocks is None:
            fused, explain = ops.bare_stack(tokens, self.qkv, present)
        else:
            fused = self.blocks.attend(tokens, self.qkv, present)
        return StudentOutput(self.head(fused), fused, tokens, present, explain)

    def infer(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C] and teacher weights [B, N] (None for the residual block)."""
        return self.infer_fused(features, present)[:2]

    def infer_fused(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """`infer`, and the fused feature t [B, D] behind the logits."""
        output = self(features, present)
        return output.logits, output.weights, output.fused

    def tokens(self, features: Tensor, present: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Standardised features projected to one token per teacher, eq. (1); arguments as `forward`. [B, N, D]."""
        tokens = self._project(self.projection, features, present, rows)
        return tokens if self.blocks is None else self.blocks.deepen(tokens)

    @torch.no_grad()
    def fixed_targets(self, features: Tensor, present: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Standardised features through `frozen_targets`; arguments as `forward`. [B, N, D]."""
        if self.frozen_targets is None:
            raise ShazamError("targets='frozen' needs a student with frozen_targets; train() makes them")
        return self._project(self.frozen_targets, features, present, rows)

    def freeze_targets(self, generator: torch.Generator | None = None) -> None:
        """Give the student the fixed random linear maps of `targets="frozen"`."""
        self.frozen_targets = Projection(self.dims, self.config.dim, generator).requires_grad_(False)

    def fold(self) -> "FoldedStudent":
        """The same function with all linear maps multiplied out; exact, bare block only."""
        return FoldedStudent(self)

    def save(self, path: str | Path) -> None:
        """Write `student.json` and `student.safetensors` into the directory `path`; `shazam_fast.load` reads them."""
        from .student_files import save_student

        save_student(self, Path(path))

    def _project(self, maps: Projection, features: Tensor, present: Tensor | None, rows: Tensor | None) -> Tensor:
        if features.ndim != 2 or features.shape[1] != sum(self.dims):
            raise MismatchError(
                f"features [B, {sum(self.dims)}] expected for teachers {dict(self.config.teachers)}, "
                f"found {list(features.shape)}"
            )
        tokens: Tensor = maps(features, rows, (self.feature_mean, self.feature_scale), present)
        return tokens


class FoldedStudent(nn.Module):
    """A trained bare student for scoring: standardisation, value maps and LayerNorm gain are folded away.

    With C_0 = I: B_l = C_{l-1} Wq_l Wk_l^T C_{l-1}^T / sqrt(D), C_l = C_{l-1} Wv_l. Folded in float64, kept in the
    student's dtype. Three times fewer attention FLOPs, and the teacher weights come as a by-product.

    Float32 ends where attention gets sharp, for the student and its folded form alike: with scores up to 5 the worst of
    4,000 random patches errs by 5e-7, with scores of 50 by 3e-5, with scores of 500 and more by 1e-3 (some patch is
    then a near tie between two teachers); folded in float64, by 4e-12 (tests/test_folding.py). Trained bare students
    reach scores of 1e6: where single patches matter, score with `student.double()`.
    """

    weight: Tensor  # all projections side by side, [sum of dims, D]
    bias: Tensor  # [N, D]
    score_maps: Tensor  # all B_l side by side, [D, K*D]
    value_map: Tensor  # C_K [D, D]
    head_weight_1: Tensor  # [D, D], behind C_K
    head_bias_1: Tensor  # [D]
    head_weight_2: Tensor  # [D, C]
    head_bias_2: Tensor  # [C]

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.config = student.config
        if self.config.block != "bare":
            raise ShazamError(
                f"only bare students fold exactly; this one is {self.config.block!r}: score with the student itself"
            )
        self.dims = student.dims
        dtype = student.qkv.dtype
        with torch.no_grad():
            weight, bias = _fold_projection(student)
            score_maps, value_map = _fold_attention(student.qkv)
            head = _fold_head(student.head, value_map)
        tensors = {"weight": weight, "bias": bias, "score_maps": score_maps}
        tensors |= {"value_map": value_map, **head}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(dtype))

    def infer(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """features [B, sum of dims] as stored, not standardised -> logits [B, C], teacher weights [B, N]."""
        pooled, w = self._pool(features, present)
        return self._classify(pooled), w

    def infer_fused(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`infer`, and the fused feature t [B, D] behind the logits."""
        pooled, w = self._pool(features, present)
        return self._classify(pooled), w, pooled @ self.value_map

    def _pool(self, features: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """w T [B, D], w [B, N]."""
        tokens = ops.project(features, None, None, self.weight, self.bias, self.dims, present)  # [B, N, D]
        return ops.folded_stack(tokens, self.score_maps, present)

    def _classify(self, pooled: Tensor) -> Tensor:
        hidden = torch.addmm(self.head_bias_1, pooled, self.head_weight_1).relu_()
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        return torch.addmm(self.head_bias_2, hidden, self.head_weight_2)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """An nn.Linear without values, which would come from the global random state."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    return linear


def _uniform(parameters: Iterable[Tensor], inputs: int, generator: torch.Generator | None) -> None:
    """Uniform in +-1/sqrt(inputs), PyTorch's default for nn.Linear, from a generator of our own."""
    bound = 1.0 / math.sqrt(inputs)
    for parameter in parameters:
        parameter.uniform_(-bound, bound, generator=generator)


def _fold_projection(student: Student) -> tuple[Tensor, Tensor]:
    """(x - mean) / scale @ W + b as x @ weight + bias: [sum of dims, D] in the student's dtype, [N, D] in float64."""
    maps, biases = student.projection, []
    folded = torch.empty_like(maps.weight)
    means, scales = (x.double().split(student.dims) for x in (student.feature_mean, student.feature_scale))
    parts = zip(maps.weight.split(student.dims), maps.bias, means, scales, folded.split(student.dims), strict=True)
    for map_, bias, mean, scale, target in parts:
        weight = map_.double() / scale[:, None]
        target.copy_(weight)
        biases.append(bias.double() - mean @ weight)
    return folded, torch.stack(biases)


def _fold_attention(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """qkv [K, D, 3D] -> all B_l side by side [D, K*D] in its dtype, C_K [D, D] in float64."""
    D = qkv.shape[1]
    C = torch.eye(D, dtype=torch.float64, device=qkv.device)
    maps = []
    for layer in qkv:
        wq, wk, wv = layer.double().split(D, dim=1)
        maps.append((C @ wq @ (C @ wk).T / math.sqrt(D)).to(qkv.dtype))
        C = C @ wv
    return torch.cat(maps, dim=1), C


def _fold_head(head: nn.Sequential, value_map: Tensor) -> dict[str, Tensor]:
    first, _, norm, last = head
    assert isinstance(first, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(last, nn.Linear)
    last_weight = last.weight.double().T  # [D, C]
    return {
        "head_weight_1": value_map @ first.weight.double().T,
        "head_bias_1": first.bias.double(),
        "head_weight_2": norm.weight.double()[:, None] * last_weight,
        "head_bias_2": last.bias.double() + norm.bias.double() @ last_weight,
    }
