"""Options that a user hands in: devices, counts, numbers, switches."""

import numpy as np
import pytest
import torch

import shazam_fast as sf
from shazam_fast.runtime.checks import require_choice, require_count, require_number, require_switch
from shazam_fast.runtime.devices import choose_device


def test_devices_that_are_there():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "name", ["gpu", "", "cuda:", "cuda:-1", "cuda:x", "cpu:1", "mps", "meta", "CPU", 0, 1.5, b"cpu", []]
)
def test_names_of_no_device(name):
    with pytest.raises(sf.ShazamError, match=r"device: 'cpu', 'cuda' or 'cuda:1' expected, found .*; use device='cpu'"):
        choose_device(name)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(sf.ShazamError, match=r"device 'cuda.*': PyTorch finds no NVIDIA GPU on this machine; use"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for count, there in ((1, "cuda:0"), (4, "cuda:0 to cuda:3")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert choose_device("cuda:0").index == 0
        with pytest.raises(sf.ShazamError, match=f"device 'cuda:9': this machine has {there}; use device='cpu'"):
            choose_device("cuda:9")


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float64(1), "1", None, [1], float("nan"), 0, 11, 10**40])
def test_no_count_from_1_to_10(value):
    with pytest.raises(sf.ShazamError, match="rows: a whole number from 1 to 10 expected, found"):
        require_count("rows", value, 1, 10)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, [1], 1j, float("nan"), float("inf"), -0.5, 1.0, 10**400])
def test_no_number_in_0_to_1(value):
    with pytest.raises(sf.ShazamError, match="p: a number at least 0 and less than 1 expected, found"):
        require_number("p", value, 0.0, 1.0)


def test_what_is_accepted_becomes_plain():
    assert [type(require_count("n", n)) for n in (1, np.int8(1), np.uint64(1))] == [int] * 3
    assert [type(require_number("x", x)) for x in (1, 1.5, np.float32(1), np.int64(1))] == [float] * 4
    assert require_switch("s", np.False_) is False
    for value in (0, 1, "True", None):
        with pytest.raises(sf.ShazamError, match="s: True or False expected"):
            require_switch("s", value)
    for value in ("c", None, ["a"], 3):
        with pytest.raises(sf.ShazamError, match="k: one of a, b expected"):
            require_choice("k", value, ("a", "b"))


def test_a_device_is_checked_before_anything_is_claimed(trained, tmp_path):
    student, archive = trained
    with pytest.raises(sf.ShazamError, match="device: 'cpu'"):
        sf.score(student, archive, tmp_path / "scores", device="gpu")
    with pytest.raises(sf.ShazamError, match="device: 'cpu'"):
        sf.evaluate(student, archive, device="gpu")
    assert not (tmp_path / "scores").exists()


def test_a_student_that_is_none(trained):
    with pytest.raises(sf.ShazamError, match="student: a Student or the directory of one expected, found NoneType"):
        sf.evaluate(None, trained[1])
