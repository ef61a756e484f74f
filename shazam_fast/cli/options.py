"""The command line: the public functions under the same names, with the same defaults."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from ..training.config import TrainConfig

console = Console()

Labels = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="CSV", help='Table of slide (or slide, x, y) and label; or "folder".', show_default=False),
]
Splits = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="CSV", help="Table of slide and split, or CLAM's splits_*.csv.", show_default=False),
]


def parse_pairs(given: list[str], option: str) -> dict[str, str]:
    """{name: path} of what was given for an option, name=path each."""
    pairs = [pair.partition("=") for pair in given]
    if not all(name and path for name, _, path in pairs) or len({name for name, _, _ in pairs}) < len(pairs):
        raise typer.BadParameter(f"{option} NAME=PATH, each name once, expected; found {', '.join(given)}")
    return {name: path for name, _, path in pairs}


def options_given(context: typer.Context) -> dict[str, Any]:
    """Training options typed by the user: one left at its default must not undo what the preset says."""
    names = {field.name for field in fields(TrainConfig)} & set(context.params)
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name: context.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


ArchivePath = Annotated[Path, typer.Argument(help="Feature archive.", show_default=False)]
StudentPath = Annotated[Path, typer.Argument(help="Directory of a trained student.", show_default=False)]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, ...; a GPU when there is one.")]  # noqa: UP045
