"""`shazam-fast slides`: select, train, evaluate and score whole slides."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..slides.options import MODELS, OF_SHAPE, FitOptions, SlideConfig
from .kinds import require_kind, require_place_for
from .options import Device, Features, add_options, opens_features, parse_pairs
from .printing import print_table, say

if TYPE_CHECKING:
    from ..slides.cohort.metrics import SlideMetrics

slides = typer.Typer(help="Whole slides: one label or survival time per slide or patient.", no_args_is_help=True)

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
    "seed": "Random seed, also of the folds.",
}


def _training_options() -> list[inspect.Parameter]:
    """One option per field of FitOptions and per option of a model's shape, with its type and default."""
    found = []
    for owner, names in ((SlideConfig, OF_SHAPE), (FitOptions, [field.name for field in fields(FitOptions)])):
        kinds, defaults = get_type_hints(owner), {field.name: field.default for field in fields(owner)}
        for name in names:
            found.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=defaults[name],
                    annotation=Annotated[kinds[name], typer.Option(help=HELP[name])],
                )
            )
    return found


def _slide_teachers(given: list[str] | None) -> Any:
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


def _read_targets(features: Features, asked: Mapping[str, Any]) -> tuple[Any, Features]:
    """The targets that --labels and its columns name, and the features without them."""
    from ..slides.cohort.requests import Classes, Regression, Survival

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


@slides.command()
@opens_features(seeded=True)
def select(
    features: Features,
    out: Annotated[Path, typer.Option(help="Directory for the selection. Run the command again to resume it.")],
    clusters: Annotated[int, typer.Option(help="Clusters per slide.")] = 50,
    per_cluster: Annotated[int, typer.Option(help="Patches drawn from each cluster.")] = 10,
    bags: Annotated[int, typer.Option(help="How often patches are drawn anew; one draw per epoch is trained on.")] = 1,
    method: Annotated[str, typer.Option(help="Of clustering: kmeans or spectral.")] = "kmeans",
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Cluster the patches of each slide by all teachers at once, and select some of every cluster."""
    from ..slides.selecting.selection import select as run

    require_place_for(out, "selection")
    chosen = run(features.open(), out, clusters=clusters, per_cluster=per_cluster, bags=bags, method=method, seed=seed)
    patches = sum(len(bag) for one in chosen.rows.values() for bag in one)
    say(f"selection in {out}: {patches:,} patches in {bags} bags of each of {len(chosen.rows):,} slides")


@slides.command()
@opens_features(seeded=True)
@takes_targets
@add_options(_training_options(), "options", dict)
def train(
    features: Features,
    asked: Mapping[str, Any],
    options: Mapping[str, Any],
    out: Annotated[Path, typer.Option(help="Directory for the student. Run the command again to resume it.")],
    model: Annotated[str, typer.Option(help=f"{', '.join(MODELS)}, or torchmil:NAME.")] = SlideConfig.model,
    folds: Folds = "5",
    by: By = "slide",
    loss: Loss = "nll",
    sites: Sites = None,
    protocol: Protocol = "held_out",
    selection: SelectionPath = None,
    slide_teacher: SlideTeachers = None,
    device: Device = None,
) -> None:
    """Train a student of whole slides by cross-validation over patients. --labels holds their labels or times."""
    from ..slides.crossvalidation import train as run

    targets, features = _read_targets(features, asked)
    require_place_for(out, "slide student")
    result = run(
        features.open(), targets, model=model, folds=_read_folds(folds), by=by, loss=loss, sites=sites,
        protocol=protocol, selection=selection, slide_teachers=_slide_teachers(slide_teacher), out=out, device=device,
        **options,
    )  # fmt: skip
    models = len(result.student.models)
    say(f"student in {out}: the mean of {models} models, each tested on patients that it was not trained on")
    print_slide_metrics(result.metrics)


@slides.command()
@opens_features()
@takes_targets
def evaluate(
    student: SlideStudentPath,
    features: Features,
    asked: Mapping[str, Any],
    by: By = "slide",
    selection: SelectionPath = None,
    slide_teacher: SlideTeachers = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the metrics.", show_default=False)] = None,
) -> None:
    """Print a student's metrics on slides that it was not trained on. --labels holds their labels or times."""
    from ..runtime.files import write_durably
    from ..runtime.locks import require_writable
    from ..slides.scoring import evaluate as run

    require_kind(student, "slide student")
    if out is not None:
        require_writable(out.absolute().parent)
    targets, features = _read_targets(features, asked)
    metrics = run(
        student, features.open(), targets, by=by, selection=selection, slide_teachers=_slide_teachers(slide_teacher),
        device=device,
    )  # fmt: skip
    print_slide_metrics(metrics)
    if out is not None:
        write_durably(out, json.dumps(metrics.to_dict(), indent=1).encode())


@slides.command()
@opens_features()
def score(
    student: SlideStudentPath,
    features: Features,
    out: Annotated[Path, typer.Option(help="Directory for slides.parquet and the attention of every patch.")],
    by: By = "slide",
    selection: SelectionPath = None,
    slide_teacher: SlideTeachers = None,
    device: Device = None,
) -> None:
    """Predict every slide, with the attention of its patches. Run the command again to resume it."""
    from ..slides.scores import TABLE
    from ..slides.scoring import score as run

    require_kind(student, "slide student")
    require_place_for(out, "slide scores")
    scores = run(
        student, features.open(), out, by=by, selection=selection, slide_teachers=_slide_teachers(slide_teacher),
        device=device,
    )  # fmt: skip
    say(f"{len(scores):,} {by}s in {out / TABLE}; the attention of {int(scores.n_patches.sum()):,} patches beside it")


def _read_folds(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def print_slide_metrics(metrics: "SlideMetrics") -> None:
    """Print each metric with its interval, beside the constant predictor's."""
    from ..slides.cohort.metrics import SELECTED

    rows = [
        (name, f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}", f"{metrics.constant[name]:.3f}")
        for name, found in metrics.values.items()
    ]
    title = f"{metrics.n_slides:,} slides or patients' bags of {metrics.n_patients:,} patients"
    print_table(["metric", "value", "95% interval", "constant predictor"], rows, title)
    if metrics.selected_on_reported:
        say(SELECTED)
