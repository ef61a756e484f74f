"""Options of slide students and of their training. Imports no torch, for the command line."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import ShazamError
from ..runtime.checks import require_choice, require_count, require_number, require_switch
from ..student.config import MOST_DEPTH, MOST_DIM
from ..training.config import MOST_SEED

TASKS = ("classification", "multi_classification", "regression", "survival_nll", "survival_cox")
LOSSES = ("nll", "cox")  # of survival
MODELS = ("mean", "max", "abmil", "gated_abmil", "shazam_abmil", "fusecpath", "slide_linear")
COMPARED = ("mean", "max", "gated_abmil", "shazam_abmil")  # models that `crossvalidate` compares by default
SELECTED = "epochs were chosen on the folds that are reported, so these numbers are too good"
OF_CLUSTERS = ("fusecpath",)  # models that need the clusters of selected patches
TORCHMIL = "torchmil:"  # before the name of a model of torchmil
OF_SLIDE_TEACHERS = ("slide_linear",)  # models that read slide-level teachers, and no patch
DIRECTIONS = ("student_teacher", "teacher_student")  # of the KL divergence
PRECISIONS = ("ieee", "bf16")  # of the products of a training step
UNITS = ("slide", "patient")
OF_SHAPE = ("dim", "depth", "dropout", "top_k")  # fields of SlideConfig that a user sets for any model


def require_model(value: object) -> str:
    """`value`, the name of a model. Raises ShazamError for any other.

    >>> require_model("torchmil:TransMIL")
    'torchmil:TransMIL'
    """
    if isinstance(value, str) and value.startswith(TORCHMIL):
        return value  # whether torchmil has it is known when it is built
    return require_choice("model", value, (*MODELS, f"{TORCHMIL}NAME"))


@dataclass(frozen=True)
class SlideConfig:
    """Shape of a slide's student.

    Args:
        teachers: name -> feature dim, in the order in which features lie side by side.
        task: "classification", "multi_classification" (several columns of classes), "regression", "survival_nll" or
            "survival_cox".
        classes: class names in label order of "classification"; none for other tasks.
        model: "mean", "max", "abmil" (plain attention), "gated_abmil", "shazam_abmil" (fusion first), "fusecpath"
            (attention within and across the clusters of selected patches) or "slide_linear" (linear on the features of
            slide-level teachers, one or several side by side); or "torchmil:NAME", a model of torchmil.
        dim: width D of what is pooled.
        depth: attention layers over a patch's tokens, of "shazam_abmil"; within clusters, of "fusecpath".
        dropout: probability that a column of the pooled feature is left out in a training step.
        top_k: patches, or clusters, that each one attends to, of "fusecpath".
        slide_teachers: name -> feature dim of slide-level teachers, of "slide_linear" alone.
        targets: the columns of "multi_classification" with their class names, those of "regression" with none.

    Raises ShazamError naming the first option that is out of range or unknown.

    >>> SlideConfig({"uni": 1024}, "classification", ("luad", "lusc")).model
    'shazam_abmil'
    """

    teachers: Mapping[str, int]
    task: str
    classes: Sequence[str]
    model: str = "shazam_abmil"
    dim: int = 128
    depth: int = 1
    dropout: float = 0.25
    top_k: int = 8
    slide_teachers: Mapping[str, int] = field(default_factory=dict)
    targets: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked = {
            "teachers": dict(self.teachers),
            "task": require_choice("task", self.task, TASKS),
            "classes": tuple(self.classes),
            "model": require_model(self.model),
            "dim": require_count("dim", self.dim, 1, MOST_DIM),
            "depth": require_count("depth", self.depth, 1, MOST_DEPTH),
            "dropout": require_number("dropout", self.dropout, 0.0, 1.0),
            "top_k": require_count("top_k", self.top_k),
            "slide_teachers": dict(self.slide_teachers),
            "targets": {name: tuple(classes) for name, classes in self.targets.items()},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if (self.task == "classification") != (len(self.classes) > 1):
            raise ShazamError(
                f"classes: two or more for classification and none for other tasks, found {self.classes!r}"
            )
        least = {"multi_classification": 2, "regression": 0}.get(self.task)
        if (least is None) != (not self.targets) or any(len(names) < (least or 0) for names in self.targets.values()):
            raise ShazamError(
                "targets: columns of multi_classification, each with two or more classes, or of regression expected, "
                f"found {dict(self.targets)!r} for {self.task}"
            )

    @property
    def value_columns(self) -> list[str]:
        """Names of the columns of a prediction."""
        return value_columns(self.classes, self.targets)


def value_columns(classes: Sequence[str], targets: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of the columns of a prediction.

    Args:
        classes: of a single column; none for other tasks.
        targets: several columns with their classes, or columns of numbers with none; none for survival.

    >>> value_columns((), {"TP53": ("wild", "mutated")})
    ['probability_TP53_wild', 'probability_TP53_mutated']
    """
    if classes:
        return [f"probability_{name}" for name in classes]
    if any(targets.values()):
        return [f"probability_{column}_{name}" for column, names in targets.items() for name in names]
    return [f"value_{column}" for column in targets] or ["risk"]


