"""What a step of training is given, without a word of Triton: see `fused`."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Trained(NamedTuple):
    """A parameter and its state in the optimizer, all changed in place: means of gradients and of their squares."""

    value: Tensor
    step: Tensor  # scalar, float32
    mean: Tensor
    square: Tensor


class Residual(NamedTuple):
    """What a residual student trains beside what a bare one does."""

    first_gain: Trained  # [N, D], of the norm behind the projection
    first_shift: Trained
    second: Trained  # [N, D, D], x W
    second_bias: Trained  # [N, D]
    second_gain: Trained  # [N, D]
    second_shift: Trained
    qkv_bias: Trained  # [K, 3D]
    out: Trained  # [K, D, D], x W
    out_bias: Trained  # [K, D]
    gain: Trained  # [K, D], of the layers' norms
    shift: Trained


class Parameters(NamedTuple):
    """All that a student trains."""

    projection: Trained  # [sum of dims, D]
    projection_bias: Trained  # [N, D]
    qkv: Trained  # [K, D, 3D]
    first: Trained  # [D, D], as of nn.Linear
    first_bias: Trained
    gain: Trained  # [D]
    shift: Trained
    last: Trained  # [C, D], as of nn.Linear
    last_bias: Trained
    votes: Trained | None = None  # heads of the teachers, [N, D, C]
    votes_bias: Trained | None = None  # [N, C]
    residual: Residual | None = None

    @classmethod
    def collect(cls, trained: Sequence[Trained], blocks: Sequence[Trained]) -> "Parameters":
        """From what is trained in the order of the fields, and in that of `Residual`, empty for a bare student."""
        votes = trained[9:] or (None, None)
        return cls._make([*trained[:9], *votes, Residual(*blocks) if blocks else None])

    @property
    def head(self) -> tuple[Trained, ...]:
        """From `first` to `last_bias`."""
        return self[3:9]

    @property
    def all(self) -> list[Trained]:
        """One after another."""
        votes = [trained for trained in (self.votes, self.votes_bias) if trained is not None]
        return [self.projection, self.projection_bias, self.qkv, *self.head, *votes, *(self.residual or ())]


class Projected(NamedTuple):
    """Tokens of a batch as the projection leaves them: one by one, or in parts of columns without the bias."""

    tokens: Tensor  # [B, N or parts, D]
    firsts: Tensor | None  # first part of every teacher, and the end; None: no parts
    most: int  # parts of a teacher
    bias: Tensor  # [N, D]


class Settings(NamedTuple):
    """What does not change from step to step."""

    optimizer: Tensor  # learning rate, weight decay and both betas, float64 [4], on the device
    lam: float
    delta: float
    norm: bool  # whether the Huber loss is of the norm
    learned_targets: bool  # whether targets get a gradient
    offsets: Tensor | None  # of the logits [C]
    class_weights: Tensor | None  # [C]
    votes: float  # weight of the mean cross-entropy of the teachers' heads
    kept_part: float  # of the columns that feature dropout keeps
    precision: str


class Batch(NamedTuple):
    """Where a kernel finds the next batch; all on the device."""

    features: Tensor  # the table of the split [n, width], or the batch alone [B, width]
    resident: bool  # whether it is the table
    order: Tensor  # positions in the split, as the epoch takes them, int64 [n]
    cursor: Tensor  # the batch's first in `order`, int64 [1]; a step moves it on
    labels: Tensor  # of the split, int64 [n]


class Source(NamedTuple):
    """What a step reads beside the parameters, and where its losses go."""

    batch: Batch
    dims: Sequence[int]  # columns of each teacher
    standard: tuple[Tensor, Tensor]  # mean and scale [width]
    present: Tensor | None  # bool [n, N]
    rates: Tensor | None  # learning rate of each step
    kept: Tensor | None  # bool [masks, sum of dims], taken in turns by the steps
    mixtures: Tensor | None  # of each step, what a patch keeps of its own features
    rate: Tensor | None  # the optimizer's, set to the step's
    step: Tensor  # its number in the epoch, int64 [1], moved on
    losses: Tensor  # [steps, terms]: total, cross-entropy, cosine, Huber (and head) per teacher; row `step` is filled
