"""Trainings that tests start, stop and compare."""

import time

import torch
from processes import Process

QUICK = {"epochs": 4, "batch_size": 16, "dim": 16, "depth": 2}

SCRIPT = """
import sys, shazam_fast as sf
sf.train(sys.argv[1], out=sys.argv[2], epochs=int(sys.argv[3]), batch_size=8, dim=16, depth=2, patience=100,
         teacher_dropout=0.3, checkpoint_seconds=0.0)
"""


def tensors(student):
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def without_times(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def start(archive, out, epochs=6):
    return Process(SCRIPT, archive.path, out, epochs)


def wait_for(path, process, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def interrupted_run(tmp_path, archive):
    process = start(archive, tmp_path / "run", epochs=10_000)
    wait_for(tmp_path / "run" / "checkpoint.safetensors", process)
    process.kill()
    process.communicate()
    return tmp_path / "run" / "checkpoint.safetensors"
