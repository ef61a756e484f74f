"""The commands that score archives and show the scores; cli.py takes them up."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from .options import ArchivePath, Device, StudentPath

console = Console()


def score(
    student: StudentPath,
    archive: ArchivePath,
    out: Annotated[Path, typer.Option(help="Directory for the scores; the same command finishes a stopped run.")],
    split: Annotated[Optional[str], typer.Option(help="train, val, test or none; all by default.")] = None,  # noqa: UP045
    fused: Annotated[bool, typer.Option("--fused", help="Write the fused feature of every patch too.")] = False,
    allow_missing_teachers: Annotated[
        bool,
        typer.Option(
            "--allow-missing-teachers",
            help="Score even if teachers are missing and the student was trained without teacher dropout; "
            "results may be unreliable.",
        ),
    ] = False,
    device: Device = None,
    cluster: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help='"ray": spread over the Ray cluster of RAY_ADDRESS, or of this machine.'),
    ] = None,
) -> None:
    """Write prediction, probabilities and teacher shares of every patch."""
    from ..scoring.score import score as run

    scores = run(
        student,
        archive,
        out,
        split=split,
        fused=fused,
        allow_missing_teachers=allow_missing_teachers,
        device=device,
        cluster=cluster,
    )
    console.print(f"{len(scores):,} patches scored: {out}")
    if scores.missing_teachers:
        console.print(f"[yellow]without {', '.join(scores.missing_teachers)}[/yellow]")


def heatmap(
    scores: Annotated[Path, typer.Argument(help="Directory that score wrote.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Directory for one picture and one GeoJSON file a slide.")],
    patch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Side of a patch in level-0 pixels; the smallest step between patches by default."),
    ] = None,
) -> None:
    """Draw class, confidence and dominant teacher of every slide, and write GeoJSON for QuPath."""
    from ..reporting.heatmaps import heatmap as run

    pictures = run(scores, out, patch_size=patch_size)
    console.print(f"{len(pictures):,} slides drawn: {out}")
