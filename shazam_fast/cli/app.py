"""The program `shazam-fast`: the public functions as commands, with the same names and defaults."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ShazamError
from .archives import convert, inspect, verify
from .comparison import compare
from .extraction import extract, teachers
from .finetuning import finetune
from .printing import console
from .reporting import report
from .scoring import export, heatmap, score, top_patches
from .slides import slides
from .training import calibrate, evaluate, train

app = typer.Typer(
    name="shazam-fast",
    help="Fuse the features of several pathology foundation models: train a student, score patches, draw heatmaps.",
    no_args_is_help=True,
    rich_markup_mode=None,  # two columns, which fit 80 characters
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"shazam-fast {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def demo(
    out: Annotated[Path, typer.Option(help="Directory for the archive, comparison, student and picture.")] = Path(
        "shazam-demo"
    ),
) -> None:
    """Compare fusion methods on real tissue: no download, a minute."""
    from ..demo.run import run_demo

    run_demo(out, console)


COMMANDS = (
    demo, teachers, extract, convert, inspect, verify,
    train, evaluate, calibrate, compare, finetune, score, heatmap, top_patches, report, export,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
app.add_typer(slides, name="slides")


def main() -> None:
    """Run the command line. Errors that a user can cause end it with their message and exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("shazam_fast").setLevel(logging.INFO)
    try:
        app()
    except BrokenPipeError:  # the reader of the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ShazamError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'a file'}: {error.strerror or error}")
    except MemoryError:
        sys.exit("error: not enough memory")