@dataclass(frozen=True)
class FitOptions:
    """How a model is fitted.

    Args:
        epochs: passes over the training slides, at most.
        batch_size: slides per step, on average.
        patches: most patches of a slide in an epoch; of larger slides this many are drawn anew in each epoch.
            Validation and test read all patches.
        lr, weight_decay: learning rate (> 0) and weight decay (>= 0) of AdamW.
        patience: stop after this many epochs without a smaller validation loss.
        distillation: weight a of distillation from slide-level teachers, 0 to 1, where there are any; the task has 1-a.
        temperature: tau of distillation; by default 3 for classes, 1 for survival.
        kl: "student_teacher" for KL(student || teacher), the paper's, or "teacher_student", the released code's.
        supervise_teachers: whether the slide-level teachers' predictions are trained on the task too.
        precision: of the products of matrices in a training step: "ieee" (float32), or "bf16", operands and results
            rounded to bfloat16, which processors with AVX-512 BF16 or AMX multiply twice as fast (others more slowly).
            Parameters, sums, softmax and losses are float32, and so are validation, test and scoring.
        seed: random seed, 0 or more, also of the folds; the same seed on the same device gives the same bits.

    Raises ShazamError naming the first option that is out of range.

    >>> FitOptions(epochs=5).patches
    1024
    """

    epochs: int = 100
    batch_size: int = 16
    patches: int = 1024
    lr: float = 1e-3
    weight_decay: float = 1e-3
    patience: int = 30
    distillation: float = 0.5
    temperature: float | None = None
    kl: str = "student_teacher"
    supervise_teachers: bool = True
    precision: str = "ieee"
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {name: require_count(name, getattr(self, name)) for name in ("epochs", "batch_size", "patience")}
        checked = {
            **counts,
            "patches": require_count("patches", self.patches),
            "lr": require_number("lr", self.lr, above=0.0),
            "weight_decay": require_number("weight_decay", self.weight_decay, 0.0),
            "distillation": require_number("distillation", self.distillation, 0.0, math.nextafter(1.0, 2.0)),
            "kl": require_choice("kl", self.kl, DIRECTIONS),
            "supervise_teachers": require_switch("supervise_teachers", self.supervise_teachers),
            "precision": require_choice("precision", self.precision, PRECISIONS),
            "seed": require_count("seed", self.seed, 0, MOST_SEED),
        }
        if self.temperature is not None:
            checked["temperature"] = require_number("temperature", self.temperature, above=0.0)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def job(self) -> dict[str, Any]:
        """What makes two fits the same; a fit that was begun before there was `precision` goes on."""
        content = asdict(self)
        if self.precision == "ieee":
            del content["precision"]
        return content


def read_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], FitOptions]:
    """The shape's options, and those of fitting."""
    of_fit = [one.name for one in fields(FitOptions)]
    if unknown := sorted(set(options) - {*OF_SHAPE, *of_fit}):
        raise ShazamError(
            f"sf.slides.train has no option {unknown[0]!r}; besides its arguments there are "
            f"{', '.join((*OF_SHAPE, *of_fit))}"
        )
    shape = {name: options[name] for name in OF_SHAPE if name in options}
    return shape, FitOptions(**{name: options[name] for name in of_fit if name in options})
