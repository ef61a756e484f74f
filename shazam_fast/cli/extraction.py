"""`shazam-fast extract`: images to features."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from ..teachers.spec import TeacherSpec


def extract(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of images, CSV manifest, or slide (folder of slides).", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Archive to write; the same command continues a stopped extraction.")],
    teacher: Annotated[
        list[str], typer.Option(help="Name of a teacher (see `shazam-fast teachers`); repeat for each.")
    ],
    dataset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="unitopatho or huncrc: SOURCE is that dataset as it is published."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of a dataset: by_slide, or as_published.")] = "by_slide",
    labels: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help='"folder": the images lie in one folder a class.', show_default=False),
    ] = None,
    coords: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Of a slide: TRIDENT's or CLAM's coords file; or the folder of them.", show_default=False),
    ] = None,
    levels: Annotated[str, typer.Option(help="high, or low,mid,high for multi-level features.")] = "high",
    weights: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=PATH", help="A teacher's weights in a local file, not from the hub."),
    ] = None,
    transform: Annotated[str, typer.Option(help="own: each teacher's; imagenet: as the paper's scripts.")] = "own",
    unreadable: Annotated[str, typer.Option(help="What a broken image does: stop or exclude.")] = "stop",
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Images in a forward pass; 64 on a GPU, 8 on the CPU.", show_default=False),
    ] = None,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Threads that decode; one a core.", show_default=False),
    ] = None,
    device: Annotated[Optional[str], typer.Option(help="cpu, cuda, ...; a GPU when there is one.")] = None,  # noqa: UP045
    cluster: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="ray: spread over a Ray cluster.", show_default=False),
    ] = None,
) -> None:
    """Run foundation models over images and write their features as an archive; each image is decoded once."""
    from ..extraction.extract import extract as run
    from ..images.datasets import load_dataset
    from .options import console, parse_pairs

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
        console.print(f"left out: {item['reason']}", highlight=False)
    blocks = ", ".join(f"{name} {dim:,}" for name, dim in report.teachers.items())
    console.print(f"{report.n_rows:,} images in {report.path}: {blocks}", highlight=False)


def teachers() -> None:
    """Print the foundation models that are known by name: where their weights are, input, feature, licence."""
    from ..teachers.registry import list_teachers
    from .options import console

    table = Table("name", "weights", "input", "feature", "precision", "blocks", "licence")
    for spec in list_teachers():
        table.add_row(
            spec.name,
            f"{spec.hub or spec.library}{' (gated)' if spec.gated else ''}",
            _input(spec),
            f"{spec.dim:,} {spec.pooling}",
            spec.precision,
            f"{spec.blocks}: {spec.levels[0]}, {spec.levels[1]}" if spec.levels else str(spec.blocks or "-"),
            f"{spec.licence}{' *' if spec.covers_derivatives else ''}",
        )
    console.print(table)
    console.print("blocks: how many, and the early and middle one of multi-level features, counted from 0")
    console.print("* the terms also cover models trained on the teacher's outputs, such as a student")


def _input(spec: TeacherSpec) -> str:
    size, resize, _ = spec.transform.geometry
    return f"{size}" if resize == size else f"{size} of {resize}" if resize else f"{size}, both sides"
