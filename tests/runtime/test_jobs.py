"""The directory of a job: locked and claimed while it is written, continued, given up, left to other processes."""

import logging
import os

import pytest

from shazam_fast.errors import MismatchError, ShazamError
from shazam_fast.runtime.jobs.foreign import CLAIM
from shazam_fast.runtime.jobs.part_directory import PartDirectory

UNFINISHED = "part-00001.safetensors.elsewhere-1.unfinished"  # of another process


def begin(path, **job):
    return PartDirectory(path, job or {"seed": 0}, count=3, suffix=".safetensors", manifest="all.json")


def write_all(parts, fail_at=None):
    """What `complete` is given: all missing parts, or those before `fail_at`, and the manifest."""

    def write():
        for number in parts.missing(range(parts.count)):
            if number == fail_at:
                raise KeyboardInterrupt
            parts.write_part(number, b"content", rows=1)
        parts.publish(b"{}")
        return "written"

    return write


def test_a_finished_directory_is_left_alone(tmp_path):
    parts = begin(tmp_path / "out")
    assert parts.complete(write_all(parts)) == "written"
    names = ["all.json", *(f"part-0000{n}.safetensors" for n in range(3))]
    assert sorted(os.listdir(parts.path)) == names
    assert parts.complete(lambda: pytest.fail("written again")) is None


def test_one_that_fails_before_its_first_part_leaves_nothing(tmp_path):
    parts = begin(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        parts.complete(write_all(parts, fail_at=0))
    assert not parts.path.exists()
    assert begin(parts.path, seed=1).complete(write_all(begin(parts.path, seed=1))) == "written"


def test_finished_parts_are_kept_for_the_same_job_alone(tmp_path, caplog):
    parts = begin(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        parts.complete(write_all(parts, fail_at=2))
    other = begin(parts.path, seed=1)
    with pytest.raises(MismatchError, match=r"another seed \(0, now 1\)"):
        other.complete(write_all(other))
    (parts.path / UNFINISHED).write_bytes(b"half")
    with caplog.at_level(logging.INFO, "shazam_fast"):
        assert parts.complete(write_all(parts)) == "written"
    assert "continued after 2 of 3 parts" in caplog.text
    assert not (parts.path / UNFINISHED).exists()


def test_files_of_processes_that_write_along_stay(tmp_path):
    parts = begin(tmp_path / "out")

    def write():
        (parts.path / UNFINISHED).write_bytes(b"half")
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            parts.complete(write, alone=False)
        assert {CLAIM, UNFINISHED} == set(os.listdir(parts.path))


def test_a_part_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shazam_fast.runtime.jobs.part_directory.write_synced", full)
    parts = begin(tmp_path)
    with pytest.raises(ShazamError, match=r"No space left on device.*run the same command again"):
        parts.write_part(0, b"content", rows=1)
    assert not os.listdir(tmp_path)
