"""`shazam-fast slides heatmap` and `top-patches`: pictures of scored slides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ...runtime.jobs.foreign import require_kind
from ...runtime.summaries import counted
from ..options import Mpp, PatchSize, takes_sheet
from ..printing import say, say_sheet
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
    say(f"{counted(len(pictures), 'picture')} in {out}")


@slides.command()
@takes_sheet
def top_patches(scores: SlideScoresPath, sheet: Mapping[str, Any]) -> None:
    """Show the patches with the largest attention of the slides that are predicted as each class."""
    from ...reporting.wholeslides.sheet import top_patches as run

    require_kind(scores, "slide scores")
    say_sheet(run(scores, **sheet), sheet["out"])
