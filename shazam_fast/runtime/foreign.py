"""What a directory holds already, of this package or of a job; and refusals of what does not fit."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import ArchiveError, MismatchError, ShazamError
from .documents import Json
from .files import UNFINISHED
from .locks import LOCK

CLAIM = "_job.json"  # which job a directory is for, until it is finished

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


def require_same_job(path: Path, found: Mapping[str, Json] | None, job: Mapping[str, Json]) -> None:
    """Raise MismatchError, saying what differs, unless two jobs are the same.

    Args:
        path: the directory, for messages.
        found: the job that wrote it; None if it does not say.
        job: the job of this command.
    """
    if not found:
        raise MismatchError(f"{path}: was not written by this command; choose another --out, or delete it")
    different = [key for key in {**job, **found} if found.get(key) != job.get(key)]
    # what only one of them reads (the splits, where one split is chosen) follows from another difference
    different = [key for key in different if key in job and key in found] or different
    if different:
        words = ", ".join(_difference(key, found.get(key), job.get(key)) for key in different)
        raise MismatchError(f"{path}: was written with {words}; choose another --out, or delete it")


_DIGEST = re.compile(r"[0-9a-f]{16,}")
SHOWN = 80  # characters of a value in a message


def _difference(key: str, found: Json, wanted: Json) -> str:
    other = f"{'other' if key.endswith('s') else 'another'} {key}"
    if _DIGEST.fullmatch(str(wanted)) or _DIGEST.fullmatch(str(found)):
        return other
    shown = ["all" if value is None else repr(value) for value in (found, wanted)]
    there, now = (text if len(text) <= SHOWN else f"{text[:SHOWN]}..." for text in shown)
    return f"{other} ({there}, now {now})"


class PartFiles:
    """Which files of a directory are those of a job that writes it part by part.

    Args:
        path: the directory.
        suffix: of the parts' files, such as ".safetensors".
        others: names of the files beside parts and their records, CLAIM among them.
    """

    def __init__(self, path: Path, suffix: str, others: Sequence[str]) -> None:
        self._path = path
        own = "|".join(map(re.escape, others))
        self._own = re.compile(
            rf"(part-[0-9]{{5,9}}(\.json|{re.escape(suffix)})|process-[0-9]+\.json|{own})(\.[^/]+{re.escape(UNFINISHED)})?"
        )

    def recorded(self) -> list[int]:
        """Numbers of the parts that have a record."""
        return [int(file.name[5:-5]) for file in self._path.glob("part-*.json") if self._own.fullmatch(file.name)]

    def temporary(self) -> list[Path]:
        """Files that are still being written, or that a killed process left."""
        found = ((file, self._own.fullmatch(file.name)) for file in self._path.glob(f"*{UNFINISHED}"))
        return [file for file, match in found if match and match[3]]

    def foreign(self, claimed: bool) -> list[str]:
        """Names of files that no such job writes, or a part without its record; `claimed`: the directory has CLAIM."""
        return sorted(name for name in os.listdir(self._path) if not self._is_own(name, claimed))

    def _is_own(self, name: str, claimed: bool) -> bool:
        own = self._own.fullmatch(name)
        if own is None or name == LOCK:
            return name == LOCK
        if own[3]:
            return claimed or name.startswith(CLAIM)
        return claimed and (own[2] is None or (self._path / f"{name.partition('.')[0]}.json").exists())
