"""`shazam-fast extract` and `teachers`."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

from ..runtime.jobs.foreign import require_place_for
from ..runtime.summaries import counted
from .options import Dataset, DatasetSplit, Device, Dtype, add_options, config_options, parse_pairs
from .printing import print_table, say
from .words import complete_teacher, one_of, optional, teacher_name

if TYPE_CHECKING:
    from ..teachers.spec import TeacherSpec


@dataclass(frozen=True)
class ExtractOptions:
    """Options of `shazam_fast.extract`, under the names of its arguments."""

    labels: Annotated[
        str | None, optional("The word folder: there is one folder of images per class.", "folder", ("folder",))
    ] = None
    coords: Annotated[Path | None, optional("Patch coordinates written by TRIDENT or CLAM (file or folder).")] = None
    transform: Annotated[
        str,
        one_of("own: each teacher's; imagenet: the same for all, as in the authors' scripts.", ("own", "imagenet")),
    ] = "own"
    unreadable: Annotated[str, one_of("At an image that cannot be read: stop or exclude.", ("stop", "exclude"))] = (
        "stop"
    )
    dtype: Dtype = "float16"
    batch_size: Annotated[
        int | None, optional("Images per forward pass. Default: 64 on a GPU, 8 on the CPU.", least=1)
    ] = None
    workers: Annotated[int | None, optional("Image-decoding threads. Default: one per core.", least=1)] = None
    device: Device = None
    cluster: Annotated[str | None, optional("ray: spread the work over a Ray cluster.", words=("ray",))] = None


@add_options(config_options(ExtractOptions, {}), "options", dict)
def extract(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of images, CSV with a column path, slide, or folder of slides.",
            metavar="SOURCE",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    out: Annotated[Path, typer.Option(help="Archive to write. Run the command again to resume it.")],
    teacher: Annotated[
        list[str], teacher_name("Name of a teacher (shazam-fast teachers lists them); repeat for more.")
    ],
    dataset: Dataset = None,
    split: DatasetSplit = "by_slide",
    levels: Annotated[str, typer.Option(help="high, or low,mid,high for features of three depths.")] = "high",
    weights: Annotated[
        list[str] | None, optional("Local file of a teacher's weights. Default: Hugging Face.", "NAME=PATH")
    ] = None,
) -> None:
    """Run foundation models over images and write an archive."""
    from ..extraction.extract import extract as run
    from ..images.datasets import load_dataset

    require_place_for(out, "archive")
    images = source if dataset is None else load_dataset(dataset, source, split)
    files = parse_pairs(weights or [], "--weights")
    report = run(images, teacher, out, levels=levels.split(","), weights=files, **options)
    for item in report.left_out:
        say(f"left out: {item['reason']}")
    blocks = ", ".join(f"{name} {dim:,}" for name, dim in report.teachers.items())
    say(f"{counted(report.n_rows, 'image')} in {report.path}: {blocks}")


def teachers(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Print all about this teacher.", metavar="NAME", show_default=False, autocompletion=complete_teacher
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print the teachers known by name, or all about one of them."""
    from ..teachers.registry import get_teacher, list_teachers

    specs = list_teachers() if name is None else [get_teacher(name)]
    if as_json:
        about = [_describe(spec) for spec in specs]
        print(json.dumps(about if name is None else about[0], indent=1))
    elif name is None:
        _print_teachers(specs)
    else:
        _print_teacher(specs[0])


def _print_teachers(specs: "Iterable[TeacherSpec]") -> None:
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
            for spec in specs
        ],
    )
    say("gated: accept a licence on Hugging Face before you download the weights")
    say("* the terms also cover models trained on its features, such as a student")
    say("shazam-fast teachers NAME prints all about one; --json is for programs")


def _describe(spec: "TeacherSpec") -> dict[str, Any]:
    """A teacher as plain values. How a module is created is left out: that may be a function."""
    return {key: value for key, value in asdict(replace(spec, arguments={})).items() if key != "arguments"}


def _print_teacher(spec: "TeacherSpec") -> None:
    levels = "unknown" if spec.levels is None else f"blocks {spec.levels[0]} and {spec.levels[1]}, counted from 0"
    terms = "; the terms also cover models trained on the teacher's features" if spec.covers_derivatives else ""
    about = {
        "name": spec.name,
        "weights": f"{spec.hub or 'none given'}{' (gated: accept the licence there first)' if spec.gated else ''}",
        "licence": f"{spec.licence}{terms}",
        "feature": f"{counted(spec.dim, 'column')}, pooling {spec.pooling}",
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
