"""The device that computes, and the number of cores."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import ShazamError

REMEDY = "use device='cpu' (--device cpu), or leave it out for a GPU if PyTorch finds one"


def choose_device(name: str | torch.device | None) -> torch.device:
    """The device called `name`.

    Args:
        name: "cpu", "cuda" or "cuda:1"; None for a GPU if PyTorch finds one, else the CPU.

    Raises ShazamError for another name, or when this machine does not have the device.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name) if isinstance(name, str | torch.device) else None
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ShazamError(f"device: 'cpu', 'cuda' or 'cuda:1' expected, found {name!r}; {REMEDY}")
    if device.type == "cuda":
        _require_gpu(device, name)
    return device


def describe_device(device: torch.device) -> str:
    """The device as results record it: "cpu", or the model of the GPU, on which the last bits depend."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def count_cores() -> int:
    """Number of CPU cores that this process may use, by affinity and cgroup quotas; under torchrun, its share of them.

    >>> count_cores() >= 1
    True
    """
    cores = min(len(os.sched_getaffinity(0)), cgroup_cores())
    return max(1, int(cores) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def cgroup_cores(root: Path = Path("/")) -> float:
    """Cores' worth of time that the quotas of this process's cgroups (version 1 or 2) leave; infinity without a quota.

    Args:
        root: where /proc and /sys are.
    """
    return min(map(_quota, cgroup_folders("cpu", root)), default=math.inf)


def cgroup_folders(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The cgroups (version 1 or 2) that bound this process, each before its parent; they need not exist.

    Args:
        controller: what they bound, "cpu" or "memory".
        root: where /proc and /sys are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controllers and controller)
        own = mount / path.strip("/")  # in a container it may be missing there, and the mount be its own group
        for folder in (own, *own.parents):
            yield folder
            if folder == mount:
                break


def _quota(folder: Path) -> float:
    """Cores' worth of time that one cgroup leaves."""
    with suppress(OSError, ValueError):
        limit, period = (folder / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    with suppress(OSError, ValueError):
        limit, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if int(limit) < 0 else int(limit) / int(period)
    return math.inf


def _require_gpu(device: torch.device, name: str | torch.device) -> None:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise ShazamError(f"device {str(name)!r}: PyTorch finds no NVIDIA GPU on this machine; {REMEDY}")
    if device.index is not None and device.index >= found:
        there = "cuda:0" if found == 1 else f"cuda:0 to cuda:{found - 1}"
        raise ShazamError(f"device {str(name)!r}: this machine has {there}; {REMEDY}")
