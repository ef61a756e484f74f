"""What the site takes from the program itself: the reference of its commands, and the demo's picture."""

from collections.abc import Iterator
from pathlib import Path

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from shazam_fast.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PLACE = "<!-- the commands -->"  # where the reference goes
PICTURES = ("benchmarks/results/demo.png",)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures that the README shows, under the address that it gives them."""
    for picture in PICTURES:
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the reference of the commands into the page that has a place for it."""
    return markdown.replace(PLACE, "\n".join(describe(typer.main.get_command(app), "shazam-fast")))


def describe(command: click.Command, name: str, level: int = 2) -> Iterator[str]:
    """Markdown of a command and of those inside it."""
    inner = getattr(command, "commands", None)
    if level > 2 or inner is None:
        yield f"{'#' * min(level - 1, 4)} `{name}`\n\n{command.help or ''}\n"
    if inner is None:
        context = click.Context(command, info_name=name)
        yield f"```console\n$ {name} {' '.join(command.collect_usage_pieces(context))}\n```\n"
        yield "| argument or option | default | |\n|---|---|---|"
        yield from (row(parameter, context) for parameter in command.params if not getattr(parameter, "hidden", False))
        yield ""
    for key, one in (inner or {}).items():
        yield from describe(one, f"{name} {key}", level + 1)


def row(parameter: click.Parameter, context: click.Context) -> str:
    """One line of the table of a command's parameters."""
    names = [parameter.human_readable_name] if isinstance(parameter, click.Argument) else parameter.opts
    default = parameter.get_default(context)
    shown = "required" if parameter.required else "" if default in (None, (), [], False) else f"`{default}`"
    cells = (", ".join(f"`{name}`" for name in names), shown, getattr(parameter, "help", None) or "")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") for cell in cells) + " |"
