"""`shazam-fast extract` and `teachers`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column

from .kinds import require_place_for
from .options import Dataset, DatasetSplit, Device, parse_pairs
from .printing import print_table, say

if TYPE_CHECKING:
    from ..teachers.spec import TeacherSpec


# Over 40 lines: every option is documented here.
def extract(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of images, CSV with a column path, slide, or folder of slides.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Archive to write. Run the command again to resume it.")],
    teacher: Annotated[
        list[str],
        typer.Option(help="Name of a teacher (shazam-fast teachers lists them); repeat for more.", metavar="NAME"),
    ],
    dataset: Dataset = None,
    split: DatasetSplit = "by_slide",
    labels: Annotated[
        str | None,
        typer.Option(
            help="The word folder: there is one folder of images per class.", metavar="folder", show_default=False
        ),
    ] = None,
    coords: Annotated[
        Path | None,
        typer.Option(help="Patch coordinates written by TRIDENT or CLAM (file or folder).", show_default=False),
    ] = None,
    levels: Annotated[str, typer.Option(help="high, or low,mid,high for features of three depths.")] = "high",
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Local file of a teacher's weights. Default: Hugging Face.", show_default=False
        ),
    ] = None,
    transform: Annotated[
        str, typer.Option(help="own: each teacher's; imagenet: the same for all, as in the authors' scripts.")
    ] = "own",
    unreadable: Annotated[str, typer.Option(help="At an image that cannot be read: stop or exclude.")] = "stop",
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per forward pass. Default: 64 on a GPU, 8 on the CPU.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Image-decoding threads. Default: one per core.", show_default=False),
    ] = None,
    device: Device = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="ray: spread the work over a Ray cluster.", show_default=False),
    ] = None,
) -> None:
    """Run foundation models over images and write their features as an archive."""
    from ..extraction.extract import extract as run
    from ..images.datasets import load_dataset

    require_place_for(out, "archive")
    report = run(
        source if dataset is None else load_dataset(dataset, source, split),
        teacher,
        out,
        labels=labels,
        coords=coords,
        levels=levels.split(","),
        weights=parse_pairs(weights or [], "--weights"),
        transform=transform,
        unreadable=unreadable,
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        device=device,
        cluster=cluster,
    )
    for item in report.left_out:
        say(f"left out: {item['reason']}")
    blocks = ", ".join(f"{name} {dim:,}" for name, dim in report.teachers.items())
    say(f"{report.n_rows:,} images in {report.path}: {blocks}")


def teachers(
    name: Annotated[str | None, typer.Argument(help="Print all about this teacher.", show_default=False)] = None,
) -> None:
    """Print the foundation models that are known by name, or all about one of them."""
    from ..teachers.registry import get_teacher, list_teachers

    if name is not None:
        return _print_teacher(get_teacher(name))
    print_table(
        [Column(heading, no_wrap=True) for heading in ("name", "dim", "pooling", "input", "gated")] + ["licence"],
        [
            (
                spec.name,
                f"{spec.dim:,}",
                spec.pooling,
                _input(spec),
                "yes" if spec.gated else "no",
                f"{spec.licence}{' *' if spec.covers_derivatives else ''}",
            )
            for spec in list_teachers()
        ],
    )
    say("gated: Hugging Face asks you to accept a licence before you can download the weights")
    say("* the terms also cover models trained on the teacher's features, such as a student")
    say("shazam-fast teachers NAME prints all about one")
    return None


def _print_teacher(spec: "TeacherSpec") -> None:
    levels = "unknown" if spec.levels is None else f"blocks {spec.levels[0]} and {spec.levels[1]}, counted from 0"
    terms = "; the terms also cover models trained on the teacher's features" if spec.covers_derivatives else ""
    about = {
        "name": spec.name,
        "weights": f"{spec.hub or 'none given'}{' (gated: accept the licence there first)' if spec.gated else ''}",
        "licence": f"{spec.licence}{terms}",
        "feature": f"{spec.dim:,} columns, pooling {spec.pooling}",
        "input": f"{_input(spec)} pixels",
        "mean": ", ".join(f"{value:.4g}" for value in spec.transform.mean),
        "std": ", ".join(f"{value:.4g}" for value in spec.transform.std),
        "library": spec.library,
        "precision": f"{spec.precision} on a GPU, float32 on the CPU",
        "blocks": str(spec.blocks or "unknown"),
        "levels low, mid": levels,
    }
    for heading, text in about.items():
        say(f"{heading:<16} {text}")


def _input(spec: "TeacherSpec") -> str:
    size, resize, _ = spec.transform.geometry
    return f"{size}" if resize == size else f"{size} of {resize}" if resize else f"{size}, both sides"
