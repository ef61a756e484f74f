"""Output of a student, plain or folded, for a batch of patches."""

from collections.abc import Callable
from functools import cached_property

from torch import Tensor


class StudentOutput:
    """Result of a forward pass over B patches.

    `logits` [B, C] are always computed. `fused` and `shares` are computed when they are first read if they cost extra.

    Args:
        logits: [B, C].
        fused: [B, D], or a function that computes it.
        shares: [B, N], a function that computes them, or None where there are none (all blocks but "bare").
        outputs: of the block "levels", what is distilled: one tensor [B, D] per level, the last is `fused`.
        withheld: logits without each encoder in turn, [E, B, C]; None unless asked for.
    """

    def __init__(
        self,
        logits: Tensor,
        fused: Tensor | Callable[[], Tensor],
        shares: Tensor | Callable[[], Tensor] | None,
        outputs: tuple[Tensor, ...] = (),
        withheld: Tensor | None = None,
    ) -> None:
        self.logits, self.outputs, self.withheld = logits, outputs, withheld
        self._fused, self._shares = fused, shares

    @cached_property
    def fused(self) -> Tensor:
        """The fused feature t, the mean token of the last layer. [B, D]."""
        return self._fused if isinstance(self._fused, Tensor) else self._fused()

    @cached_property
    def shares(self) -> Tensor | None:
        """Exact share of each teacher in the fused feature [B, N], rows summing to 1; None but for "bare"."""
        return self._shares if self._shares is None or isinstance(self._shares, Tensor) else self._shares()
