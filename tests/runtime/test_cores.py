"""How many cores a process may use: affinity, cgroup quotas of both versions, torchrun."""

import math
import os

import pytest

from shazam_fast.runtime import devices
from shazam_fast.runtime.devices import cgroup_cores, count_cores


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


V1 = "sys/fs/cgroup/cpu"
CASES = [
    ({}, math.inf),
    ({"proc/self/cgroup": "0::/job/step", "sys/fs/cgroup/job/step/cpu.max": "max 100000"}, math.inf),
    ({"proc/self/cgroup": "0::/job/step", "sys/fs/cgroup/job/step/cpu.max": "150000 100000"}, 1.5),
    ({"proc/self/cgroup": "0::/job/step", "sys/fs/cgroup/job/cpu.max": "400000 100000"}, 4.0),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
    ({"proc/self/cgroup": "0::/gone", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
    (
        {"proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a", f"{V1}/a/cpu.cfs_quota_us": "300000",
         f"{V1}/a/cpu.cfs_period_us": "100000"},
        3.0,
    ),
    (
        {"proc/self/cgroup": "4:cpu:/a", f"{V1}/a/cpu.cfs_quota_us": "-1", f"{V1}/a/cpu.cfs_period_us": "100000"},
        math.inf,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("files", "cores"), CASES)
def test_the_quota_of_a_cgroup(tmp_path, files, cores):
    write(tmp_path, files)
    assert cgroup_cores(tmp_path) == cores


def test_cores_are_the_least_of_affinity_and_quota(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    for quota, cores in ((math.inf, 8), (2.5, 2), (0.5, 1)):
        monkeypatch.setattr(devices, "cgroup_cores", lambda quota=quota: quota)
        assert count_cores() == cores
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(devices, "cgroup_cores", lambda: math.inf)
    assert count_cores() == 2
