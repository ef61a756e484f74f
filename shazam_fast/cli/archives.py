"""The command line: the public functions under the same names, with the same defaults."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table

from .options import ArchivePath, Labels, Splits, console, parse_pairs

if TYPE_CHECKING:
    from ..archive.archive import FeatureArchive


def convert(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="[SOURCE] OUT", help="What to pack, and the archive to write.", show_default=False),
    ],
    teacher: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=PATH", help="In place of SOURCE: one teacher's features; repeat for each."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    labels: Labels = None,
    splits: Splits = None,
) -> None:
    """Pack features of any format into one archive; the same command continues an interrupted conversion."""
    from ..archive.conversion import convert as run

    *sources, out = paths
    if len(sources) != (0 if teacher else 1):
        raise typer.BadParameter("give SOURCE and OUT, or --teacher NAME=PATH for each teacher and OUT")
    source = parse_pairs(teacher, "--teacher") if teacher else sources[0]
    report = run(source, out, dtype=dtype, labels=labels, splits=splits)
    console.print(f"{report.n_rows:,} patches, {report.bytes / 1e9:.2f} GB in {out}")
    if report.overflowed:
        console.print(f"{report.overflowed:,} values are beyond float16")
    rounding = Table("teacher", "largest", "rms", title=f"relative error of {dtype}, by patch", title_justify="left")
    for name, largest in report.max_error.items():
        rounding.add_row(name, f"{largest:.1e}", f"{report.rms_error[name]:.1e}")
    console.print(rounding)


def verify(archive: ArchivePath) -> None:
    """Check an archive's checksums, and that all features are finite."""
    from ..archive.opening import open_archive
    from ..formats.native import is_native

    opened = open_archive(archive)
    opened.verify()
    checked = "match their checksums" if is_native(archive) else "are complete (they have no checksums)"
    console.print(f"{archive}: {opened.n_rows:,} patches, all finite; {len(opened.files):,} files {checked}")


def inspect(archive: ArchivePath, labels: Labels = None, splits: Splits = None) -> None:
    """Print what an archive holds: teachers and their norms, patches, slides, classes per split, bytes."""
    from ..archive.opening import open_archive
    from ..formats.native import is_native

    opened = open_archive(archive, labels=labels, splits=splits)
    kind = "native archive of" if is_native(archive) else "opened in place from"
    console.print(
        f"[bold]{opened.path}[/bold]: {opened.n_rows:,} patches, {opened.dtype}, "
        f"{opened.n_rows * opened.row_bytes / 1e9:.2f} GB, {len(opened.slides):,} slides, "
        f"{len(opened.groups):,} groups, {kind} {len(opened.files):,} files"
    )
    _print_teachers(opened)
    counts = Table("class", "train", "val", "test", "none", title="patches", title_justify="left")
    for label, name in enumerate([*opened.classes, "(no label)"]):
        wanted = label if label < len(opened.classes) else -1
        row = [int((opened.labels[opened.split(s)] == wanted).sum()) for s in ("train", "val", "test", "none")]
        if wanted >= 0 or any(row):
            counts.add_row(name, *(f"{n:,}" for n in row))
    console.print(counts)


def _print_teachers(archive: "FeatureArchive") -> None:
    from ..archive.inspection import sample_teachers

    samples = sample_teachers(archive)
    rows = next(iter(samples.values())).n_rows
    title = (
        "teachers; norms of all patches"
        if rows == archive.n_rows
        else f"teachers; norms of a sample of {rows:,} patches"
    )
    table = Table("teacher", "dim", "smallest", "median", "largest", "not finite", title=title, title_justify="left")
    for name, sample in samples.items():
        norms = (f"{norm:.4g}" for norm in (sample.min_norm, sample.median_norm, sample.max_norm))
        table.add_row(name, f"{archive.teachers[name]:,}", *norms, f"{sample.non_finite:,} of {rows:,}")
    console.print(table)
