"""How many threads a training on the CPU takes.

A step is small: threads wait for each other some hundred times in it. On a machine that other programs use too, a
thread that is not running holds up all others each time, so more threads than the work is worth make it slower.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ..runtime.devices import count_cores
from ..runtime.summaries import counted
from .config import TrainConfig

logger = logging.getLogger("shazam_fast")

WORTH = 1 << 26  # multiplications of a step that are worth one more thread


def choose_threads(config: TrainConfig, teachers: Mapping[str, int]) -> int:
    """The number of threads of a training: as configured, or one per WORTH multiplications of a step.

    At most as many as there are cores for this process, or as OMP_NUM_THREADS or `torch.set_num_threads` say, unless
    configured; more than the cores are logged as a warning. On a machine with enough cores the number, and so the
    student, depends on the configuration and the teachers alone.

    Args:
        config: what decides the training.
        teachers: {teacher: dim}.

    >>> choose_threads(TrainConfig(threads=1), {"uni": 1024})
    1
    >>> choose_threads(TrainConfig(), {"uni": 1024})
    1
    """
    if config.threads is not None:
        if config.threads > (cores := count_cores()):
            logger.warning(
                "threads=%d on %s: they wait for one another; leave threads out (--threads), unless you need the last "
                "bits of a training with so many", config.threads, counted(cores, "core"),
            )  # fmt: skip
        return config.threads
    D, N = config.dim, len(teachers)
    weights = D * sum(teachers.values()) + 3 * N * config.depth * D * D  # multiplications per patch, forward
    return max(1, min(3 * config.batch_size * weights // WORTH, torch.get_num_threads(), count_cores()))


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads, until the block ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
