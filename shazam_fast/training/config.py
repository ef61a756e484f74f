"""What decides a training, with the recommended values as defaults and named presets. Imports no torch, for the CLI."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from ..errors import ShazamError
from ..runtime.checks import require_choice, require_count, require_number, require_switch
from ..student.config import StudentConfig, check_shape
from .choices import SCHEDULES, SELECTIONS, SHUFFLES, check_objective

if TYPE_CHECKING:
    from torch import Tensor

    from .objective import Objective

MOST_SEED = (1 << 63) - 1  # what PyTorch's generators take
MOST_THREADS = 256  # a step has never work for so many; more are a slip of the pen

# What a preset changes. "recommended" was found by benchmarks/search_recipe.py; the others are the paper's two tasks,
# with its lambda, and the authors' released scripts, first and later versions.
PAPER: Mapping[str, Any] = {
    "epochs": 100,
    "weight_decay": 1e-3,
    "schedule": "constant",
    "lam": 0.5,
    "balance": 0.0,
    "teacher_heads": 0.0,
    "mixup": 0.0,
    "dim": 128,
    "depth": 5,
    "feature_dropout": 0.0,
    "selection": "best",
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "recommended": {},
    "unitopatho": PAPER,
    "huncrc": {**PAPER, "lam": 0.05},
    "authors_script": {
        **PAPER,
        "block": "residual",
        "huber": "elementwise",
        "targets": "frozen",
        "standardize": False,
        "epochs": 50,
        "patience": 10,
    },
    "authors_levels": {
        **PAPER,
        "block": "levels",
        "depth": 4,
        "lam": 0.01,
        "huber": "elementwise",
        "standardize": False,
        "patience": 30,
    },
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training; the defaults are the preset "recommended".

    Args:
        epochs: passes over the training split, at most.
        batch_size: patches per step, at most those of the training split; where it is not given, 64, or all of a
            smaller training split.
        shuffle: "full": every epoch takes the patches in any order; or "blocks": in runs of patches that lie together,
            mixed with those of 127 other runs, as features that do not fit in memory are read fast; see `block_order`.
        lr, weight_decay: learning rate (> 0) and weight decay (>= 0) of AdamW.
        schedule: "constant", or "one_cycle": the learning rate rises to `lr` in the first 30% of the steps and falls to
            almost 0 in the rest, both along a cosine.
        lam: weight of the two distillation losses, lambda of eq. (9); 0 leaves cross-entropy alone.
        delta: distance at which the Huber loss turns from quadratic to linear, > 0.
        huber: "norm", the Huber loss of the distance |t - T_i| (eqs. 6, 7), or "elementwise" (the authors' script).
        targets: what to distil from: "projected", the student's own tokens T_i with their gradient (eqs. 5, 6);
            "detached", the same without gradient; "frozen", fixed random maps (the authors' script).
        balance: how far classes are made to count alike, >= 0: this times the log of each class's frequency is added
            to its logit in training alone. 0: patches count alike (the paper); 1: the student learns to predict as if
            all classes were equally frequent; a student that fits all its training patches needs more for that.
        teacher_heads: weight, >= 0, of the mean cross-entropy of a linear head on each teacher's token.
        mixup: a, >= 0, of mixup: each step draws s from Beta(a, a) and mixes every patch's features and loss, s parts
            of its own and 1 - s of another patch's of the batch; a missing feature counts as its mean. 0: none.
        dim: width D of the student.
        depth: number K of its attention layers; with block "levels", of those of each level.
        block: "bare" (the paper), "residual" (the authors' script), or "levels" (the paper's later versions) for
            archives with low, mid and high features of each teacher.
        teacher_dropout: probability, 0 <= p < 1, that a teacher of a patch is left out in a training step.
        feature_dropout: probability, 0 <= p < 1, that a column of the features is left out (set to its mean) in a
            training step; the others are divided by 1 - p.
        standardize: scale every feature to mean 0 and variance 1 of the training split.
        selection: the epoch that is kept: "best", that of the best validation score, or "last", for which the
            validation split decides nothing.
        patience: with selection "best", stop after this many epochs without a better validation score.
        seed: random seed, 0 or more; the same seed on the same device with the same `threads` gives the same bits.
        device: "cpu", "cuda" or "cuda:1"; by default a GPU if PyTorch finds one.
        threads: of the CPU's computations, at most 256; by default as many as a step has work for (one per 67 million
            multiplications), at most one per core that the process may use. It changes the student's last bits only,
            is recorded in it, and stays as it was when a training is resumed. More than there are cores are slow, and
            warned of.
        backend: "auto", "triton" (an error where its kernels do not apply) or "reference" (plain PyTorch).
        precision: of matrix products on a GPU: "ieee" float32, "tf32", or operands in "bf16" or "fp16". Parameters,
            sums, scores, softmax and losses are float32 in all of them.
        checkpoint_seconds: seconds between two checkpoints (only with an output directory).

    Raises ShazamError naming the first option that is out of range or unknown.

    >>> TrainConfig(epochs=10, lr=3e-4).batch_size
    64
    """

    epochs: int = 40
    batch_size: int = 64
    shuffle: str = "full"
    lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "one_cycle"
    lam: float = 0.0
    delta: float = 1.0
    huber: str = "norm"
    targets: str = "projected"
    balance: float = 1.0
    teacher_heads: float = 2.0
    mixup: float = 0.4
    dim: int = 64
    depth: int = 2
    block: str = StudentConfig.block
    teacher_dropout: float = StudentConfig.teacher_dropout
    feature_dropout: float = 0.5
    standardize: bool = True
    selection: str = "last"
    patience: int = 20
    seed: int = 0
    device: str | None = None
    threads: int | None = None
    backend: str = "auto"
    precision: str = "ieee"
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        checked = {
            **{name: require_count(name, getattr(self, name)) for name in ("epochs", "batch_size", "patience")},
            "shuffle": require_choice("shuffle", self.shuffle, SHUFFLES),
            "lr": require_number("lr", self.lr, above=0.0),
            "weight_decay": require_number("weight_decay", self.weight_decay, 0.0),
            "schedule": require_choice("schedule", self.schedule, SCHEDULES),
            "selection": require_choice("selection", self.selection, SELECTIONS),
            "balance": require_number("balance", self.balance, 0.0),
            "mixup": require_number("mixup", self.mixup, 0.0),
            "feature_dropout": require_number("feature_dropout", self.feature_dropout, 0.0, 1.0),
            "standardize": require_switch("standardize", self.standardize),
            "seed": require_count("seed", self.seed, 0, MOST_SEED),
            "threads": None if self.threads is None else require_count("threads", self.threads, most=MOST_THREADS),
            "checkpoint_seconds": require_number("checkpoint_seconds", self.checkpoint_seconds, 0.0),
            **check_objective(self.lam, self.delta, self.huber, self.targets, self.teacher_heads),
            **check_shape(self.dim, self.depth, self.block, self.teacher_dropout),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> Self:
        """A named configuration with some fields changed.

        Args:
            preset: "recommended" (the defaults), "unitopatho", "huncrc" (the paper's two tasks), "authors_script" (the
                released script) or "authors_levels" (the scripts of the later versions, for features of three levels).
            overrides: fields of `TrainConfig` by name.

        Raises ShazamError when there is no such preset, or a field is out of range or unknown.

        >>> TrainConfig.from_preset("huncrc", seed=1).lam
        0.05
        """
        if preset not in PRESETS:
            raise ShazamError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[preset], **overrides})

    def objective(self, counts: "Tensor | None" = None) -> "Objective":
        """The objective that this configuration trains with.

        Args:
            counts: training patches of every class, at least one each, [C], on the device of the student; with
                `balance` 0 they are not needed.
        """
        from .objective import Objective

        offsets = None
        if self.balance:
            assert counts is not None
            offsets = self.balance * (counts / counts.sum()).log()
        return Objective(self.lam, self.delta, self.huber, self.targets, self.teacher_heads, offsets)

    def student(self, teachers: Mapping[str, int], classes: Sequence[str]) -> StudentConfig:
        """The student that this configuration trains for teachers {name: dim} and class names."""
        return StudentConfig(teachers, tuple(classes), self.dim, self.depth, self.block, self.teacher_dropout)

    def fit_batch(self, n_rows: int) -> Self:
        """The same with a batch of at most the `n_rows` patches of a training split."""
        return replace(self, batch_size=max(1, min(self.batch_size, n_rows)))

    def job(self, archive: Mapping[str, str]) -> dict[str, Any]:
        """What makes two trainings the same; `archive` has the fingerprints of what they read."""
        job = asdict(self)
        for name in ("device", "threads", "backend", "checkpoint_seconds"):
            del job[name]
        return {**job, **archive}


def resolve_config(config: TrainConfig | None, preset: str | None, overrides: dict[str, Any]) -> TrainConfig:
    """A configuration or a preset, with single fields changed. Raises ShazamError naming an unknown option."""
    unknown = sorted(set(overrides) - {field.name for field in fields(TrainConfig)})
    if unknown:
        known = ", ".join(field.name for field in fields(TrainConfig))
        raise ShazamError(f"train() has no option {', '.join(unknown)}; options are {known}")
    if config is not None and preset is not None:
        raise ShazamError("give either a config or a preset, not both")
    if config is not None and not isinstance(config, TrainConfig):
        raise ShazamError(
            f"config: a TrainConfig expected, found {config!r}; write train(archive, epochs=1), or "
            "train(archive, TrainConfig(epochs=1))"
        )
    if preset is not None:
        return TrainConfig.from_preset(preset, **overrides)
    return replace(config or TrainConfig(), **overrides)
