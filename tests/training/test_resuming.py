"""Trainings that are killed, interrupted and continued, and what their directory may hold."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from interruption import stopped_after
from synthetic import make_patches
from trainings import QUICK, assert_same_bits, interrupted_run, start, tensors, wait_for, without_times

import shazam_fast as sf
from shazam_fast.runtime.tensors import read_tensors, write_tensors


def test_killed_and_continued_gives_the_same_bits(tmp_path, archive):
    """kill -9 at several moments, each time continued by the same call."""
    whole = start(archive, tmp_path / "whole")
    out = tmp_path / "killed"
    for delay in (0.0, 0.1, 0.35):
        process = start(archive, out)
        wait_for(out / "checkpoint.safetensors", process)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (out / "student.json").exists():
            break
    assert start(archive, out).wait() == 0
    assert whole.wait() == 0
    left, right = sf.load(tmp_path / "whole"), sf.load(out)
    assert_same_bits(tensors(left), tensors(right))
    records = [s.training_record for s in (left, right)]
    assert without_times(records[0]["history"]) == without_times(records[1]["history"])
    assert records[0]["metrics"] == records[1]["metrics"]
    assert not (out / "checkpoint.safetensors").exists()


def test_ctrl_c_keeps_a_checkpoint(tmp_path, archive):
    out = tmp_path / "run"
    process = start(archive, out, epochs=10_000)
    wait_for(out / "checkpoint.safetensors", process)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert "the same call continues from there" in errors
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / "student.json").exists()
    assert not list(out.glob("*.unfinished"))


def test_a_checkpoint_after_any_step(tmp_path, archive, monkeypatch):
    """After the last step of an epoch too, when the epoch is not validated yet."""
    whole = tensors(sf.train(archive, **QUICK).student)
    steps = -(-len(sf.open(archive).split("train")) // QUICK["batch_size"])
    for stop in (1, steps - 1, steps, steps + 1):
        out = tmp_path / f"stopped-{stop}"
        with stopped_after(stop, monkeypatch):
            sf.train(archive, out=out, **QUICK)
        assert_same_bits(tensors(sf.train(archive, out=out, **QUICK).student), whole)


def test_a_finished_training_is_loaded(tmp_path, archive, caplog):
    first = sf.train(archive, out=tmp_path / "run", **QUICK)
    before = os.stat(tmp_path / "run" / "student.safetensors").st_mtime_ns
    with caplog.at_level("INFO", logger="shazam_fast"):
        again = sf.train(archive, out=tmp_path / "run", **QUICK)
    assert "already trained" in caplog.text
    assert os.stat(tmp_path / "run" / "student.safetensors").st_mtime_ns == before
    assert_same_bits(tensors(first.student), tensors(again.student))
    assert first.history == again.history
    assert first.metrics["test"].to_dict() == again.metrics["test"].to_dict()


def test_another_training_in_the_same_directory(tmp_path, archive):
    sf.train(archive, out=tmp_path / "run", **QUICK)
    with pytest.raises(sf.MismatchError, match=r"written with another lr \(0.001, now 0.01\)"):
        sf.train(archive, out=tmp_path / "run", **QUICK, lr=0.01)
    other = sf.write_archive(tmp_path / "other.archive", **make_patches(seed=3))
    with pytest.raises(sf.MismatchError, match="written with other features"):
        sf.train(other, out=tmp_path / "run", **QUICK)


def test_a_checkpoint_of_another_training(tmp_path, archive):
    interrupted_run(tmp_path, archive)
    with pytest.raises(sf.MismatchError, match="written with other epochs"):
        sf.train(archive, out=tmp_path / "run", **QUICK)


def test_a_damaged_checkpoint(tmp_path, archive):
    checkpoint = interrupted_run(tmp_path, archive)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(sf.ArchiveError, match=r"checkpoint.safetensors: truncated or corrupt"):
        sf.train(archive, out=tmp_path / "run", **QUICK)


@pytest.mark.parametrize("below", ["", "below", "below/that"])
def test_out_that_is_a_file_or_below_one(tmp_path, archive, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(sf.ShazamError, match=r"file.*: .*(a directory expected|is a file).*choose another --out"):
        sf.train(archive, out=tmp_path / "file" / below, **QUICK)
    assert (tmp_path / "file").read_text() == "mine"


def test_two_trainings_in_one_directory(tmp_path, archive):
    process = start(archive, tmp_path / "run", epochs=10_000)
    try:
        wait_for(tmp_path / "run" / "checkpoint.safetensors", process)
        with pytest.raises(sf.ShazamError, match=f"run: process {process.pid} on .* is writing there"):
            sf.train(archive, out=tmp_path / "run", **QUICK)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "left",
    ["checkpoint.safetensors", "checkpoint.safetensors.host-1.unfinished", "student.json.host-1.unfinished", ".lock"],
)
def test_what_a_killed_training_left_goes_with_the_next_call(tmp_path, archive, left):
    out = tmp_path / "run"
    sf.train(archive, out=out, **QUICK)
    (out / left).write_bytes(b"left")
    (out / "notes.unfinished").write_bytes(b"a user's own")
    sf.train(archive, out=out, **QUICK)
    assert sorted(f.name for f in out.iterdir()) == [
        "README.md",
        "history.csv",
        "metrics.json",
        "notes.unfinished",
        "student.json",
        "student.safetensors",
    ]


@pytest.mark.parametrize("what", ["labels", "splits", "groups", "classes", "slides"])
def test_the_same_features_with_another_table_are_another_training(tmp_path, patches, what):
    """Other labels, splits, patients, class or slide names: the student that is there is not the one asked for."""
    patches["groups"] = patches.get("groups", patches["slides"])
    sf.train(sf.write_archive(tmp_path / "a", **patches), out=tmp_path / "run", **QUICK)
    other = {name: np.array(patches[name]) for name in ("labels", "splits", "groups", "slides")}
    if what == "labels":
        other["labels"][0] = (other["labels"][0] + 1) % 3
    elif what == "splits":
        other["splits"][:] = np.where(other["splits"] == "test", "none", other["splits"])
    elif what == "classes":
        patches["classes"] = ["x", "y", "z"]
    else:
        other[what] = np.array([f"other {name}" for name in other[what]])
    archive = sf.write_archive(tmp_path / "b", **{**patches, **other})
    with pytest.raises(
        sf.MismatchError, match=f"written with .*(other features|other {'labels' if what == 'classes' else what})"
    ):
        sf.train(archive, out=tmp_path / "run", **QUICK)


@pytest.mark.parametrize(
    "change", [{"metrics": {"val": {}}}, {"metrics": None}, {"history": 3}, {"metrics": {"val": 1}}]
)
def test_a_finished_training_with_a_damaged_record(tmp_path, archive, change):
    sf.train(archive, out=tmp_path / "run", **QUICK)
    card = json.loads((tmp_path / "run" / "student.json").read_text())
    del card["document_xxh3"]
    card["training"] |= change
    (tmp_path / "run" / "student.json").write_text(json.dumps(card))
    with pytest.raises(sf.ArchiveError, match="its training record is incomplete"):
        sf.train(archive, out=tmp_path / "run", **QUICK)


def make_state():
    """A fresh state of a small training, and the same after one epoch and one step of the next."""
    from shazam_fast.training.saving.checkpoint import TrainingState

    student = sf.Student(
        sf.StudentConfig({"a": 3, "b": 2}, ("x", "y"), dim=4, depth=1), torch.Generator().manual_seed(0)
    )
    optimizer = torch.optim.AdamW(student.parameters(), fused=True)
    return TrainingState(student, optimizer, torch.zeros(5, 6), ["the total loss"], "lower lr")


def advance(state):
    for parameter in state.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.best = {name: tensor.clone() for name, tensor in state.student.state_dict().items()}
    state.epoch, state.step, state.history = 1, 1, [{"epoch": 0, "val_score": 0.5}]
    state.losses += 1.0
    return state


@pytest.mark.parametrize(("selection", "kept", "stops"), [("best", 1, True), ("last", 3, False)])
def test_which_epoch_is_kept_and_when_it_ends(selection, kept, stops):
    state = make_state()
    state.selection = selection
    for epoch, score in enumerate((0.5, 0.7, 0.7, 0.6)):
        state.student.feature_mean.fill_(float(epoch))
        state.end_epoch({"epoch": epoch, "val_score": score})
    assert (state.epoch, state.best_epoch, state.kept_epoch) == (4, 1, kept)
    assert (state.best["feature_mean"] == kept).all()
    assert state.is_finished(epochs=9, patience=2) is stops
    assert state.is_finished(epochs=4, patience=9)
    assert not state.is_finished(epochs=9, patience=3)


def test_without_validation_the_last_epoch_is_kept():
    state = make_state()
    for epoch in range(3):
        state.end_epoch({"epoch": epoch})
        assert state.kept_epoch == epoch


def test_the_losses_of_an_epoch_are_averaged_over_its_rows():
    state = make_state()
    state.losses += torch.tensor([[1.0], [1.0], [1.0], [1.0], [8.0]])
    assert state.mean_losses(n_rows=15, batch_size=3) == [pytest.approx(12 / 5)] * 6
    assert state.mean_losses(n_rows=13, batch_size=3) == [pytest.approx(20 / 13)] * 6


def damaged(note, tensors):
    """Ways in which a checkpoint can be sound as a file and still be none of this training."""
    state = json.loads(note)
    for changes in ({"epoch": 99}, {"step": 10**6}, {"history": []}, {"history": None}, {"epoch": -1}, {"job": 3}):
        yield {**state, **changes}, tensors
    yield {**state, "device": "a GPU"}, tensors
    yield {**state, "job": {"lr": 1.0}}, tensors
    yield [], tensors
    for name in tensors:
        yield state, {key: value for key, value in tensors.items() if key != name}
        yield state, {**tensors, name: torch.zeros(3, 1, 4, 1)}
        yield state, {**tensors, f"{name}x": torch.zeros(1)}
    yield state, {**tensors, "more": torch.zeros(1)}
    yield state, {**tensors, "optimizer/99.exp_avg": torch.zeros(1)}
    yield state, {key: value for key, value in tensors.items() if not key.startswith("best/")}


def test_a_checkpoint_with_another_content(tmp_path):
    from shazam_fast.training.saving.checkpoint import Checkpoint

    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", {"lr": 0.1}, "cpu", 30.0)
    checkpoint.save(advance(make_state()))
    again = make_state()
    assert checkpoint.load(again)
    assert (again.epoch, again.step, again.losses.sum()) == (1, 1, 30.0)
    flat, metadata = read_tensors(tmp_path / "checkpoint.safetensors")
    for state, content in damaged(metadata["state"], flat):
        write_tensors(tmp_path / "checkpoint.safetensors", content, {"state": json.dumps(state)})
        with pytest.raises((sf.ArchiveError, sf.MismatchError), match=tmp_path.name):
            checkpoint.load(make_state())
