"""What a directory holds, so that messages can say what a wrong directory is."""

import re
from pathlib import Path

from ..errors import MismatchError

HEAD_BYTES = 4096  # of a JSON document, among which its format is named
FORMAT = re.compile(
    rb'"format":\s*"shazam_fast (archive|student|scores|finetuned|comparison|slide student|slide comparison|selection)"'
)
SLIDE_SCORES = "slides.parquet"  # scores of whole slides
SCORES = ("_scores.parquet", "_scores.json")  # manifests of scores, the second until version 0.1
CHECKPOINT = "checkpoint.safetensors"  # of a training that was interrupted
HOLDS = {
    "archive": ("features", "inspect, verify, convert, train, evaluate, score and report"),
    "student": ("a student", "evaluate, score and report"),
    "scores": ("scores", "heatmap"),
    "finetuned": ("a fine-tuned teacher", "extract, with its teacher.safetensors as --weights"),
    "comparison": ("a comparison", "compare, with the same options, which prints it, and report"),
    "slide student": ("a slide's student", "slides evaluate and slides score"),
    "slide comparison": ("a comparison of slide models", "slides crossvalidate, with the same options"),
    "slide scores": ("scores of slides", "none; open slides.parquet with pandas"),
    "selection": ("selected patches", "slides train, evaluate and score, with --selection"),
    "checkpoint": ("an unfinished training", "train or finetune, with the same options, which resumes it"),
}
EXPECTED = {
    "archive": "features",
    "student": "a student",
    "scores": "scores",
    "comparison": "a comparison",
    "slide student": "a slide's student",
}
CHECKPOINTED = ("student", "finetuned")  # results of a training


def kind_of(path: Path) -> str | None:
    """What this package wrote into the directory, a key of HOLDS; None where it wrote nothing.

    >>> kind_of(Path("/nowhere"))
    """
    if not path.is_dir():
        return None
    if any((path / name).is_file() for name in SCORES):
        return "scores"
    if (path / SLIDE_SCORES).is_file():
        return "slide scores"
    for document in sorted(path.glob("*.json")):
        if not document.is_file():
            continue
        with document.open("rb") as file:
            if found := FORMAT.search(file.read(HEAD_BYTES)):
                return found[1].decode()
    return "checkpoint" if (path / CHECKPOINT).is_file() else None


def require_kind(path: Path, wanted: str) -> None:
    """Raise MismatchError when a directory to be read holds something else of this package than what is wanted.

    Args:
        path: whatever the user typed; a path that this package did not write is left to the function that reads it.
        wanted: a key of EXPECTED.
    """
    found = kind_of(path)
    if found is not None and found != wanted:
        holds, commands = HOLDS[found]
        raise MismatchError(
            f"{path} holds {holds}, but {EXPECTED[wanted]} expected here; a command that takes it: {commands}"
        )


def require_place_for(out: Path, wanted: str) -> None:
    """Raise MismatchError when a directory to be written holds something else of this package already.

    Args:
        out: what the user typed for --out.
        wanted: a key of HOLDS. An unfinished training is where its result goes.
    """
    found = kind_of(out)
    if found not in (None, wanted, "checkpoint" if wanted in CHECKPOINTED else wanted):
        raise MismatchError(f"--out {out} holds {HOLDS[found][0]} already; choose another directory")
