"""The command line: the public functions under the same names, with the same defaults."""

import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from .errors import ShazamError
from .training_config import PRESETS, TrainConfig

if TYPE_CHECKING:
    from .metrics import Metrics

app = typer.Typer(
    name="shazam-fast",
    help="Fuse the features of several pathology foundation models: train, score, explain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

ArchivePath = Annotated[Path, typer.Argument(help="Feature archive.", show_default=False)]
StudentPath = Annotated[Path, typer.Argument(help="Directory of a trained student.", show_default=False)]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, ...; a GPU when there is one.")]  # noqa: UP045


def main() -> None:
    """Run the command line; errors that a user can cause end it with their message and exit code 1."""
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_level=False, show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        app()
    except ShazamError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the archive, students, scores and picture.")] = Path(
        "shazam-demo"
    ),
) -> None:
    """Train, score and explain on a real histology image: no download, about a minute."""
    from .demo import run_demo

    run_demo(out, console)


@app.command()
def inspect(archive: ArchivePath) -> None:
    """Print what an archive holds: teachers, rows, classes per split, slides, bytes."""
    from .opening import open_archive

    opened = open_archive(archive)
    console.print(
        f"[bold]{opened.path}[/bold]: {opened.rows:,} patches, {opened.dtype}, "
        f"{opened.rows * opened.row_bytes / 1e9:.2f} GB, {len(opened.slides):,} slides, {len(opened.groups):,} groups"
    )
    teachers = Table("teacher", "dim", title="teachers", title_justify="left")
    for name, dim in opened.teachers.items():
        teachers.add_row(name, f"{dim:,}")
    console.print(teachers)
    counts = Table("class", "train", "val", "test", "none", title="patches", title_justify="left")
    for label, name in enumerate([*opened.classes, "(no label)"]):
        wanted = label if label < len(opened.classes) else -1
        row = [int((opened.labels[opened.split(s)] == wanted).sum()) for s in ("train", "val", "test", "none")]
        if wanted >= 0 or any(row):
            counts.add_row(name, *(f"{n:,}" for n in row))
    console.print(counts)


@app.command()
def train(
    context: typer.Context,
    archive: ArchivePath,
    out: Annotated[Path, typer.Option(help="Directory for the student; the same command continues a stopped run.")],
    preset: Annotated[Optional[str], typer.Option(help=f"One of {', '.join(PRESETS)}.")] = None,  # noqa: UP045
    epochs: Annotated[int, typer.Option(help="Passes over the training split, at most.")] = TrainConfig.epochs,
    batch_size: Annotated[int, typer.Option(help="Patches per step.")] = TrainConfig.batch_size,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = TrainConfig.lr,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = TrainConfig.weight_decay,
    lam: Annotated[float, typer.Option(help="Weight of the distillation losses.")] = TrainConfig.lam,
    delta: Annotated[float, typer.Option(help="Where the Huber loss turns linear.")] = TrainConfig.delta,
    huber: Annotated[str, typer.Option(help="norm or elementwise.")] = TrainConfig.huber,
    targets: Annotated[str, typer.Option(help="projected, detached or frozen.")] = TrainConfig.targets,
    dim: Annotated[int, typer.Option(help="Model width D.")] = TrainConfig.dim,
    depth: Annotated[int, typer.Option(help="Attention layers K.")] = TrainConfig.depth,
    block: Annotated[str, typer.Option(help="bare (the paper) or residual.")] = TrainConfig.block,
    teacher_dropout: Annotated[
        float, typer.Option(help="Probability of hiding a teacher.")
    ] = TrainConfig.teacher_dropout,
    standardize: Annotated[bool, typer.Option(help="Standardise every feature.")] = TrainConfig.standardize,
    patience: Annotated[int, typer.Option(help="Epochs to wait for a better one.")] = TrainConfig.patience,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = TrainConfig.seed,
    device: Device = TrainConfig.device,
) -> None:
    """Train a student; Ctrl-C keeps a checkpoint from which the same command goes on."""
    from .training import train as run

    result = run(archive, out=out, preset=preset, **_options_given(context))
    best = max(result.history, key=lambda record: record["val_score"])
    console.print(f"student in {out}: best of {len(result.history)} epochs is number {best['epoch'] + 1}")
    _print_metrics(result.metrics)


@app.command()
def evaluate(
    student: StudentPath,
    archive: ArchivePath,
    split: Annotated[str, typer.Option(help="train, val, test or none.")] = "test",
    device: Device = None,
) -> None:
    """Print a student's metrics on a labelled split."""
    from .scoring import evaluate as run

    _print_metrics({split: run(student, archive, split, device=device)})


@app.command()
def score(
    student: StudentPath,
    archive: ArchivePath,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    split: Annotated[Optional[str], typer.Option(help="train, val, test or none; all by default.")] = None,  # noqa: UP045
    device: Device = None,
) -> None:
    """Write prediction, probabilities and teacher weights of every patch."""
    from .scoring import score as run

    scores = run(student, archive, out, split=split, device=device)
    console.print(f"{len(scores.rows):,} patches scored: {out}")


def _options_given(context: typer.Context) -> dict[str, Any]:
    """Training options typed by the user: one left at its default must not undo what the preset says."""
    names = {field.name for field in fields(TrainConfig)} & set(context.params)
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name: context.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _print_metrics(metrics: "dict[str, Metrics]") -> None:
    table = Table("split", "patches", "balanced accuracy", "weighted F1", "accuracy", "AUROC", "calibration error")
    for split, m in metrics.items():
        values = (m.balanced_accuracy, m.weighted_f1, m.accuracy, m.auroc, m.calibration_error)
        table.add_row(split, f"{m.rows:,}", *(f"{value:.3f}" for value in values))
    console.print(table)
    for split, m in metrics.items():
        confusion = Table("true \\ predicted", *m.classes, title=f"confusion, {split}", title_justify="left")
        for name, row in zip(m.classes, m.confusion.tolist(), strict=True):
            confusion.add_row(name, *(f"{n:,}" for n in row))
        console.print(confusion)
