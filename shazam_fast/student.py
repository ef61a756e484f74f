"""The student: one token per teacher, a small self-attention stack, the mean, a head (Shazam, arXiv 2503.00736).

`Student` is what is trained; `FoldedStudent` is the bare student with its maps multiplied out, for scoring.
"""

import math
from collections.abc import Callable, Sequence
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


class FrozenTargets(nn.Module):
    """Fixed random linear maps of the standardised features, which the authors' script distils from."""

    def __init__(self, dims: Sequence[int], D: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.maps = nn.ModuleList(_linear(dim, D) for dim in dims)
        self.requires_grad_(False)
        for linear in self.maps:
            _initialise_linear(linear, generator)

    def forward(self, standardised: Tensor) -> Tensor:
        """[B, sum of dims] -> targets [B, N, D]."""
        return _project(self.maps, standardised)


class Student(nn.Module):
    """Shazam's student network.

    Features are float32 [B, sum of dims], the teachers side by side in the order of `config.teachers`.
    They are standardised by `feature_mean` and `feature_scale`, learned on the training split.
    `frozen_targets` are what it was distilled from if not from its own tokens; `training_record` says how it was
    trained (plain values, saved as JSON).
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
        if config.block == "bare":
            self.projections = nn.ModuleList(_linear(dim, D) for dim in self.dims)
        else:
            self.projections = nn.ModuleList(_residual_projection(dim, D) for dim in self.dims)
            self.qkv_bias = nn.Parameter(torch.empty(K, 3 * D))
            self.outputs = nn.ModuleList(_linear(D, D) for _ in range(K))
            self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(K))
        self.qkv = nn.Parameter(torch.empty(K, D, 3 * D))  # x W: query, key and value side by side
        self.head = nn.Sequential(_linear(D, D), nn.ReLU(), nn.LayerNorm(D), _linear(D, len(config.classes)))
        self.frozen_targets: FrozenTargets | None = None
        self.training_record: dict[str, Any] = {}
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _initialise_linear(module, generator)
        bound = 1.0 / math.sqrt(self.config.dim)
        self.qkv.uniform_(-bound, bound, generator=generator)
        if self.config.block == "residual":
            self.qkv_bias.uniform_(-bound, bound, generator=generator)

    def forward(self, features: Tensor, present: Tensor | None = None) -> StudentOutput:
        """Logits and everything the objective needs.

        Args:
            features: [B, sum of dims].
            present: bool [B, N], which teachers a patch has (at least one each); None when it has all.
                What absent teachers' features hold, NaN included, has no influence.
        """
        tokens = self.tokens(features, present)
        explain = None
        if self.config.block == "bare":
            fused, explain = ops.bare_stack(tokens, self.qkv, present)
        else:
            fused = self._residual_stack(tokens, present)
        return StudentOutput(self.head(fused), fused, tokens, present, explain)

    def infer(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C] and teacher weights [B, N] (None for the residual block)."""
        return self.infer_fused(features, present)[:2]

    def infer_fused(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """`infer`, and the fused feature t [B, D] behind the logits."""
        output = self(features, present)
        return output.logits, output.weights, output.fused

    def tokens(self, features: Tensor, present: Tensor | None = None) -> Tensor:
        """Standardised features projected to one token per teacher, eq. (1). [B, sum of dims] -> [B, N, D]."""
        return _project(self.projections, self.standardise(features, present))

    def standardise(self, features: Tensor, present: Tensor | None = None) -> Tensor:
        """(features - mean) / scale per column; absent teachers' columns become 0. [B, sum of dims]."""
        if features.ndim != 2 or features.shape[1] != sum(self.dims):
            raise MismatchError(
                f"features [B, {sum(self.dims)}] expected for teachers {dict(self.config.teachers)}, "
                f"found {list(features.shape)}"
            )
        x = (features - self.feature_mean) / self.feature_scale
        return x if present is None else _hide_absent(x, present, self.dims)

    def fold(self) -> "FoldedStudent":
        """The same function with all linear maps multiplied out; exact, bare block only."""
        return FoldedStudent(self)

    def save(self, path: str | Path) -> None:
        """Write `student.json` and `student.safetensors` into the directory `path`; `shazam_fast.load` reads them."""
        from .student_files import save_student

        save_student(self, Path(path))

    def _residual_stack(self, tokens: Tensor, present: Tensor | None) -> Tensor:
        for weight, bias, output, norm in zip(self.qkv, self.qkv_bias, self.outputs, self.norms, strict=True):
            tokens = norm(tokens + output(ops.residual_layer(tokens, weight, bias, present)))
        return ops.mean_pool(tokens, present)


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
            weight, bias = _fold_projections(student)
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
        if present is not None:
            features = _hide_absent(features, present, self.dims)
        tokens = ops.project(features, [W.T for W in self.weight.split(self.dims)], self.bias.unbind())  # [B, N, D]
        return ops.folded_stack(tokens, self.score_maps, present)

    def _classify(self, pooled: Tensor) -> Tensor:
        hidden = torch.addmm(self.head_bias_1, pooled, self.head_weight_1).relu_()
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        return torch.addmm(self.head_bias_2, hidden, self.head_weight_2)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """An nn.Linear without values, which would come from the global random state."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    return linear


@torch.no_grad()
def _initialise_linear(linear: nn.Module, generator: torch.Generator | None) -> None:
    """Uniform in +-1/sqrt(inputs), PyTorch's default for nn.Linear, from a generator of our own."""
    assert isinstance(linear, nn.Linear)
    bound = 1.0 / math.sqrt(linear.in_features)
    linear.weight.uniform_(-bound, bound, generator=generator)
    linear.bias.uniform_(-bound, bound, generator=generator)


def _project(maps: nn.ModuleList, features: Tensor) -> Tensor:
    """Every teacher's columns through its own map. [B, sum of dims] -> [B, N, D]."""
    linear = [m for m in maps if isinstance(m, nn.Linear)]
    if len(linear) == len(maps):
        return ops.project(features, [m.weight for m in linear], [m.bias for m in linear])
    widths = [next(m.parameters()).shape[1] for m in maps]
    parts = zip(maps, features.split(widths, dim=1), strict=True)
    return torch.stack([m(x) for m, x in parts], dim=1)


def _residual_projection(dim: int, D: int) -> nn.Sequential:
    return nn.Sequential(_linear(dim, D), nn.LayerNorm(D), nn.ReLU(), _linear(D, D), nn.LayerNorm(D), nn.ReLU())


def _hide_absent(features: Tensor, present: Tensor, dims: list[int]) -> Tensor:
    """Zero the columns of absent teachers, so that not even a NaN reaches a result or a gradient."""
    repeats = torch.tensor(dims, device=features.device)
    return features.masked_fill(~present.repeat_interleave(repeats, dim=1, output_size=sum(dims)), 0.0)


def _fold_projections(student: Student) -> tuple[Tensor, Tensor]:
    """(x - mean) / scale @ W + b as x @ weight + bias: [sum of dims, D] in the student's dtype, [N, D] in float64."""
    folded, biases = student.qkv.new_empty(sum(student.dims), student.config.dim), []
    means = student.feature_mean.double().split(student.dims)
    scales = student.feature_scale.double().split(student.dims)
    targets = folded.split(student.dims)
    for linear, mean, scale, target in zip(student.projections, means, scales, targets, strict=True):
        assert isinstance(linear, nn.Linear)
        weight = linear.weight.double().T / scale[:, None]
        target.copy_(weight)
        biases.append(linear.bias.double() - mean @ weight)
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
