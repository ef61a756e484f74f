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
Time = Annotated[str | None, typer.Option(help="Column of survival times in --labels.", show_default=False)]
Event = Annotated[str | None, typer.Option(help="Column that says whether the event was observed.", show_default=False)]
Observed = Annotated[
    str | None,
    typer.Option(help="Value of that column that means: the event was observed. Must be given.", show_default=False),
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


def _targets(features: Features, time: str | None, event: str | None, observed: str | None) -> tuple[Any, Features]:
    """The targets that --labels and its columns name, and the features without them."""
    from ..slides.cohort.targets import Classes, Survival

    given = dict(features.given)
    source, column = given.pop("labels", None), given.pop("label_column", None)
    if source is None:
        raise typer.BadParameter("--labels is missing: the CSV of slides (or patients) and their labels")
    rest = Features(features.source, given)
    if time is None and event is None and observed is None:
        return Classes(source, column), rest
    if time is None or event is None or observed is None:
        raise typer.BadParameter("give --time, --event and --observed together")
    if column is not None:
        raise typer.BadParameter("give --label-column for classes, or --time, --event and --observed, not both")
    return Survival(source, time, event, observed), rest


@slides.command()
@opens_features(seeded=True)
def select(
    features: Features,
    out: Annotated[Path, typer.Option(help="Directory for the selection. Run the command again to resume it.")],
    clusters: Annotated[int, typer.Option(help="Clusters per slide.")] = 50,
    per_cluster: Annotated[int, typer.Option(help="Patches drawn from each cluster.")] = 10,
    bags: Annotated[int, typer.Option(help="How often patches are drawn anew; one draw per epoch is trained on.")] = 1,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Cluster the patches of each slide by all teachers at once, and select some of every cluster."""
    from ..slides.selecting.selection import select as run

    require_place_for(out, "selection")
    chosen = run(features.open(), out, clusters=clusters, per_cluster=per_cluster, bags=bags, seed=seed)
    patches = sum(len(bag) for one in chosen.rows.values() for bag in one)
    say(f"selection in {out}: {patches:,} patches in {bags} bags of each of {len(chosen.rows):,} slides")


@slides.command()
@opens_features(seeded=True)
@add_options(_training_options(), "options", dict)
def train(
    features: Features,
    options: Mapping[str, Any],
    out: Annotated[Path, typer.Option(help="Directory for the student. Run the command again to resume it.")],
    model: Annotated[str, typer.Option(help=f"{', '.join(MODELS)}.")] = SlideConfig.model,
    folds: Annotated[int, typer.Option(help="Folds of patients: one tests, the next chooses the epoch.")] = 5,
    by: By = "slide",
    time: Time = None,
    event: Event = None,
    observed: Observed = None,
    loss: Annotated[str, typer.Option(help="Of survival: nll (discrete times) or cox.")] = "nll",
    selection: SelectionPath = None,
    slide_teacher: SlideTeachers = None,
    device: Device = None,
) -> None:
    """Train a student of whole slides by cross-validation over patients. --labels holds their labels or times."""
    from ..slides.crossvalidation import train as run

    targets, features = _targets(features, time, event, observed)
    require_place_for(out, "slide student")
    result = run(
        features.open(), targets, model=model, folds=folds, by=by, loss=loss, selection=selection, out=out,
        slide_teachers=_slide_teachers(slide_teacher), device=device, **options,
    )  # fmt: skip
    say(f"student in {out}: the mean of {folds} models, each tested on patients that it has not seen")
    print_slide_metrics(result.metrics)


@slides.command()
@opens_features()
def evaluate(
    student: SlideStudentPath,
    features: Features,
    by: By = "slide",
    time: Time = None,
    event: Event = None,
    observed: Observed = None,
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
    targets, features = _targets(features, time, event, observed)
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


def print_slide_metrics(metrics: "SlideMetrics") -> None:
    """Print each metric with its interval, beside the constant predictor's."""
    rows = [
        (name, f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}", f"{metrics.constant[name]:.3f}")
        for name, found in metrics.values.items()
    ]
    title = f"{metrics.n_slides:,} slides or patients' bags of {metrics.n_patients:,} patients"
    print_table(["metric", "value", "95% interval", "constant predictor"], rows, title)
