"""The command line: the public functions under the same names, with the same defaults."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from ..errors import ShazamError
from .archives import convert, inspect, verify
from .extraction import extract, teachers
from .options import console
from .scoring import heatmap, score
from .training import evaluate, train

app = typer.Typer(
    name="shazam-fast",
    help="Fuse the features of several pathology foundation models: train, score, explain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def demo(
    out: Annotated[Path, typer.Option(help="Directory for the archive, students, scores and picture.")] = Path(
        "shazam-demo"
    ),
) -> None:
    """Train, score and explain on a real histology image: no download, about a minute."""
    from ..demo.run import run_demo

    run_demo(out, console)


for command in (demo, teachers, extract, convert, inspect, verify, train, evaluate, score, heatmap):
    app.command()(command)


def main() -> None:
    """Run the command line; errors that a user can cause end it with their message and exit code 1."""
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_level=False, show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        app()
    except ShazamError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
