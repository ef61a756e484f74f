"""Scoring archives with a trained student, and evaluating it on labelled splits."""

import os

import torch


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; by default a GPU when there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def count_cores() -> int:
    """Cores of this process: its share of them under torchrun."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
