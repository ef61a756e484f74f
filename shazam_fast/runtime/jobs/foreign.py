"""What a directory holds already, of this package or of a job; and refusals of what does not fit."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import ArchiveError, MismatchError, ShazamError
from ..documents import Json
from ..files import UNFINISHED
from .locks import LOCK

CLAIM = "_job.json"  # which job a directory is for, until it is finished

HEAD_BYTES = 4096  # of a JSON document, among which its format is named
FORMAT = re.compile(rb'"format":\s*"shazam_fast ([a-z ]+)"')
PRODUCTS = {  # what this package writes into directories -> what a message calls it, and the commands that take it
    "archive": ("features", "inspect, verify, convert, train, evaluate, score and report"),
    "student": ("a student", "evaluate, score and report"),
    "scores": ("scores", "heatmap"),
    "finetuned": ("a fine-tuned teacher", "extract, with its teacher.safetensors as --weights"),
    "comparison": ("a comparison", "compare, with the same options, which prints it, and report"),
    "slide student": ("a slide's student", "slides evaluate and slides score"),
    "slide comparison": ("a comparison of slide models", "slides crossvalidate, with the same options"),
    "slide scores": ("scores of slides", "slides heatmap and slides top-patches"),
    "selection": ("selected patches", "slides train, evaluate and score, with --selection"),
    "checkpoint": ("an unfinished training", "train or finetune, with the same options, which resumes it"),
    "job": ("an unfinished job", "the one that began it, with the same options, which resumes it"),
}
NAMES = {  # a file that such a directory has -> the product, unless the file itself names another one
    "_scores.parquet": "scores",
    "_scores.json": "scores",  # until version 0.1
    "slides.parquet": "slide scores",
    "archive.json": "archive",
    "student.json": "student",
    "finetuned.json": "finetuned",
    "comparison.json": "comparison",
    "slide-comparison.json": "slide comparison",
    "selection.json": "selection",
    "checkpoint.safetensors": "checkpoint",
    CLAIM: "job",
}
CHECKPOINTED = ("student", "finetuned")  # results of a training
FOLLOWING = ("rows of a part", "rows of a tile")  # of a job, which follow from the rest of it
STEMS = ("student", "teacher", "head", "checkpoint", "slides", "_scores")  # of their files, beside parts


def find_product(path: Path) -> str | None:
    """What this package wrote into a directory, a key of PRODUCTS; None where it wrote nothing.

    >>> find_product(Path("/nowhere"))
    """
    for name, product in NAMES.items():
        if (path / name).is_file():
            return _named_product(path / name) or product
    return None


def require_kind(path: Path, wanted: str) -> None:
    """Raise ArchiveError when a directory to be read holds something else of this package than what is wanted.

    Args:
        path: as given; a path that this package did not write is left to the function that reads it,
            and so is an unfinished job.
        wanted: a key of PRODUCTS.
    """
    found = find_product(path)
    if found not in (None, "job", wanted):
        holds, commands = PRODUCTS[found]
        raise ArchiveError(
            f"{path} holds {holds}, but {PRODUCTS[wanted][0]} expected here; a command that takes it: {commands}",
            "foreign",
        )


def require_place_for(out: Path, wanted: str) -> None:
    """Raise MismatchError when a directory to be written holds something else of this package already.

    Args:
        out: as given.
        wanted: a key of PRODUCTS. An unfinished training or job is where its result goes.
    """
    found = find_product(out)
    if found not in (None, wanted, "checkpoint" if wanted in CHECKPOINTED else "job"):
        raise MismatchError(f"{out} holds {PRODUCTS[found][0]} already; choose another directory (out=, --out)")


def refuse_foreign(path: Path) -> None:
    """Raise ArchiveError when features are to be read from another product of this package: its directory, or a file.

    A file of an archive is refused too, as the archive has to be opened as a whole.

    >>> refuse_foreign(Path("/nowhere"))
    """
    place = path if path.is_dir() else path.parent
    if place != path and path.stem not in STEMS and not path.stem.startswith("part-"):
        return
    found = find_product(place)
    if found not in (None, "job") and (found, place) != ("archive", path):
        what, commands = PRODUCTS[found]
        holds = "it" if place == path else f"it belongs to {place}, which"
        raise ArchiveError(
            f"{path}: features expected, but {holds} holds {what}; a command that takes it: {commands}", "foreign"
        )


def refuse_occupied(out: Path) -> None:
    """Raise ShazamError when a directory for pictures or tables holds a product of this package, or an unfinished one.

    >>> refuse_occupied(Path("/nowhere"))
    """
    if (found := find_product(out)) is not None:
        raise ShazamError(f"{out}: it holds {PRODUCTS[found][0]} already; choose another --out")


def _named_product(file: Path) -> str | None:
    """The product that the head of a JSON document names, if it can be read."""
    if file.suffix != ".json":
        return None
    with suppress(OSError), file.open("rb") as document:
        named = FORMAT.search(document.read(HEAD_BYTES))
        return named[1].decode() if named and named[1].decode() in PRODUCTS else None
    return None


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
    different = [key for key in different if key not in FOLLOWING] or different
    if different:
        words = ", ".join(_difference(key, found, job) for key in different)
        raise MismatchError(f"{path}: was written with {words}; choose another --out, or delete it")


_DIGEST = re.compile(r"[0-9a-f]{16,}")
SHOWN = 80  # characters of a value in a message


def _difference(key: str, found: Mapping[str, Json], wanted: Mapping[str, Json]) -> str:
    other = f"{'other' if key.endswith('s') else 'another'} {key}"
    if any(_DIGEST.fullmatch(str(job.get(key))) for job in (found, wanted)):
        return other
    shown = [
        "the default" if key not in job else "all" if job[key] is None else repr(job[key]) for job in (found, wanted)
    ]
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
