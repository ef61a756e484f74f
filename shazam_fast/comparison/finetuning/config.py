"""What decides a fine-tuning, with the paper's values as defaults. Imports no torch, for the CLI."""

from dataclasses import asdict, dataclass
from typing import Any

from ...runtime.checks import require_count, require_number
from ...training.config import MOST_SEED


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that decides a fine-tuning, but for the images and the teacher.

    Args:
        epochs: passes over the training images, at most.
        batch_size: images per step.
        backbone_lr, head_lr: learning rates (> 0) of the teacher and of the head.
        weight_decay: of AdamW, >= 0.
        patience: stop after this many epochs without a better validation score.
        seed: random seed of the head's parameters, the order of images and dropout; the same seed on the same CPU
            gives the same bits.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if PyTorch finds one. GPUs compute in bfloat16 or float16.
        workers: threads that decode images.
        checkpoint_seconds: seconds between two checkpoints (only with an output directory); one is also written after
            every epoch. It has four times the size of the teacher.

    Raises ShazamError naming the first option that is out of range.

    >>> FinetuneConfig(epochs=3).backbone_lr
    1e-05
    """

    epochs: int = 20
    batch_size: int = 32
    backbone_lr: float = 1e-5
    head_lr: float = 1e-3
    weight_decay: float = 1e-3
    patience: int = 5
    seed: int = 0
    device: str | None = None
    workers: int = 8
    checkpoint_seconds: float = 600.0

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "patience", "workers")
        checked = {
            **{name: require_count(name, getattr(self, name)) for name in counts},
            **{name: require_number(name, getattr(self, name), above=0.0) for name in ("backbone_lr", "head_lr")},
            "weight_decay": require_number("weight_decay", self.weight_decay, 0.0),
            "seed": require_count("seed", self.seed, 0, MOST_SEED),
            "checkpoint_seconds": require_number("checkpoint_seconds", self.checkpoint_seconds, 0.0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def job(self) -> dict[str, Any]:
        """The options that two fine-tunings with the same result have in common."""
        job = asdict(self)
        del job["device"], job["workers"], job["checkpoint_seconds"]
        return job
