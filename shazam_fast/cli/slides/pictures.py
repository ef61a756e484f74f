"""`shazam-fast slides heatmap` and `top-patches`: pictures of scored slides."""

from pathlib import Path
from typing import Annotated

import typer

from ...runtime.jobs.foreign import require_kind
from ..options import Mpp, PatchSize
from ..printing import say
from .commands import slides

SlideScoresPath = Annotated[Path, typer.Argument(help="Directory that slides score wrote.", show_default=False)]


@slides.command()
def heatmap(
    scores: SlideScoresPath,
    out: Annotated[Path, typer.Option(help="Directory for one picture per slide.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of whole-slide images, or one image, to draw over.", show_default=False),
    ] = None,
    patch_size: PatchSize = None,
    mpp: Mpp = None,
) -> None:
    """Draw the attention of every slide, and the teacher with the largest share, over the slide where it is given."""
    from ...reporting.wholeslides.heatmaps import heatmap as run

    require_kind(scores, "slide scores")
    pictures = run(scores, out, images=images, patch_size=patch_size, mpp=mpp)
    say(f"{len(pictures):,} pictures in {out}")


@slides.command()
def top_patches(
    scores: SlideScoresPath,
    images: Annotated[Path, typer.Option(help="Folder of whole-slide images, or one image.")],
    out: Annotated[Path, typer.Option(help="File for the sheet, .png, .svg or .pdf.")],
    count: Annotated[int, typer.Option(help="Patches per class.")] = 8,
    per_slide: Annotated[int, typer.Option(help="Most patches of one slide.")] = 2,
    patch_size: PatchSize = None,
    mpp: Mpp = None,
) -> None:
    """Show the patches with the largest attention of the slides that are predicted as each class."""
    from ...reporting.wholeslides.sheet import top_patches as run

    require_kind(scores, "slide scores")
    shown = run(scores, out, images=images, count=count, per_slide=per_slide, patch_size=patch_size, mpp=mpp)
    say(f"{len(shown):,} patches of {len({patch.slide for patch in shown}):,} slides in {out}")
