"""What decides a training, with the paper's values as defaults and named presets. Imports no torch: the CLI does."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from ..errors import ShazamError
from ..student.config import StudentConfig

if TYPE_CHECKING:
    from .objective import Objective

# What a preset changes. lam of the paper's two tasks; the authors' released script.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "unitopatho": {"lam": 0.5},
    "huncrc": {"lam": 0.05},
    "authors_script": {
        "block": "residual",
        "huber": "elementwise",
        "targets": "frozen",
        "standardize": False,
        "epochs": 50,
        "patience": 10,
    },
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training; the defaults are the paper's.

    Args:
        epochs: passes over the training split, at most.
        batch_size: patches per step.
        lr, weight_decay: of AdamW.
        lam, delta, huber, targets: the objective, see `Objective`.
        dim, depth, block, teacher_dropout: the student, see `StudentConfig`.
        standardize: learn mean and scale of every feature on the training split.
        patience: epochs without a better validation score before stopping.
        seed: of everything random; the same seed on the same device gives the same bits.
        device: "cpu", "cuda", ...; a GPU when there is one.
        backend: "auto", "triton" (an error where its kernels do not apply) or "reference" (plain PyTorch).
        precision: of matrix products on a GPU: "ieee" float32, "tf32", or operands in "bf16" or "fp16". Parameters,
            sums, scores, softmax and losses are float32 in all of them.
        checkpoint_seconds: how often the state is saved (only with an output directory).
    """

    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-3
    lam: float = 0.5
    delta: float = 1.0
    huber: str = "norm"
    targets: str = "projected"
    dim: int = StudentConfig.dim
    depth: int = StudentConfig.depth
    block: str = StudentConfig.block
    teacher_dropout: float = StudentConfig.teacher_dropout
    standardize: bool = True
    patience: int = 20
    seed: int = 0
    device: str | None = None
    backend: str = "auto"
    precision: str = "ieee"
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ShazamError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.lr > 0 or self.weight_decay < 0:
            raise ShazamError(f"lr > 0 and weight_decay >= 0 expected, found {self.lr} and {self.weight_decay}")
        self.objective()

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> Self:
        """A named configuration ("unitopatho", "huncrc", "authors_script") with some fields changed."""
        if preset not in PRESETS:
            raise ShazamError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[preset], **overrides})

    def objective(self) -> "Objective":
        """The objective that this configuration trains with."""
        from .objective import Objective

        return Objective(self.lam, self.delta, self.huber, self.targets)

    def student(self, teachers: Mapping[str, int], classes: Sequence[str]) -> StudentConfig:
        """The student that this configuration trains for teachers {name: dim} and class names."""
        return StudentConfig(teachers, tuple(classes), self.dim, self.depth, self.block, self.teacher_dropout)

    def job(self, archive: Mapping[str, str]) -> dict[str, Any]:
        """What makes two trainings the same; `archive` is the fingerprint of what they read."""
        job = asdict(self)
        del job["device"], job["backend"], job["checkpoint_seconds"]
        return {**job, **archive}
