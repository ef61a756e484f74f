"""`shazam-fast score` and `heatmap`."""

from pathlib import Path
from typing import Annotated

import typer

from .kinds import require_kind, require_place_for
from .options import Device, Features, Split, StudentPath, opens_features
from .printing import say


@opens_features()
def score(
    student: StudentPath,
    features: Features,
    out: Annotated[Path, typer.Option(help="Directory for the scores. Run the command again to resume it.")],
    split: Split = None,
    fused: Annotated[bool, typer.Option("--fused", help="Also write the fused feature of every patch.")] = False,
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
        str | None,
        typer.Option(
            help="ray: spread the work over the Ray cluster of RAY_ADDRESS, or over this machine.", show_default=False
        ),
    ] = None,
) -> None:
    """Write prediction, probabilities and teacher shares of every patch."""
    from ..scoring.score import score as run

    require_kind(student, "student")
    require_place_for(out, "scores")
    scores = run(
        student,
        features.open(),
        out,
        split=split,
        fused=fused,
        allow_missing_teachers=allow_missing_teachers,
        device=device,
        cluster=cluster,
    )
    say(f"{len(scores):,} patches scored: {out}")
    if scores.missing_teachers:
        say(f"without {', '.join(scores.missing_teachers)}", "yellow")


def heatmap(
    scores: Annotated[Path, typer.Argument(help="Directory that score wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory for one picture and one GeoJSON file per slide.")],
    patch_size: Annotated[
        float | None,
        typer.Option(
            help="Side of a patch in level-0 pixels. Default: as recorded for each slide by the tool that cut it.",
            show_default=False,
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            help="Micrometres per level-0 pixel, for positions in micrometres (STAMP). Default: as recorded.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw predicted class, confidence and largest attention share of every slide, and write GeoJSON for QuPath."""
    from ..reporting.heatmaps import heatmap as run

    require_kind(scores, "scores")
    pictures = run(scores, out, patch_size=patch_size, mpp=mpp)
    say(f"{len(pictures):,} slides drawn: {out}")
