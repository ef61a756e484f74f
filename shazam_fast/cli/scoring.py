"""`shazam-fast score`, `heatmap`, `top-patches` and `export`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..runtime.jobs.foreign import require_kind, require_place_for
from ..runtime.summaries import counted
from .options import (
    Device,
    Features,
    Mpp,
    PatchSize,
    Split,
    StudentPath,
    add_options,
    config_options,
    opens_features,
    parse_pairs,
    takes_sheet,
)
from .printing import require_file_place, say, say_sheet
from .words import one_of, optional

ScoresPath = Annotated[Path, typer.Argument(help="Directory that score wrote.", metavar="SCORES", show_default=False)]


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `shazam_fast.score`, under the names of its arguments."""

    split: Split = None
    fused: Annotated[bool, typer.Option("--fused", help="Also write the fused feature of every patch.")] = False
    influence: Annotated[
        bool,
        typer.Option(
            "--influence",
            help="Also write how much the predicted class's probability loses without each teacher. Trust it only for "
            "students trained with teacher dropout.",
        ),
    ] = False
    dtype: Annotated[
        str,
        one_of(
            "Of probabilities, shares and influence as stored: float32, or float16 in half the bytes.",
            ("float32", "float16"),
        ),
    ] = "float32"
    allow_missing_teachers: Annotated[
        bool,
        typer.Option(
            "--allow-missing-teachers",
            help="Score even if teachers are missing and the student was trained without teacher dropout; "
            "results may be unreliable.",
        ),
    ] = False
    device: Device = None
    cluster: Annotated[
        str | None,
        optional("ray: spread the work over the Ray cluster of RAY_ADDRESS, or over this machine.", words=("ray",)),
    ] = None


@opens_features()
@add_options(config_options(ScoreOptions, {}), "options", dict)
def score(
    student: StudentPath,
    features: Features,
    options: dict[str, Any],
    out: Annotated[Path, typer.Option(help="Directory for the scores. Run the command again to resume it.")],
    csv: Annotated[
        Path | None, optional("Also write one CSV file, with the columns of the Parquet files but the fused feature.")
    ] = None,
) -> None:
    """Write prediction, probabilities and shares of every patch."""
    from ..runtime.jobs.locks import make_directory
    from ..scoring.score import score as run

    require_kind(student, "student")
    require_place_for(out, "scores")
    if csv is not None:
        require_file_place(csv, "--csv")
    scores = run(student, features.open(), out, **options)
    if csv is not None:
        make_directory(csv.absolute().parent)
        scores.to_csv(csv)
    rounded = f", rounded by {scores.rounding_error:.1g} at most" if scores.dtype == "float16" else ""
    say(f"{counted(len(scores), 'patch')} scored, {scores.row_bytes:.0f} bytes per patch{rounded}: {out}")
    if scores.missing_teachers:
        say(f"without {', '.join(scores.missing_teachers)}", "yellow")


# Over 40 lines: every option is declared here.
def heatmap(
    scores: ScoresPath,
    out: Annotated[Path, typer.Option(help="Directory for one picture and one GeoJSON file per slide.")],
    panel: Annotated[
        list[str] | None,
        optional(
            "What is drawn: tissue, classes, confidence, shares, probability:CLASS or influence:TEACHER. Repeat for "
            "more. Default: tissue (with --tissue), classes, confidence, shares."
        ),
    ] = None,
    tissue: Annotated[
        Path | None,
        optional("Folder with a slide or image per slide, or one file, to draw over."),
    ] = None,
    downsample: Annotated[
        float | None,
        optional("Level-0 pixels per pixel, if --tissue holds images of slides."),
    ] = None,
    colour: Annotated[
        list[str] | None,
        optional("Colour of a class; the legend begins with these. Repeat for more.", metavar="CLASS=#RRGGBB"),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="One annotation per class for QuPath, in place of a tile per patch.")
    ] = False,
    overlay: Annotated[
        bool,
        typer.Option("--overlay", help="Also write the probabilities as an OME-TIFF image, a channel per class."),
    ] = False,
    format: Annotated[str, typer.Option(help="Of the pictures: png, svg or pdf.")] = "png",
    patch_size: PatchSize = None,
    mpp: Mpp = None,
) -> None:
    """Draw the scores of every slide, and write GeoJSON for QuPath.

    Panels, by default: predicted class, confidence and largest attention share; the tissue too where it is given.
    """
    from ..reporting.heatmaps import heatmap as run

    require_kind(scores, "scores")
    pictures = run(
        scores,
        out,
        panels=panel or None,
        tissue=tissue,
        downsample=downsample,
        colours=parse_pairs(colour or [], "--colour"),
        merged=merged,
        overlay=overlay,
        format=format,
        patch_size=patch_size,
        mpp=mpp,
    )
    say(f"{counted(len(pictures), 'slide')} drawn: {out}")


@takes_sheet
def top_patches(scores: ScoresPath, sheet: Mapping[str, Any]) -> None:
    """Show the most probable patches of each class, as one sheet."""
    from ..reporting.top_patches import top_patches as run

    require_kind(scores, "scores")
    say_sheet(run(scores, **sheet), sheet["out"])


def export(
    student: StudentPath,
    out: Annotated[Path, typer.Option(help="The file, such as student.onnx.")],
) -> None:
    """Write a student as ONNX file, to run without PyTorch.

    Reads features as the teachers give them, and which teachers a patch has; gives probabilities, logits and shares.
    """
    from ..student.export.onnx_file import export_onnx

    require_kind(student, "student")
    require_file_place(out, "--out")
    say(f"{export_onnx(student, out)}: {out.stat().st_size / 1e6:.1f} MB")
