"""The student: one token per teacher, a small self-attention stack, the mean, a head (Shazam, arXiv 2503.00736)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MismatchError, ShazamError
from ..ops import dispatch as ops
from ..runtime.checks import require_path
from .config import StudentConfig
from .folded import FoldedStudent
from .influence import withhold
from .layers import Projection, ResidualBlocks, TeacherHeads, empty_linear, fill_uniform, with_votes
from .levels import L, LevelTrunk
from .output import StudentOutput
from .predicting import Predictor
from .saving.files import write_student


class Student(Predictor):
    """Shazam's student network.

    Features are [B, sum of dims], the teachers side by side in the order of `config.teachers`.

    Args:
        config: teachers, classes, width and depth.
        generator: draws the initial parameters; PyTorch's global one by default.

    Attributes:
        feature_mean, feature_scale: by which features are standardised, learned on the training split, [sum of dims].
        frozen_targets: fixed random maps that it was distilled from (`targets="frozen"`); None otherwise.
        teacher_heads: classifiers on each teacher's token (tokens [B, N, D] -> logits [B, N, C]) that it was trained
            with; None otherwise. Their mean weighs three quarters in the logits of `forward`.
        training_record: how it was trained, plain values that are saved as JSON.

    >>> import torch
    >>> from shazam_fast import StudentConfig
    >>> student = Student(StudentConfig({"uni": 8, "gigapath": 6}, ("normal", "tumor"), dim=8, depth=2)).eval()
    >>> output = student(torch.ones(3, 14))
    >>> output.logits.shape, output.fused.shape, output.shares.shape
    (torch.Size([3, 2]), torch.Size([3, 8]), torch.Size([3, 2]))
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
        layers = L * K if config.block == "levels" else K
        self.qkv = nn.Parameter(torch.empty(layers, D, 3 * D))  # x W: query, key and value side by side
        with torch.no_grad():
            fill_uniform([self.qkv], D, generator)
        self.blocks = ResidualBlocks(len(self.dims), D, K, generator) if config.block == "residual" else None
        self.levels = LevelTrunk(config.teachers, D, K, generator) if config.block == "levels" else None
        bend = nn.ReLU() if self.levels is None else nn.GELU()
        self.head = nn.Sequential(empty_linear(D, D), bend, nn.LayerNorm(D), empty_linear(D, len(config.classes)))
        with torch.no_grad():
            for linear in (self.head[0], self.head[3]):
                fill_uniform(linear.parameters(), D, generator)
        self.frozen_targets: Projection | None = None
        self.teacher_heads: TeacherHeads | None = None
        self.training_record: dict[str, Any] = {}

    def forward(self, features: Tensor, present: Tensor | None = None) -> StudentOutput:
        """Logits, fused feature and teacher shares of a batch.

        Args:
            features: [B, sum of dims], any float dtype, as stored (they are standardised here).
            present: bool [B, N], which teachers a patch has (at least one, of each level); None when it has all.
                Features of missing teachers have no influence, whatever they hold, NaN included.

        Returns logits [B, C], fused [B, D] and shares [B, N] (None but for bare students). With teacher heads, logits
        are a quarter of the head's and three quarters of the teachers' mean, in which a missing one counts 0.

        Raises MismatchError when the features are no tensor of that width; `predict` takes arrays too.
        """
        return self._predict(self.tokens(features, present), present)

    def tokens(
        self,
        features: Tensor,
        present: Tensor | None = None,
        rows: Tensor | None = None,
        scale: Tensor | None = None,
        mixture: Tensor | None = None,
    ) -> Tensor:
        """Standardised features projected to one token per teacher, eq. (1). [B, N, D].

        Args:
            features, present: as for `forward`.
            rows: int64 [B]; then `features` is a table [R, sum of dims] and these its rows that make up the batch.
            scale: what the features are divided by in place of `feature_scale`, [sum of dims]; infinity leaves a column
                out.
            mixture: s in [0, 1], [1]; then every patch's features are s of its own + 1 - s of those of the patch as far
                from the batch's end as it is from its start; None: its own.
        """
        tokens = self._project(self.projection, features, present, rows, scale)
        if mixture is not None:  # mixes the features: the map is linear
            tokens = mixture * tokens + (1.0 - mixture) * tokens.flip(0)
        return tokens if self.blocks is None else self.blocks.deepen(tokens)

    def fuse(self, tokens: Tensor, present: Tensor | None = None) -> StudentOutput:
        """Attention over `tokens` [B, N, D], their mean and the head, without teacher heads; `present` as there."""
        if self.levels is not None:
            outputs = self.levels(tokens, self.qkv, present)
            return StudentOutput(self.head(outputs[-1]), outputs[-1], None, outputs)
        if self.blocks is None:
            fused, shares = ops.bare_stack(tokens, self.qkv, present)
            return StudentOutput(self.head(fused), fused, shares)
        fused = self.blocks.attend(tokens, self.qkv, present)
        return StudentOutput(self.head(fused), fused, None)

    def withhold(self, features: Tensor, keep: Tensor, present: Tensor | None = None) -> StudentOutput:
        """As `forward`, with the logits under other masks too; the projections are computed once.

        Args:
            features, present: as for `forward`.
            keep: bool [E, N]; row e has the teachers that are kept, of those that a patch has: at least one, of each
                level.

        Returns the output, whose `withheld` [E, B, C] has the logits under each row of `keep`.
        """
        return withhold(self._predict, self.tokens(features, present), keep, present)

    @torch.no_grad()
    def fixed_targets(self, features: Tensor, present: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Standardised features through `frozen_targets`; arguments as for `tokens`. [B, N, D]."""
        if self.frozen_targets is None:
            raise ShazamError("targets='frozen' needs a student with frozen_targets; train() makes them")
        return self._project(self.frozen_targets, features, present, rows)

    def freeze_targets(self, generator: torch.Generator | None = None) -> None:
        """Draw the fixed random linear maps of `targets="frozen"`.

        Args:
            generator: draws them; PyTorch's global one by default.
        """
        self.frozen_targets = Projection(self.dims, self.config.dim, generator).requires_grad_(False)

    def add_teacher_heads(self, generator: torch.Generator | None = None) -> None:
        """Draw a classifier on each teacher's token, for training with `teacher_heads` above 0.

        Args:
            generator: draws the initial values; PyTorch's global one by default.
        """
        config = self.config
        heads = TeacherHeads(len(self.dims), config.dim, len(config.classes), generator)
        self.teacher_heads = heads.to(self.qkv)

    def fold(self) -> FoldedStudent:
        """The same function with all linear maps multiplied out, for scoring. Exact.

        Raises ShazamError for all but bare students, which cannot be folded.
        """
        standard = self.feature_mean, self.feature_scale
        return FoldedStudent(self.config, self.projection, standard, self.qkv, self.head, self.teacher_heads)

    def save(self, path: str | Path) -> None:
        """Write `student.json` and `student.safetensors` into the directory `path`; `shazam_fast.load` reads them.

        And `README.md`, a model card for the Hugging Face Hub: teachers with licences, data, results. Numbers that the
        training record lacks are called unknown. A `README.md` that someone else wrote stays as it is.

        Raises ShazamError when they cannot be written.
        """
        write_student(require_path("path", path), self.config, self.state_dict(), self.training_record)

    def _predict(self, tokens: Tensor, present: Tensor | None) -> StudentOutput:
        """What `fuse` gives, with the teacher heads' say in the logits."""
        output = self.fuse(tokens, present)
        if self.teacher_heads is not None:
            output.logits = with_votes(output.logits, self.teacher_heads.mean(tokens, present))
        return output

    def _project(
        self,
        maps: Projection,
        features: Tensor,
        present: Tensor | None,
        rows: Tensor | None,
        scale: Tensor | None = None,
    ) -> Tensor:
        _require_tensor(features)
        if features.ndim != 2 or features.shape[1] != sum(self.dims):
            raise MismatchError(
                f"features [B, {sum(self.dims)}] expected for teachers {dict(self.config.teachers)}, "
                f"found {list(features.shape)}"
            )
        standard = (self.feature_mean, self.feature_scale if scale is None else scale)
        tokens: Tensor = maps(features, rows, standard, present)
        return tokens


def _require_tensor(features: object) -> None:
    if not isinstance(features, Tensor):
        found = type(features).__name__
        raise MismatchError(f"features: a tensor expected, found {found}; predict() and predict_proba() take arrays")
