"""Refusals of a wrong directory on the command line, which say what it holds and which command takes it."""

from pathlib import Path

from ..errors import MismatchError
from ..runtime.foreign import PRODUCTS, find_product

CHECKPOINTED = ("student", "finetuned")  # results of a training


def require_kind(path: Path, wanted: str) -> None:
    """Raise MismatchError when a directory to be read holds something else of this package than what is wanted.

    Args:
        path: whatever the user typed; a path that this package did not write is left to the function that reads it,
            and so is an unfinished job.
        wanted: a key of PRODUCTS.
    """
    found = find_product(path)
    if found not in (None, "job", wanted):
        holds, commands = PRODUCTS[found]
        raise MismatchError(
            f"{path} holds {holds}, but {PRODUCTS[wanted][0]} expected here; a command that takes it: {commands}"
        )


def require_place_for(out: Path, wanted: str) -> None:
    """Raise MismatchError when a directory to be written holds something else of this package already.

    Args:
        out: what the user typed for --out.
        wanted: a key of PRODUCTS. An unfinished training or job is where its result goes.
    """
    found = find_product(out)
    if found not in (None, wanted, "checkpoint" if wanted in CHECKPOINTED else "job"):
        raise MismatchError(f"--out {out} holds {PRODUCTS[found][0]} already; choose another directory")
