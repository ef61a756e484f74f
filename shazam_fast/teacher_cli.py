"""`shazam-fast teachers`: the registry as a table."""

from rich.console import Console
from rich.table import Table

from .teacher_registry import teachers
from .teacher_spec import TeacherSpec


def print_teachers(console: Console) -> None:
    """Print one line a teacher."""
    table = Table("name", "weights", "input", "feature", "precision", "blocks", "licence")
    for spec in teachers():
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
