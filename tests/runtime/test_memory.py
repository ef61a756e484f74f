"""How much memory a process can get, and which files are too large for it."""

import os

import pytest

from shazam_fast.runtime import memory
from shazam_fast.runtime.memory import available_memory, exceeds_memory

V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
CASES = [
    ({}, 8192),
    ({"proc/self/cgroup": "0::/job", f"{V2}/job/memory.max": "max"}, 8192),
    ({"proc/self/cgroup": "0::/job/step", f"{V2}/job/memory.max": "4096"}, 4096),
    ({"proc/self/cgroup": "5:cpu:/a\n4:memory:/a", f"{V1}/a/memory.limit_in_bytes": "5000"}, 5000),
    ({"proc/self/cgroup": "4:memory:/a", f"{V1}/a/memory.limit_in_bytes": str(2**63 - 4096)}, 8192),
]


@pytest.mark.parametrize(("files", "expected"), CASES)
def test_available_memory(tmp_path, files, expected):
    for name, text in {"proc/meminfo": "MemTotal: 16 kB\nMemAvailable:    8 kB", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert available_memory(tmp_path) == expected


@pytest.mark.parametrize("text", [None, "MemTotal: 16 kB\n"])
def test_a_system_that_does_not_tell_what_is_available(tmp_path, text):
    (tmp_path / "proc").mkdir()
    if text:
        (tmp_path / "proc/meminfo").write_text(text)
    assert available_memory(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_what_is_read_often_may_take_more_of_it(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    assert [exceeds_memory(n, often=False) for n in (250, 251)] == [False, True]
    assert [exceeds_memory(n, often=True) for n in (750, 751)] == [False, True]
