"""Students of one shape on a leading axis S: every operation of `Student`, for all of them in one call.

Shapes: S students, B patches, N teachers, D model width, K layers, C classes. All students see the same patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.stacked import attend, bare_stack, linear, mean_tokens, project
from .layers import with_votes
from .student import Student

MAPS = ("projection.weight", "frozen_targets.weight")  # [sum of dims, D]: kept as one tensor per teacher


class StackedStudents:
    """The parameters of students of one shape, stacked, and the students' function of them.

    Args:
        students: students whose configurations are equal.

    Attributes:
        tensors: the students' parameters by name, [S, *shape of one]; the maps of each teacher apart, as
            "projection.weight/0", so that the gradient of one needs no copy.
    """

    def __init__(self, students: Sequence[Student]) -> None:
        self.config, self._dims = students[0].config, students[0].dims
        self.tensors: dict[str, Tensor] = {}
        everyone = [dict(student.named_parameters()) for student in students]
        for name, parameter in everyone[0].items():
            stacked = torch.stack([one[name].detach() for one in everyone])
            for key, tensor in self._apart(name, stacked).items():
                self.tensors[key] = tensor.requires_grad_(parameter.requires_grad)

    def __len__(self) -> int:
        return len(self.tensors["qkv"])

    def parameters_of(self, index: int) -> dict[str, Tensor]:
        """A copy of one student's parameters, by their names in `Student`."""
        found = {}
        for name, tensor in self.tensors.items():
            whole, _, part = name.partition("/")
            if not part:
                found[name] = tensor.detach()[index].clone()
            elif part == "0":
                maps = [self.tensors[f"{whole}/{i}"].detach()[index] for i in range(len(self._dims))]
                found[whole] = torch.cat(maps)
        return found

    def keep(self, indices: Tensor) -> None:
        """Keep these students alone, int64 [kept]."""
        for name, tensor in self.tensors.items():
            self.tensors[name] = tensor.detach()[indices].requires_grad_(tensor.requires_grad)

    def tokens(self, columns: Sequence[Tensor]) -> Tensor:
        """One token per teacher, eq. (1).

        Args:
            columns: standardised features of each teacher, [B, dim]; 0 where the teacher is missing.

        Returns [S, B, N, D].
        """
        tokens = self._project("projection", columns)
        if self.config.block == "bare":
            return tokens
        S, B, N, D = tokens.shape
        hidden = self._norm("blocks.first_norm", tokens).relu().transpose(1, 2).reshape(S * N, B, D)
        weight, bias = (self.tensors[f"blocks.second_{kind}"].flatten(0, 1) for kind in ("weight", "bias"))
        hidden = linear(hidden, weight, bias).view(S, N, B, D).transpose(1, 2)
        return self._norm("blocks.second_norm", hidden).relu()

    @torch.no_grad()
    def fixed_targets(self, columns: Sequence[Tensor]) -> Tensor:
        """Features through the students' `frozen_targets`; arguments as for `tokens`. [S, B, N, D]."""
        return self._project("frozen_targets", columns)

    def fuse(self, tokens: Tensor, present: Tensor | None) -> Tensor:
        """Attention and the mean of tokens [S, B, N, D]; `present` bool [B, N]. -> fused [S, B, D]."""
        if self.config.block == "bare":
            return bare_stack(tokens, self.tensors["qkv"], present)
        S, B, N, D = tokens.shape
        there = None if present is None else present.repeat(S, 1)  # [S*B, N]
        x = tokens if present is None else tokens.masked_fill(~present[:, :, None], 0.0)
        x = x.reshape(S, B * N, D)
        layers = self.tensors["qkv"].unbind(1)
        names = ("qkv_bias", "out_weight", "out_bias", "norm.weight", "norm.bias")
        maps = [self.tensors[f"blocks.{name}"].unbind(1) for name in names]
        for weight, bias, out, offset, gain, shift in zip(layers, *maps, strict=True):
            attended = attend(linear(x, weight, bias).view(-1, 3 * D), N, there, pooled=False)
            x = x + linear(attended.view(S, B * N, D), out, offset)
            x = torch.addcmul(shift[:, None], F.layer_norm(x, (D,)), gain[:, None])
        return mean_tokens(x.view(S * B, N, D), there).view(S, B, D)

    def predict(self, columns: Sequence[Tensor]) -> Tensor:
        """Logits as `Student.forward` gives them, of patches that have all teachers; as for `tokens`. [S, B, C]."""
        tokens = self.tokens(columns)
        logits = self.classify(self.fuse(tokens, None))
        if "teacher_heads.weight" not in self.tensors:
            return logits
        return with_votes(logits, self.classify_tokens(tokens).mean(dim=2))

    def classify(self, fused: Tensor) -> Tensor:
        """The heads' logits of fused features. [S, B, D] -> [S, B, C]."""
        own = self.tensors
        hidden = linear(fused, own["head.0.weight"].mT, own["head.0.bias"]).relu()
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        hidden = torch.addcmul(own["head.2.bias"][:, None], hidden, own["head.2.weight"][:, None])
        return linear(hidden, own["head.3.weight"].mT, own["head.3.bias"])

    def classify_tokens(self, tokens: Tensor) -> Tensor:
        """The logits of the students' `teacher_heads`. [S, B, N, D] -> [S, B, N, C]."""
        weight = self.tensors["teacher_heads.weight"].flatten(0, 1)  # [S*N, D, C]
        bias = self.tensors["teacher_heads.bias"].flatten(0, 1)  # [S*N, C]
        S, B, N, D = tokens.shape
        rows = tokens.transpose(1, 2).reshape(S * N, B, D)
        return linear(rows, weight, bias).view(S, N, B, -1).transpose(1, 2)

    def _apart(self, name: str, stacked: Tensor) -> dict[str, Tensor]:
        if name not in MAPS:
            return {name: stacked}
        return {f"{name}/{i}": part.contiguous() for i, part in enumerate(stacked.split(self._dims, dim=1))}

    def _project(self, which: str, columns: Sequence[Tensor]) -> Tensor:
        """Every teacher's columns [B, dim] through the students' maps `which`. [S, B, N, D]."""
        weights = [self.tensors[f"{which}.weight/{i}"] for i in range(len(columns))]
        return project(columns, weights, self.tensors[f"{which}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        """A LayerNorm with a gain and a shift of every teacher. [S, B, N, D]."""
        gain, shift = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]  # [S, N, D]
        return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:]), gain[:, None])
