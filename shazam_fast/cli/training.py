"""The command line: the public functions under the same names, with the same defaults."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table

from ..training.config import PRESETS, TrainConfig
from .options import ArchivePath, Device, StudentPath, console, options_given

if TYPE_CHECKING:
    from ..scoring.metrics import Metrics


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
    from ..training.train import train as run

    result = run(archive, out=out, preset=preset, **options_given(context))
    best = max(result.history, key=lambda record: record["val_score"])
    console.print(f"student in {out}: best of {len(result.history)} epochs is number {best['epoch'] + 1}")
    print_metrics(result.metrics)


def evaluate(
    student: StudentPath,
    archive: ArchivePath,
    split: Annotated[str, typer.Option(help="train, val, test or none.")] = "test",
    device: Device = None,
) -> None:
    """Print a student's metrics on a labelled split."""
    from ..scoring.evaluate import evaluate as run

    print_metrics({split: run(student, archive, split, device=device)})


def print_metrics(metrics: "dict[str, Metrics]") -> None:
    """Print one row of metrics per split, then one confusion matrix per split."""
    table = Table("split", "patches", "balanced accuracy", "weighted F1", "accuracy", "AUROC", "calibration error")
    for split, m in metrics.items():
        values = (m.balanced_accuracy, m.weighted_f1, m.accuracy, m.auroc, m.calibration_error)
        table.add_row(split, f"{m.n_rows:,}", *(f"{value:.3f}" for value in values))
    console.print(table)
    for split, m in metrics.items():
        confusion = Table("true \\ predicted", *m.classes, title=f"confusion, {split}", title_justify="left")
        for name, row in zip(m.classes, m.confusion.tolist(), strict=True):
            confusion.add_row(name, *(f"{n:,}" for n in row))
        console.print(confusion)
