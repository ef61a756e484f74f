"""Options of the commands for whole slides, and what they ask for."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ...slides.options import OF_SHAPE, FitOptions, SlideConfig
from ..options import Device, Features, add_options, config_options, parse_pairs

SlideStudentPath = Annotated[Path, typer.Argument(help="Directory of a slide's student.", show_default=False)]
By = Annotated[str, typer.Option(help="slide, or patient to join the slides of a patient.")]
SelectionPath = Annotated[
    Path | None,
    typer.Option("--selection", help="Directory of selected patches; others are not read.", show_default=False),
]
Folds = Annotated[str, typer.Option(help="Number of folds of patients, or the column of --labels that holds them.")]
Loss = Annotated[str, typer.Option(help="Of survival: nll (discrete times) or cox.")]
Sites = Annotated[
    str | None,
    typer.Option(help="Column of --labels with each slide's site; its patients stay in one fold.", show_default=False),
]
SlideTeachers = Annotated[
    list[str] | None,
    typer.Option(
        "--slide-teacher",
        help="Features of a slide-level teacher (one .h5 file per slide); repeat for more. Or PATH of all of them. "
        "slide_linear reads them; other models are distilled from them in training.",
        metavar="NAME=PATH|PATH",
        show_default=False,
    ),
]
Protocol = Annotated[
    str,
    typer.Option(help="held_out, or reported_folds: the tested fold chooses the epoch, which makes metrics too good."),
]
TARGETS = {  # option -> its type, help and default
    "target": (
        list[str] | None,
        "Column of classes in --labels; repeat for columns predicted together.",
        None,
    ),
    "value": (list[str] | None, "Column of numbers in --labels, such as a gene's expression. Repeat for more.", None),
    "log2": (bool, "With --value: take log2(value + 1).", False),
    "time": (str | None, "Column of survival times in --labels.", None),
    "event": (str | None, "Column that says whether the event was observed.", None),
    "observed": (str | None, "Value of that column that means: the event was observed. Must be given.", None),
}
HELP = {
    "dim": "Width of what is pooled (D).",
    "depth": "Attention layers: over a patch's tokens, of shazam_abmil; within clusters, of fusecpath.",
    "top_k": "Patches, or clusters, that each one attends to, of fusecpath.",
    "dropout": "Probability of leaving out a column of the pooled feature in training.",
    "epochs": "Passes over the training slides, at most.",
    "batch_size": "Slides per step, on average.",
    "patches": "Most patches of a slide in an epoch, drawn anew in each; validation and test read all.",
    "lr": "Learning rate of AdamW.",
    "weight_decay": "Weight decay of AdamW.",
    "patience": "Stop after this many epochs without a smaller validation loss.",
    "distillation": "Weight of distillation from --slide-teacher, 0 to 1; the rest is the task's.",
    "temperature": "Temperature of distillation. Default: 3 for classes, 1 for survival.",
    "kl": "student_teacher: KL(student || teacher), or teacher_student.",
    "supervise_teachers": "Train the slide-level teachers' predictions on the task too.",
    "precision": "Of products in training: ieee (float32), or bf16, faster on processors with AVX-512 BF16 or AMX.",
    "seed": "Random seed, also of the folds.",
}


@dataclass(frozen=True)
class Judging:
    """How models of slides are trained and judged, whatever they are, under the names of the functions' arguments."""

    folds: Folds = "5"
    by: By = "slide"
    loss: Loss = "nll"
    sites: Sites = None
    protocol: Protocol = "held_out"
    selection: SelectionPath = None
    slide_teacher: SlideTeachers = None
    device: Device = None


def _collect_training(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `sf.slides.train` and `sf.slides.crossvalidate`."""
    given = dict(values)
    given["slide_teachers"] = slide_teachers_of(given.pop("slide_teacher"))
    if given["folds"].isdecimal():  # a number, else the name of a column
        given["folds"] = int(given["folds"])
    return given


_OF_SHAPE = [option for option in config_options(SlideConfig, HELP) if option.name in OF_SHAPE]
takes_training = add_options(
    [*config_options(Judging, {}), *_OF_SHAPE, *config_options(FitOptions, HELP)], "options", _collect_training
)


def slide_teachers_of(given: list[str] | None) -> Any:
    """What --slide-teacher gives: one directory, or {teacher: directory}; None without it."""
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    return parse_pairs(given, "--slide-teacher")


def _target_options() -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default,
            annotation=Annotated[kind, typer.Option(f"--{name}", help=text, show_default=False)],
        )
        for name, (kind, text, default) in TARGETS.items()
    ]  # fmt: skip


takes_targets = add_options(_target_options(), "asked", dict)


def read_targets(features: Features, asked: Mapping[str, Any]) -> tuple[Any, Features]:
    """The targets that --labels and its columns name, and the features without them."""
    from ...slides.cohort.requests import Classes, Regression, Survival

    given = dict(features.given)
    source, column = given.pop("labels", None), given.pop("label_column", None)
    if source is None:
        raise typer.BadParameter("--labels is missing: the CSV of slides (or patients) and their labels")
    rest = Features(features.source, given)
    survival = [asked[name] for name in ("time", "event", "observed")]
    kinds = {
        "--label-column": column is not None, "--target": bool(asked["target"]), "--value": bool(asked["value"]),
        "--time, --event and --observed": any(one is not None for one in survival),
    }  # fmt: skip
    if len(chosen := [name for name, is_given in kinds.items() if is_given]) > 1:
        raise typer.BadParameter(f"give {chosen[0]} or {chosen[1]}, not both: a model has one kind of target")
    if asked["log2"] and not asked["value"]:
        raise typer.BadParameter("--log2 is for numbers; give their columns: --value")
    if asked["target"]:
        return Classes(source, asked["target"]), rest
    if asked["value"]:
        return Regression(source, asked["value"], log2=asked["log2"]), rest
    if all(one is None for one in survival):
        return Classes(source, column), rest
    if any(one is None for one in survival):
        raise typer.BadParameter("give --time, --event and --observed together")
    return Survival(source, *survival), rest
