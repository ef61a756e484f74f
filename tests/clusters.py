"""For scripts that tests start: a Ray cluster of two workers on this machine, one of which is killed."""

import os
import signal
import threading
import time
from pathlib import Path

import ray


def start_cluster():
    """A cluster of this process alone: tests may run side by side."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def kill_one(task, folder, suffix):
    """Kill one of this process's workers amid `task` once three parts are in `folder`; the list returned says so."""
    killed = []

    def kill():
        while len(list(folder.glob(f"part-*{suffix}"))) < 3 or not (found := _workers(task)):
            time.sleep(0.005)
        os.kill(found[0], signal.SIGKILL)
        killed.append(found[0])

    threading.Thread(target=kill, daemon=True).start()
    return killed


def _workers(task):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(f"ray::{task}".encode()):
                found += [int(process.name)] if _parent(_parent(int(process.name))) == os.getpid() else []
        except OSError:  # it has ended
            pass
    return found


def _parent(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
