"""The folded student: a trained bare student with all linear maps multiplied out, for scoring."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _core
from ..errors import ShazamError
from ..ops import dispatch as ops
from ..ops import halves
from ..ops.folding import fold_maps
from .config import StudentConfig
from .influence import withhold
from .layers import TEACHERS_SAY, Projection, TeacherHeads
from .output import StudentOutput
from .predicting import Predictor


class FoldedStudent(Predictor):
    """A trained bare student for scoring; made by `Student.fold`, for inference only.

    The features' scales, the value maps and the gain of the LayerNorm are multiplied into other maps. With C_0 = I:
    B_l = C_{l-1} Wq_l Wk_l^T C_{l-1}^T / sqrt(D), C_l = C_{l-1} Wv_l. Computed in float64, kept in the student's dtype,
    in tensors of its own. It needs a third of the attention FLOPs and gives the teacher shares as a by-product.

    The features' means are not folded into a bias but subtracted first, so columns whose mean is large for their spread
    (1e5 times as large, tests/student/test_folding.py) cost no accuracy that the student itself has.

    In float32, the student and its folded form both become inaccurate when attention logits are large. The largest
    error of 4,000 random patches is 5e-7 with logits up to 5, 3e-5 with logits of 50, 1e-3 with logits of 500 and more
    (some patch is then nearly a tie between two teachers); folded in float64 it is 4e-12. Trained bare students reach
    logits of 1e6. Where single patches matter, score with `student.double()`.

    >>> import torch
    >>> from shazam_fast import Student, StudentConfig
    >>> student = Student(StudentConfig({"uni": 8, "gigapath": 6}, ("normal", "tumor"), dim=8, depth=2)).eval()
    >>> student.fold()(torch.ones(3, 14)).shares.shape
    torch.Size([3, 2])
    """

    shift: Tensor  # the features' means, subtracted before the first product, [sum of dims]
    unit: Tensor  # ones: features are shifted, not scaled, [sum of dims]
    spread: Tensor  # the features' scales, [sum of dims]
    weight: Tensor  # all projections side by side, over the features' scales, [sum of dims, D]
    bias: Tensor  # [N, D]
    score_maps: Tensor  # all B_l side by side, [D, K*D]
    value_map: Tensor  # C_K [D, D]
    head_weight_1: Tensor  # [D, D], behind C_K
    head_bias_1: Tensor  # [D]
    head_weight_2: Tensor  # [D, C]
    head_bias_2: Tensor  # [C]
    votes: TeacherHeads | None  # the teacher heads, times their weight in the logits
    _token_halves: halves.TokenHalves | None = None  # see `split`
    _score_halves: halves.Halves | None = None

    def __init__(
        self,
        config: StudentConfig,
        projection: Projection,
        standard: tuple[Tensor, Tensor],
        qkv: Tensor,
        head: nn.Sequential,
        teacher_heads: TeacherHeads | None,
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
            mean, scale = standard
            weight = projection.weight.double() / scale.double()[:, None]
            score_maps, value_map = fold_maps(qkv)
            folded_head = _fold_head(head, value_map, 1.0 if teacher_heads is None else 1.0 - TEACHERS_SAY)
        tensors = {"shift": mean, "unit": torch.ones_like(mean), "spread": scale, "weight": weight}
        tensors |= {"bias": projection.bias, "score_maps": score_maps, "value_map": value_map, **folded_head}
        for name, tensor in tensors.items():  # copies: training the student further must not change this one
            self.register_buffer(name, tensor.detach().to(dtype, copy=True))
        self.votes = None if teacher_heads is None else deepcopy(teacher_heads).requires_grad_(False)
        for part in () if self.votes is None else self.votes.parameters():
            part.mul_(TEACHERS_SAY)

    def forward(self, features: Tensor, present: Tensor | None = None) -> StudentOutput:
        """As `Student.forward`; without gradients.

        Args:
            features: [B, sum of dims] as stored, not standardised.
            present: bool [B, N], which teachers a patch has (at least one each); None when it has all.

        Returns logits [B, C], fused [B, D] and shares [B, N].
        """
        return self._fuse(self._tokens(features, present), present, self._in_halves(features))

    def withhold(self, features: Tensor, keep: Tensor, present: Tensor | None = None) -> StudentOutput:
        """As `Student.withhold`; without gradients."""
        fuse = partial(self._fuse, in_halves=self._in_halves(features))
        return withhold(fuse, self._tokens(features, present), keep, present)

    def split(self) -> Self:
        """Keep the largest maps in two float16 parts too: a GPU then multiplies float16 features on its tensor cores.

        For float32 students, on the device where they compute. The error is no larger than float32's own, see
        `kernels/halves`; where it would be, maps stay as they are.
        """
        if self.weight.dtype == torch.float32:
            self._token_halves = halves.split_token_maps(self.weight, self.bias, self.shift, self.spread, self.dims)
            self._score_halves = halves.split_score_maps(self.score_maps)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._token_halves = self._score_halves = None  # whoever moves or converts the student splits it again
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _in_halves(self, features: Tensor) -> bool:
        """Whether products are taken in two parts: of float16 features, where kernels run and in full precision."""
        split = self._token_halves is not None and features.dtype == torch.float16
        return split and ops.kernel_precision("project", self.weight) == "ieee"

    def _tokens(self, features: Tensor, present: Tensor | None) -> Tensor:
        if self._token_halves is not None and self._in_halves(features):
            return halves.project(features, self._token_halves, present)
        maps = ops.TokenMaps(self.weight, self.bias, self.dims, (self.shift, self.unit))
        return ops.project(features, None, maps, present)  # [B, N, D]

    def _fuse(self, tokens: Tensor, present: Tensor | None, in_halves: bool) -> StudentOutput:
        if in_halves and self._score_halves is not None and ops.kernel_precision("folded_stack", tokens):
            pooled, shares = halves.folded_stack(tokens, self._score_halves, present)
        else:
            pooled, shares = ops.folded_stack(tokens, self.score_maps, present)  # w T [B, D], w [B, N]
        hidden = torch.addmm(self.head_bias_1, pooled, self.head_weight_1).relu_()
        hidden = F.layer_norm(hidden, hidden.shape[-1:])
        logits = torch.addmm(self.head_bias_2, hidden, self.head_weight_2)
        if self.votes is not None:
            logits = logits + self.votes.mean(tokens, present)
        return StudentOutput(logits, lambda: pooled @ self.value_map, shares)

    def to_core(self) -> _core.FoldedStudent | None:
        """The same in the C++ core, one call per tile of patches and thread; None where the core cannot run it."""
        if not ops.runs_in_core(self.weight, len(self.dims)):
            return None
        names = ("weight", "bias", "score_maps", "head_weight_1", "head_bias_1", "head_weight_2", "head_bias_2")
        tensors = [getattr(self, name).contiguous().numpy() for name in (*names, "shift")]
        votes = () if self.votes is None else (self.votes.weight, self.votes.bias)
        return _core.FoldedStudent(self.dims, *tensors, *(values.contiguous().numpy() for values in votes))


def _fold_head(head: nn.Sequential, value_map: Tensor, say: float) -> dict[str, Tensor]:
    """The head behind C_K, its logits times `say`, in float64."""
    first, _, norm, last = head
    assert isinstance(first, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(last, nn.Linear)
    last_weight = last.weight.double().T  # [D, C]
    return {
        "head_weight_1": value_map @ first.weight.double().T,
        "head_bias_1": first.bias.double(),
        "head_weight_2": say * norm.weight.double()[:, None] * last_weight,
        "head_bias_2": say * (last.bias.double() + norm.bias.double() @ last_weight),
    }
