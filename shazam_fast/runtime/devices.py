"""The device that computes, and the number of cores."""

import os

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
    """Number of CPU cores that this process may use; under torchrun, its share of them.

    >>> count_cores() >= 1
    True
    """
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _require_gpu(device: torch.device, name: str | torch.device) -> None:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise ShazamError(f"device {str(name)!r}: PyTorch finds no NVIDIA GPU on this machine; {REMEDY}")
    if device.index is not None and device.index >= found:
        there = "cuda:0" if found == 1 else f"cuda:0 to cuda:{found - 1}"
        raise ShazamError(f"device {str(name)!r}: this machine has {there}; {REMEDY}")
