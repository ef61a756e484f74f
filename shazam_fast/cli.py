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

from .cli_scoring import ArchivePath, Device, StudentPath, heatmap, score
from .errors import ShazamError
from .extraction_cli import extract
from .training_config import PRESETS, TrainConfig

if TYPE_CHECKING:
    from .archive import FeatureArchive
    from .metrics import Metrics

app = typer.Typer(
    name="shazam-fast",
    help="Fuse the features of several pathology foundation models: train, score, explain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

Labels = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="CSV", help='Table of slide (or slide, x, y) and label; or "folder".', show_default=False),
]
Splits = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="CSV", help="Table of slide and split, or CLAM's splits_*.csv.", show_default=False),
]


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
def convert(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="[SOURCE] OUT", help="What to pack, and the archive to write.", show_default=False),
    ],
    teacher: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=PATH", help="In place of SOURCE: one teacher's features; repeat for each."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    labels: Labels = None,
    splits: Splits = None,
) -> None:
    """Pack features of any format into one archive; the same command continues an interrupted conversion."""
    from .conversion import convert as run

    *sources, out = paths
    if len(sources) != (0 if teacher else 1):
        raise typer.BadParameter("give SOURCE and OUT, or --teacher NAME=PATH for each teacher and OUT")
    source = parse_pairs(teacher, "--teacher") if teacher else sources[0]
    report = run(source, out, dtype=dtype, labels=labels, splits=splits)
    console.print(f"{report.rows:,} patches, {report.bytes / 1e9:.2f} GB in {out}")
    if report.overflowed:
        console.print(f"{report.overflowed:,} values are beyond float16")
    rounding = Table("teacher", "largest", "rms", title=f"relative error of {dtype}, by patch", title_justify="left")
    for name, largest in report.max_error.items():
        rounding.add_row(name, f"{largest:.1e}", f"{report.rms_error[name]:.1e}")
    console.print(rounding)


app.command()(extract)


@app.command()
def verify(archive: ArchivePath) -> None:
    """Check an archive's checksums, and that all features are finite."""
    from .layouts.native import is_native
    from .opening import open_archive

    opened = open_archive(archive)
    opened.verify()
    checked = "match their checksums" if is_native(archive) else "are complete (they have no checksums)"
    console.print(f"{archive}: {opened.rows:,} patches, all finite; {len(opened.files):,} files {checked}")


@app.command()
def inspect(archive: ArchivePath, labels: Labels = None, splits: Splits = None) -> None:
    """Print what an archive holds: teachers and their norms, patches, slides, classes per split, bytes."""
    from .layouts.native import is_native
    from .opening import open_archive

    opened = open_archive(archive, labels=labels, splits=splits)
    kind = "native archive of" if is_native(archive) else "opened in place from"
    console.print(
        f"[bold]{opened.path}[/bold]: {opened.rows:,} patches, {opened.dtype}, "
        f"{opened.rows * opened.row_bytes / 1e9:.2f} GB, {len(opened.slides):,} slides, {len(opened.groups):,} groups, "
        f"{kind} {len(opened.files):,} files"
    )
    _print_teachers(opened)
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


app.command()(score)
app.command()(heatmap)


@app.command()
def teachers() -> None:
    """Print the foundation models that are known by name: where their weights are, input, feature, licence."""
    from .teacher_cli import print_teachers

    print_teachers(console)


def parse_pairs(given: list[str], option: str) -> dict[str, str]:
    """{name: path} of what was given for an option, name=path each."""
    pairs = [pair.partition("=") for pair in given]
    if not all(name and path for name, _, path in pairs) or len({name for name, _, _ in pairs}) < len(pairs):
        raise typer.BadParameter(f"{option} NAME=PATH, each name once, expected; found {', '.join(given)}")
    return {name: path for name, _, path in pairs}


def _print_teachers(archive: "FeatureArchive") -> None:
    from .inspection import sample_teachers

    samples = sample_teachers(archive)
    rows = next(iter(samples.values())).rows
    title = (
        "teachers; norms of all patches" if rows == archive.rows else f"teachers; norms of a sample of {rows:,} patches"
    )
    table = Table("teacher", "dim", "smallest", "median", "largest", "not finite", title=title, title_justify="left")
    for name, sample in samples.items():
        norms = (f"{norm:.4g}" for norm in (sample.min_norm, sample.median_norm, sample.max_norm))
        table.add_row(name, f"{archive.teachers[name]:,}", *norms, f"{sample.non_finite:,} of {rows:,}")
    console.print(table)


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
