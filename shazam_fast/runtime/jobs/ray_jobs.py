"""Ray, for work on several machines: start it, and turn its errors into those of this package."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import ShazamError

ANSWER_SECONDS = 10  # in which a cluster must accept a connection


def require_cluster(name: str | None) -> None:
    """Raise ShazamError unless `name` is a kind of cluster ("ray") or None."""
    if name not in (None, "ray"):
        raise ShazamError(f"cluster: 'ray' expected, found {name!r}")


@contextmanager
def ray_cluster(out: Path) -> Iterator[Any]:
    """The module `ray`, connected to the cluster of RAY_ADDRESS, else one on this machine, else a new one.

    Args:
        out: the output of the job, for messages.

    Raises ShazamError when Ray is not installed, cannot be reached or gives up on a task, and what a task raises.
    """
    try:
        import ray
    except ImportError:
        raise ShazamError("cluster='ray' needs Ray: pip install 'shazam_fast[cluster]'") from None
    if not ray.is_initialized():
        _start(ray)
    try:
        yield ray
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, ShazamError | OSError) else error from None
    except ray.exceptions.RayError as error:
        raise ShazamError(f"{out}: Ray gave up on a part: {error}; run the same command again to continue") from None


def _start(ray: Any) -> None:
    require_answer(os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ValueError, RuntimeError, OSError) as error:  # no address, no answer, no connection
        raise ShazamError(
            f"cluster='ray': Ray does not start: {error}; RAY_ADDRESS expected as 'host:port' of a running cluster, "
            f"or unset for this machine, found {os.environ.get('RAY_ADDRESS')!r}"
        ) from error


def require_answer(address: str) -> None:
    """Raise ShazamError when no program answers at "host:port" or "ray://host:port"; Ray itself waits for minutes.

    Args:
        address: a value of RAY_ADDRESS. Others, such as "auto", are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise ShazamError(
            f"cluster='ray': no cluster answers at RAY_ADDRESS={address} ({error}); start one there, correct "
            "the address, or unset RAY_ADDRESS to work on this machine"
        ) from None
