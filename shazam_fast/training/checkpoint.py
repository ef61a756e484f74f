"""The state of a training on disk, so that a killed run goes on bit for bit."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArchiveError, MismatchError, ShazamError
from ..runtime.tensors import read_tensors, write_tensors

CHECKPOINT = "checkpoint.safetensors"


def save_checkpoint(
    path: Path, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]], optimizer: torch.optim.Optimizer
) -> None:
    """Write `state` (plain values) and named groups of tensors, complete or not at all.

    Raises ShazamError when the disk is full; the checkpoint before stays as it was.
    """
    moments = {
        f"{index}.{key}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    flat = {f"{g}/{n}": t for g, group in {**tensors, "optimizer": moments}.items() for n, t in group.items()}
    try:
        write_tensors(path, flat, {"state": json.dumps(state)})
    except OSError as error:
        raise ShazamError(f"{path}: the checkpoint could not be written: {error}") from error


def load_checkpoint(
    path: Path, job: dict[str, Any], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """State and tensors of a checkpoint; the optimizer's go straight back into `optimizer`.

    Raises ArchiveError when the file is corrupt, MismatchError when it belongs to another job.
    """
    flat, metadata = read_tensors(path)
    try:
        state: dict[str, Any] = json.loads(metadata["state"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ArchiveError(f"{path}: not a checkpoint: {error!r}") from None
    require_same_job(path, state["job"], job)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups.pop("optimizer", {}).items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return state, groups


def require_same_job(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise MismatchError naming what differs between the job that left `path` and the one asked for."""
    differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if differing:
        changes = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in differing)
        raise MismatchError(
            f"{path} belongs to another training ({changes}); choose another output directory or delete this one"
        )
