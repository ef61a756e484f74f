"""Refuse directories that hold something else of this package: to be read as features, or to be written to."""

from pathlib import Path

from ..errors import ArchiveError, ShazamError
from .jobs import CLAIM

# a file in the directory -> what the directory is, and what takes it
PRODUCTS = {
    "archive.json": ("a native archive", "open the directory {place}"),
    "_scores.parquet": ("scores", "read them with shazam_fast.open_scores, or draw them with shazam_fast.heatmap"),
    "_scores.json": ("scores", "read them with shazam_fast.open_scores, or draw them with shazam_fast.heatmap"),
    "student.json": ("a student", "load it with shazam_fast.load, or apply it with shazam_fast.score"),
    "checkpoint.safetensors": ("an unfinished training", "continue it with shazam_fast.train and the same arguments"),
}


def refuse_foreign(path: Path) -> None:
    """Raise ArchiveError when a path is scores, a student or a checkpoint: the directory, or a file in it."""
    if path.is_dir():
        place, names = path, list(PRODUCTS)[1:]
    else:
        place, names = path.parent, list(PRODUCTS) if path.stem.startswith(("part-", "student", "checkpoint")) else []
    for name in names:
        if (place / name).exists():
            what, remedy = PRODUCTS[name]
            raise ArchiveError(f"{path}: it belongs to {what}; {remedy.format(place=place)}", "foreign")


def refuse_occupied(out: Path) -> None:
    """Raise ShazamError when a directory for pictures or tables holds an archive, scores, a student or a training.

    >>> refuse_occupied(Path("/nowhere"))
    """
    for name, (what, _) in {**PRODUCTS, CLAIM: ("an unfinished job", "")}.items():
        if (out / name).exists():
            raise ShazamError(f"{out}: it holds {what} ({name}) already; choose another --out")
