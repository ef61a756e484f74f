"""The folded student: a trained bare student with all linear maps multiplied out, for scoring."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _core
from ..errors import ShazamError
from ..ops import dispatch as ops
from .config import StudentConfig
from .layers import Projection


class FoldedStudent(nn.Module):
    """A trained bare student for scoring: standardisation, value maps and LayerNorm gain are folded away.

    With C_0 = I: B_l = C_{l-1} Wq_l Wk_l^T C_{l-1}^T / sqrt(D), C_l = C_{l-1} Wv_l. Folded in float64, kept in the
    student's dtype. Three times fewer attention FLOPs, and the teacher shares come as a by-product.

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

    def __init__(
        self,
        config: StudentConfig,
        projection: Projection,
        standard: tuple[Tensor, Tensor],
        qkv: Tensor,
        head: nn.Sequential,
    ) -> None:
        super().__init__()
        self.config = config
        if config.block != "bare":
            raise ShazamError(
                f"only bare students fold exactly; this one is {config.block!r}: score with the student itself"
            )
        self.dims = projection.dims
        dtype = qkv.dtype
        with torch.no_grad():
            weight, bias = _fold_projection(projection, standard)
            score_maps, value_map = _fold_attention(qkv)
            folded_head = _fold_head(head, value_map)
        tensors = {"weight": weight, "bias": bias, "score_maps": score_maps}
        tensors |= {"value_map": value_map, **folded_head}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(dtype))

    def infer(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """features [B, sum of dims] as stored, not standardised -> logits [B, C], teacher shares [B, N]."""
        pooled, w = self._pool(features, present)
        return self._classify(pooled), w

    def infer_fused(self, features: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`infer`, and the fused feature t [B, D] behind the logits."""
        pooled, w = self._pool(features, present)
        return self._classify(pooled), w, pooled @ self.value_map

    def to_core(self) -> _core.FoldedStudent | None:
        """The same in the C++ core, one call per tile of patches and thread; None where the core cannot run it."""
        if not ops.runs_in_core(self.weight, len(self.dims)):
            return None
        names = ("weight", "bias", "score_maps", "head_weight_1", "head_bias_1", "head_weight_2", "head_bias_2")
        return _core.FoldedStudent(self.dims, *(getattr(self, name).contiguous().numpy() for name in names))

    def _pool(self, features: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """w T [B, D], w [B, N]."""
        tokens = ops.project(features, None, None, self.weight, self.bias, self.dims, present)  # [B, N, D]
        return ops.folded_stack(tokens, self.score_maps, present)

    def _classify(self, pooled: Tensor) -> Tensor:
        hidden = torch.addmm(self.head_bias_1, pooled, self.head_weight_1).relu_()
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        return torch.addmm(self.head_bias_2, hidden, self.head_weight_2)


def _fold_projection(projection: Projection, standard: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(x - mean) / scale @ W + b as x @ weight + bias: [sum of dims, D] in the student's dtype, [N, D] in float64."""
    dims, biases = projection.dims, []
    folded = torch.empty_like(projection.weight)
    means, scales = (x.double().split(dims) for x in standard)
    parts = zip(projection.weight.split(dims), projection.bias, means, scales, folded.split(dims), strict=True)
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
