"""`shazam-fast report`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ArchiveError
from ..runtime.jobs.foreign import require_kind
from .options import Device, Features, JudgedSplit, StudentPath, opens_features, parse_pairs
from .printing import say
from .words import optional


@opens_features(seeded=True)
def report(
    student: StudentPath,
    features: Features,
    out: Annotated[Path, typer.Option(help="HTML file for the report.")] = Path("report.html"),
    comparison: Annotated[Path | None, optional("Directory that compare --out wrote.")] = None,
    split: JudgedSplit = "test",
    attribute: Annotated[
        list[str] | None,
        optional(
            "What else might confound, such as site=sites.csv: a table with columns slide_id and NAME. "
            "Repeat for more.",
            "NAME=CSV",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed, also of --val and --test.")] = 0,
    device: Device = None,
) -> None:
    """Write one HTML file on a student.

    Metrics with intervals, calibration, teachers, confounding check, hardest patches.
    """
    from ..reporting.report.report import report as run

    require_kind(student, "student")
    if comparison is not None:
        require_kind(comparison, "comparison")
    attributes = {
        name: _by_slide(name, Path(file)) for name, file in parse_pairs(attribute or [], "--attribute").items()
    }
    path = run(
        student, features.open(), out, comparison=comparison, split=split, attributes=attributes, seed=seed,
        device=device,
    )  # fmt: skip
    say(f"report: {path}")


def _by_slide(name: str, file: Path) -> dict[str, str]:
    """{slide: value} of the column `name` of a table."""
    from ..tables.reader import read_table

    table = read_table(file)
    slide = table.find("slide")
    if slide is None:
        raise ArchiveError(
            f"--attribute {file}: a column slide_id (or slide, filename) expected, found {table.headers}"
        )
    values = table.texts(table.require(name, "--attribute"))
    found: dict[str, str] = {}
    for row, (key, value) in enumerate(zip(table.texts(slide).tolist(), values.tolist(), strict=True)):
        if found.setdefault(key, value) != value:
            raise ArchiveError(
                f"--attribute {table.place(row)}: slide {key!r} has {name} {value!r}, before it had {found[key]!r}; "
                "one value per slide expected"
            )
    return found
