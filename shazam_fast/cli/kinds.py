"""Refusals of a wrong path on the command line, which say what is there and which command takes it."""

from pathlib import Path

from ..errors import MismatchError, ShazamError
from ..runtime.jobs.foreign import PRODUCTS, find_product
from ..runtime.jobs.locks import require_writable

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


def require_file_place(path: Path, option: str) -> None:
    """Check, before anything is computed, that a file can be written there.

    Args:
        path: the file; its directory need not exist yet.
        option: the option that names it, for messages.

    Raises ShazamError when `path` is a directory, or its directory cannot be made or written to.
    """
    if path.is_dir():
        raise ShazamError(f"{option} {path}: a file expected, there is a directory; give the name of a file in it")
    require_writable(path.absolute().parent)
