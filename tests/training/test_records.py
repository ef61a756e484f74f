"""What a training says, records and leaves beside the student."""

import contextlib
import csv
import json
import os
import pty
import subprocess
import sys

import numpy as np
import processes
import pytest
import torch
from synthetic import make_patches

import shazam_fast as sf
from shazam_fast.runtime.progress import Progress
from shazam_fast.training.threads import WORTH, choose_threads

SMALL = {"epochs": 3, "batch_size": 16, "dim": 8, "depth": 1, "device": "cpu"}


def told(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith(("training on", "epoch "))]


def test_device_threads_and_splits_at_the_start_then_a_line_per_epoch(archive, caplog):
    caplog.set_level("INFO", "shazam_fast")
    result = sf.train(archive, **SMALL, threads=1)
    start, *lines = told(caplog)
    assert start.startswith("training on cpu, 1 thread; train ")
    for split in ("train", "val", "test"):
        rows = archive.split(split)
        slides = np.unique(archive.slide_index[rows])
        assert f"{split} " in start
        assert f"{len(slides)} slide" in start
        assert f"{len(rows):,} patches" in start
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    last = result.history[-1]
    for name, value in (
        ("loss", f"{last['loss']:.4f}"),
        ("val loss", f"{last['val_loss']:.4f}"),
        ("val balanced accuracy", f"{last['val_balanced_accuracy']:.3f}"),
        ("val calibration error", f"{last['val_calibration_error']:.3f}"),
        ("lr", f"{last['lr']:.1e}"),
    ):
        assert f"{name} {value}" in lines[-1]


def test_patients_are_counted(tmp_path, caplog):
    caplog.set_level("INFO", "shazam_fast")
    groups = [f"p{i // 100}" for i in range(300)]
    splits = np.repeat(["train", "val", "test"], 100)
    archive = sf.write_archive(tmp_path / "a", **{**make_patches(), "groups": groups, "splits": splits})
    sf.train(archive, **{**SMALL, "epochs": 1})
    assert "val 1 patient, " in told(caplog)[0]


def test_a_program_without_logging_sees_the_lines_and_a_terminal_does_not(archive):
    script = f"import shazam_fast as sf; sf.train({str(archive.path)!r}, **{SMALL!r})"
    run = processes.run(script, check=True)
    assert run.stderr.count("epoch ") == 3
    controller, terminal = pty.openpty()
    processes.run(script, stderr=terminal, check=True)
    os.close(terminal)
    os.set_blocking(controller, False)
    with contextlib.suppress(OSError):  # nothing at all was written
        assert b"epoch 3/3" not in os.read(controller, 100_000)
    os.close(controller)


def test_a_training_inside_other_work_is_silent(archive, caplog):
    caplog.set_level("INFO", "shazam_fast")
    with Progress("comparing", 2, "fits"):
        sf.train(archive, **SMALL)
    assert told(caplog) == []
    sf.train(archive, **SMALL)
    assert len(told(caplog)) == 4


def test_the_callback_gets_every_record(archive):
    seen = []
    result = sf.train(archive, **SMALL, on_epoch=seen.append)
    assert seen == result.history

    def stop(record):
        raise RuntimeError(f"enough after epoch {record['epoch']}")

    with pytest.raises(RuntimeError, match="enough after epoch 0"):
        sf.train(archive, **SMALL, on_epoch=stop)


def test_the_validation_loss_and_calibration_are_those_of_the_last_student(archive):
    result = sf.train(archive, **SMALL)
    metrics, last = result.metrics["val"], result.history[-1]
    assert last["val_calibration_error"] == pytest.approx(metrics.calibration_error, abs=1e-5)
    own = metrics.probabilities[np.arange(metrics.n_rows), metrics.labels]
    assert last["val_loss"] == pytest.approx(-np.log(own).mean(), rel=1e-4)


def test_the_learning_rate_is_that_of_the_schedule(archive):
    constant = sf.train(archive, **SMALL, schedule="constant", lr=2e-3)
    assert [record["lr"] for record in constant.history] == [2e-3] * 3
    cycle = [record["lr"] for record in sf.train(archive, **SMALL, lr=2e-3).history]
    assert cycle[-1] < 1e-4 < cycle[1] < 2e-3


def test_history_and_metrics_lie_beside_the_student(archive, tmp_path):
    result = sf.train(archive, out=tmp_path / "run", **SMALL)
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    for row, record in zip(rows, result.history, strict=True):
        assert float(row["val_loss"]) == record["val_loss"]
        assert float(row["teacher_heads_uni"]) == record["teacher_heads"]["uni"]
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found == {split: metrics.to_dict() for split, metrics in result.metrics.items()}
    again = sf.train(archive, out=tmp_path / "run", **SMALL)
    assert again.history == result.history


def test_threads_are_recorded_and_put_back(archive):
    before = torch.get_num_threads()
    student = sf.train(archive, **SMALL, threads=3).student
    assert student.training_record["threads"] == 3
    assert torch.get_num_threads() == before
    assert "threads" not in student.training_record["job"]
    with pytest.raises(sf.ShazamError, match="threads"):
        sf.TrainConfig(threads=0)


def test_a_resumed_training_keeps_its_threads(archive, tmp_path):
    def stop(record):
        if record["epoch"] == 1:
            raise RuntimeError

    options = {**SMALL, "batch_size": 75, "dim": 64, "checkpoint_seconds": 0.0}
    whole = sf.train(archive, **options, threads=2).student
    with pytest.raises(RuntimeError):
        sf.train(archive, out=tmp_path / "run", **options, threads=2, on_epoch=stop)
    resumed = sf.train(archive, out=tmp_path / "run", **options).student
    assert resumed.training_record["threads"] == 2
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_threads_follow_the_work_of_a_step_and_the_cores(monkeypatch, caplog):
    from shazam_fast.training import threads

    monkeypatch.setattr(threads, "count_cores", lambda: 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    small, large = sf.TrainConfig(), sf.TrainConfig(dim=512, depth=5)
    teachers = {"a": 1280, "b": 1024, "c": 1024, "d": 1536}
    assert choose_threads(small, teachers) == 1
    work = 3 * 64 * 512 * (4864 + 3 * 4 * 5 * 512)
    assert choose_threads(large, teachers) == work // WORTH
    monkeypatch.setattr(threads, "count_cores", lambda: 4)
    assert choose_threads(large, teachers) == 4
    assert choose_threads(sf.TrainConfig(threads=4), teachers) == 4
    assert not caplog.text
    assert choose_threads(sf.TrainConfig(threads=5), teachers) == 5
    assert "threads=5 on 4 cores: they wait for one another; leave threads out" in caplog.text
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert choose_threads(large, teachers) == 2, "OMP_NUM_THREADS is obeyed"


def test_how_long_threads_wait_awake():
    """OpenMP prints what it was told, when PyTorch loads it; what the user set is left alone."""
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in ours}

    def run(script, **own):
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment | own, capture_output=True, text=True, check=True)

    loaded = run("import shazam_fast as sf; sf.TrainConfig(); import torch", OMP_DISPLAY_ENV="VERBOSE").stderr
    assert "GOMP_SPINCOUNT = '10000'" in loaded
    script = "import os, shazam_fast; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run(script, GOMP_SPINCOUNT="7").stdout == "7\n"
    assert run(script, OMP_WAIT_POLICY="PASSIVE").stdout == "None\n"
