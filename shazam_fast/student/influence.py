"""Influence of a teacher on a patch: what the predicted class's probability loses when the teacher is withheld.

It is exact through the mask of missing teachers, and needs one more recurrence per teacher: the teachers' tokens are
projected once. The attention share of a teacher is something else: its part in the fused feature, useful or not.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .config import StudentConfig
from .output import StudentOutput


def leave_one_out(config: StudentConfig) -> Tensor:
    """Masks of teachers, bool [E, N], on the CPU: row e keeps all but those of encoder e.

    >>> leave_one_out(StudentConfig({"uni": 8, "gigapath": 6}, ("normal", "tumor"))).tolist()
    [[False, True], [True, False]]
    """
    encoders = torch.tensor(config.encoders, device="cpu")
    return torch.arange(len(config.encoder_names), device="cpu")[:, None] != encoders


def withhold(
    fuse: Callable[[Tensor, Tensor | None], StudentOutput], tokens: Tensor, keep: Tensor, present: Tensor | None
) -> StudentOutput:
    """The output for tokens [B, N, D], with the logits under each mask of `keep` [E, N].

    Args:
        fuse: from tokens and mask bool [B, N], None for all, to the output.
        tokens: [B, N, D].
        keep: bool [E, N].
        present: bool [B, N], which teachers a patch has; None: all.
    """
    output = fuse(tokens, present)
    there = keep.new_ones(tokens.shape[:2]) if present is None else present
    output.withheld = torch.stack([fuse(tokens, there & kept).logits for kept in keep.to(tokens.device)])
    return output


def influence_of(logits: Tensor, withheld: Tensor) -> Tensor:
    """How far the predicted class's probability lies above that without each encoder, [B, E].

    Above 0, the encoder speaks for the predicted class; below 0, against it.

    Args:
        logits: [B, C].
        withheld: the logits without each encoder in turn, [E, B, C].
    """
    probability, predicted = logits.softmax(dim=1).max(dim=1)  # [B], [B]
    without = withheld.softmax(dim=2)  # [E, B, C]
    return (probability - without.gather(2, predicted.expand(len(without), -1)[..., None])[..., 0]).T
