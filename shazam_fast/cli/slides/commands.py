"""`shazam-fast slides`: select, train, compare, evaluate and score whole slides."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ...runtime.jobs.foreign import require_kind, require_place_for
from ...runtime.summaries import counted
from ...slides.options import COMPARED, MODELS, SlideConfig
from ..options import AllowTrainedSlides, Device, Features, opens_features
from ..printing import say
from .options import (
    By,
    SelectionPath,
    SlideStudentPath,
    SlideTeachers,
    read_targets,
    slide_teachers_of,
    takes_targets,
    takes_training,
)  # fmt: skip
from .tables import print_slide_comparison, print_slide_metrics

slides = typer.Typer(help="Whole slides: labels, numbers or survival times.", no_args_is_help=True)


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
    from ...slides.selecting.selection import select as run

    require_place_for(out, "selection")
    chosen = run(features.open(), out, clusters=clusters, per_cluster=per_cluster, bags=bags, method=method, seed=seed)
    patches = counted(sum(len(bag) for one in chosen.rows.values() for bag in one), "patch")
    say(f"selection in {out}: {patches} in {counted(bags, 'bag')} of each of {counted(len(chosen.rows), 'slide')}")


@slides.command()
@opens_features(seeded=True)
@takes_targets
@takes_training
def train(
    features: Features,
    asked: Mapping[str, Any],
    options: Mapping[str, Any],
    out: Annotated[Path, typer.Option(help="Directory for the student. Run the command again to resume it.")],
    model: Annotated[str, typer.Option(help=f"{', '.join(MODELS)}, or torchmil:NAME.")] = SlideConfig.model,
    curves: Annotated[
        Path | None,
        typer.Option(help="File (.png, .svg, .pdf) for survival curves by predicted risk.", show_default=False),
    ] = None,
) -> None:
    """Train a student of whole slides by cross-validation over patients. --labels holds their labels or times."""
    from ...slides.crossvalidation import train as run

    targets, features = read_targets(features, asked)
    if curves is not None and asked["time"] is None:
        raise typer.BadParameter("--curves is for survival: give --time, --event and --observed")
    require_place_for(out, "slide student")
    result = run(features.open(), targets, model=model, out=out, **options)
    models = len(result.student.models)
    say(f"student in {out}: the mean of {models} models, each tested on patients that it was not trained on")
    print_slide_metrics(result.metrics)
    if curves is not None:
        from ...reporting.wholeslides.survival import draw_survival

        say(f"survival curves: {draw_survival(result.survival_curves(), curves, unit=asked['time'])}")


@slides.command()
@opens_features(seeded=True)
@takes_targets
@takes_training
def crossvalidate(
    features: Features,
    asked: Mapping[str, Any],
    options: Mapping[str, Any],
    out: Annotated[Path, typer.Option(help="Directory for one student per model. Run the command again to resume.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(MODELS)}. Repeat; the first is the reference. Default: {', '.join(COMPARED)}.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train several models on the same folds, and print one table with a constant predictor and differences."""
    from ...slides.comparing import crossvalidate as run

    targets, features = read_targets(features, asked)
    require_place_for(out, "slide comparison")
    found = run(features.open(), targets, models=model or COMPARED, out=out, **options)
    print_slide_comparison(found)


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
    allow_trained_slides: AllowTrainedSlides = False,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the metrics.", show_default=False)] = None,
) -> None:
    """Print a student's metrics on slides that it was not trained on. --labels holds their labels or times."""
    from ...runtime.files import write_durably
    from ...runtime.jobs.locks import require_writable
    from ...slides.scoring import evaluate as run

    require_kind(student, "slide student")
    if out is not None:
        require_writable(out.absolute().parent)
    targets, features = read_targets(features, asked)
    metrics = run(
        student, features.open(), targets, by=by, selection=selection, slide_teachers=slide_teachers_of(slide_teacher),
        allow_trained_slides=allow_trained_slides, device=device,
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
    from ...slides.scores import TABLE
    from ...slides.scoring import score as run

    require_kind(student, "slide student")
    require_place_for(out, "slide scores")
    scores = run(
        student, features.open(), out, by=by, selection=selection, slide_teachers=slide_teachers_of(slide_teacher),
        device=device,
    )  # fmt: skip
    patches = counted(int(scores.n_patches.sum()), "patch")
    say(f"{counted(len(scores), by)} in {out / TABLE}; the attention of {patches} beside it")
