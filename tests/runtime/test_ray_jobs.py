"""A cluster that does not answer."""

import socket
import time
from pathlib import Path

import pytest

import shazam_fast as sf
from shazam_fast.runtime.jobs.ray_jobs import ANSWER_SECONDS, ray_cluster, require_answer


@pytest.fixture
def dead():
    """An address on this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_that_nobody_answers(dead, prefix):
    with pytest.raises(sf.ShazamError, match=f"no cluster answers at RAY_ADDRESS={prefix}{dead} .*unset RAY_ADDRESS"):
        require_answer(prefix + dead)


def test_the_wait_is_bounded():
    start = time.monotonic()
    with pytest.raises(sf.ShazamError, match=r"RAY_ADDRESS=192\.0\.2\.1:6379"):
        require_answer("192.0.2.1:6379")  # kept free for documentation
    assert time.monotonic() - start < ANSWER_SECONDS + 10


@pytest.mark.parametrize("address", ["", "auto", "local", "nonsense", "host:", ":1", "host:99999"])
def test_other_words_are_left_to_ray(address):
    require_answer(address)


def test_an_address_that_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_answer(f"127.0.0.1:{server.getsockname()[1]}")


def test_ray_is_not_started_at_a_dead_address(dead, monkeypatch):
    pytest.importorskip("ray", reason="clusters need Ray")
    monkeypatch.setenv("RAY_ADDRESS", dead)
    start = time.monotonic()
    with pytest.raises(sf.ShazamError, match=dead), ray_cluster(Path("out")):
        pass
    assert time.monotonic() - start < ANSWER_SECONDS + 20
