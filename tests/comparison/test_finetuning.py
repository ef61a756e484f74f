"""The fine-tuned teacher baseline, on images that the test makes, with a tiny random ViT."""

import csv
import dataclasses
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from interruption import stopping_after
from processes import Process
from program import call, run_program
from trainings import without_times

import shazam_fast as sf
from shazam_fast.comparison.finetuning import model
from shazam_fast.comparison.finetuning import run as finetuning
from shazam_fast.comparison.fold import Fold
from shazam_fast.images.table import ImageTable
from shazam_fast.teachers import registry as teacher_registry
from shazam_fast.training import validation

pytest.importorskip("timm")
image_module = pytest.importorskip("PIL.Image")

VIT = {"model_name": "vit_tiny_patch16_224", "img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2}
TINY = sf.TeacherSpec("tiny", dim=48, arguments=VIT, transform=sf.Transform(32, 32), blocks=2)
CLASSES = ("pink", "blue", "white")
COLOURS = np.array([[220, 120, 170], [110, 90, 190], [240, 235, 240]])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 noisy images of three colours: 30 to train, 15 to validate, 15 to test."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    paths = []
    for i, label in enumerate(labels):
        pixels = np.clip(COLOURS[label] + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
        paths.append(folder / f"{i:02d}.png")
        image_module.fromarray(pixels).save(paths[-1])
    splits = np.repeat([0, 1, 2], [30, 15, 15]).astype(np.uint8)
    return ImageTable(tuple(paths), labels.astype(np.int64), CLASSES, splits)


def run(table, **options):
    options = {"weights": "random", "epochs": 4, "batch_size": 10, "backbone_lr": 1e-4, "device": "cpu", **options}
    return sf.finetune(table, TINY, **options)


@pytest.fixture(scope="module")
def result(table):
    return run(table)


def test_it_learns(table, result):
    assert result.metrics["test"].accuracy > 0.9
    assert result.metrics["test"].n_rows == result.metrics["val"].n_rows == 15
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert len(result.history) <= 4


def test_the_best_epoch_is_what_comes_back(table, result):
    best = max(result.history, key=lambda record: record["val_score"])
    val = result.metrics["val"]
    assert best["val_score"] == pytest.approx(0.8 * val.balanced_accuracy + 0.2 * val.weighted_f1)
    transform = result.model.teacher.transform
    images = torch.stack([transform(image_module.open(path)) for path in table.paths[45:]])
    assert not result.model.training
    predicted = result.model(images).argmax(dim=1).numpy()
    assert (predicted == table.labels[45:]).mean() == result.metrics["test"].accuracy


def test_later_epochs_that_are_worse_are_undone(table, monkeypatch):
    first = run(table, epochs=1).model.state_dict()
    scores = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(validation, "selection_score", lambda *_: next(scores))
    result = run(table, epochs=3)
    assert [record["val_score"] for record in result.history] == [0.9, 0.8, 0.7]
    assert all(torch.equal(tensor, first[name]) for name, tensor in result.model.state_dict().items())


def test_backbone_and_head_move_at_their_own_rates(table):
    before = sf.load_teacher(TINY, "random").state_dict()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    result = run(table, epochs=1, backbone_lr=1e-9, weight_decay=0.0)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random numbers are left alone"
    after = result.model.teacher.state_dict()
    moved = max(float((after[name] - tensor).abs().max()) for name, tensor in before.items())
    assert 0 < moved < 1e-7
    again = run(table, epochs=1, backbone_lr=1e-3, weight_decay=0.0).model.teacher.state_dict()
    assert max(float((again[name] - tensor).abs().max()) for name, tensor in before.items()) > 1e-4


def test_the_same_seed_gives_the_same_bits(table, result):
    again = run(table, workers=1)
    assert without_times(again.history) == without_times(result.history)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name])
    assert run(table, seed=1, epochs=1).history[0]["loss"] != result.history[0]["loss"]


def test_it_says_what_it_does_and_stops_when_told(table, tmp_path, caplog):
    caplog.set_level("INFO", "shazam_fast")
    patients = tuple(f"p{i // 5}" for i in range(60))
    seen = []

    def look(record):
        seen.append(record)
        if len(seen) == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run(dataclasses.replace(table, groups=patients), out=tmp_path / "run", on_epoch=look)
    first, *lines = caplog.messages
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    splits = "train 6 patients, 30 images; val 3 patients, 15 images; test 3 patients, 15 images"
    assert first == f"fine-tuning on cpu, {threads}; {splits}; 10 per batch"
    assert [line.split(": ")[0] for line in lines] == ["epoch 1/4", "epoch 2/4"]
    assert all(f"{name} " in lines[0] for name in ("val loss", "val calibration error", "seconds"))
    result = run(dataclasses.replace(table, groups=patients), out=tmp_path / "run", on_epoch=seen.append)
    assert seen == result.history  # the epochs before the interruption are kept
    with (tmp_path / "run" / "history.csv").open() as file:
        assert [float(row["val_loss"]) for row in csv.DictReader(file)] == [r["val_loss"] for r in result.history]
    val = result.metrics["val"]
    found = result.history[int(np.argmax([record["val_score"] for record in result.history]))]
    assert found["val_calibration_error"] == pytest.approx(val.calibration_error, abs=1e-6)
    own = val.probabilities[np.arange(15), val.labels]
    assert found["val_loss"] == pytest.approx(-np.log(own).mean(), rel=1e-4)


def test_it_stops_when_nothing_gets_better(table):
    assert len(run(table, epochs=30, patience=2, backbone_lr=1e-12, head_lr=1e-12).history) == 3


def test_a_registered_name_and_no_test_split(table, monkeypatch):
    monkeypatch.setattr(teacher_registry, "_registry", dict(teacher_registry._registry))
    sf.register_teacher(dataclasses.replace(TINY, name="tiny-by-name"))
    without = dataclasses.replace(table, splits=np.where(table.splits == 2, 255, table.splits).astype(np.uint8))
    found = sf.finetune(without, "tiny-by-name", weights="random", epochs=1, device="cpu")
    assert list(found.metrics) == ["val"]


def test_tables_that_cannot_be_trained_on(table):
    def changed(**fields):
        return dataclasses.replace(table, **fields)

    with pytest.raises(sf.MismatchError, match="split 'val' is empty"):
        run(changed(splits=np.zeros(60, dtype=np.uint8)))
    labels = table.labels.copy()
    labels[4] = -1
    with pytest.raises(sf.MismatchError, match=r"split 'train': 1 image without a label, the first: .*04.png"):
        run(changed(labels=labels))
    with pytest.raises(sf.MismatchError, match="no training image has class green"):
        run(changed(classes=(*CLASSES, "green")))
    with pytest.raises(sf.MismatchError, match="write the slides' patches out as images"):
        run(changed(sides=np.full((60, 2), 32, dtype=np.int32), coords=np.zeros((60, 2), dtype=np.int32)))
    with pytest.raises(sf.MismatchError, match="the split leaks: group 'p' has patches in train, val"):
        run(changed(groups=("p",) * 60))


def test_options_out_of_range_or_unknown(table):
    with pytest.raises(sf.ShazamError, match="head_lr: a number more than 0 expected"):
        run(table, head_lr=0.0)
    with pytest.raises(sf.ShazamError, match=r"no option lr; options are epochs, .*backbone_lr"):
        run(table, lr=0.1)
    with pytest.raises(sf.ShazamError, match="config: a FinetuneConfig expected"):
        sf.finetune(table, TINY, {"epochs": 1}, weights="random")


def test_an_image_that_cannot_be_read(table, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(table.paths[0].read_bytes()[:100])
    with pytest.raises(sf.ShazamError, match=r"broken\.png: cannot be decoded.*\(row 0 of the images\)"):
        run(dataclasses.replace(table, paths=(broken, *table.paths[1:])))


def test_logits_that_are_not_finite_name_the_image(table, monkeypatch):
    forward = model.FinetunedTeacher.forward

    def overflowing(self, images):
        logits = forward(self, images)
        return logits if self.training else logits * torch.inf

    monkeypatch.setattr(model.FinetunedTeacher, "forward", overflowing)
    with pytest.raises(sf.NonFiniteError, match=r"30\.png: its logits are NaN or infinite"):
        run(table, epochs=1)


def test_a_loss_that_explodes_is_named(table):
    with pytest.raises(sf.NonFiniteError, match=r"epoch 0, step \d: the loss is not finite; lower backbone_lr"):
        run(table, backbone_lr=1e30, head_lr=1e30)


SCRIPT = """
import sys, shazam_fast as sf
sys.path += [sys.argv[1], sys.argv[1] + "/comparison"]  # of the tests
from test_finetuning import TINY
sf.finetune(sys.argv[2], TINY, out=sys.argv[3], weights="random", epochs=int(sys.argv[4]), batch_size=10, device="cpu",
            backbone_lr=1e-4, patience=10_000, checkpoint_seconds=0.0)
"""


@pytest.fixture(scope="module")
def listed(table, tmp_path_factory):
    """The table as a CSV."""
    file = tmp_path_factory.mktemp("tables") / "images.csv"
    names = ("train", "val", "test")
    rows = zip(table.paths, table.labels.tolist(), table.splits.tolist(), strict=True)
    file.write_text("path,label,split\n" + "\n".join(f"{p},{CLASSES[y]},{names[s]}" for p, y, s in rows) + "\n")
    return file


def assert_same(left, right):
    assert without_times(left.history) == without_times(right.history)
    assert {name: m.to_dict() for name, m in left.metrics.items()} == {
        name: m.to_dict() for name, m in right.metrics.items()
    }
    theirs = right.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in left.model.state_dict().items())


@pytest.mark.parametrize("steps", [1, 2, 3, 7])  # three steps are an epoch
def test_interrupted_and_continued_gives_the_same_bits(table, result, tmp_path, monkeypatch, steps):
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "stop_on_interrupt", stopping_after(steps))
        with pytest.raises(KeyboardInterrupt):
            run(table, out=tmp_path / "run")
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["checkpoint.safetensors"]
    assert_same(run(table, out=tmp_path / "run"), result)
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == [
        "finetuned.json", "head.safetensors", "history.csv", "metrics.json", "teacher.safetensors"
    ]  # fmt: skip


def start(listed, out, epochs):
    return Process(SCRIPT, Path(__file__).parents[1], listed, out, epochs)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_killed_and_continued_gives_the_same_bits(listed, tmp_path):
    out = tmp_path / "run"
    process = start(listed, out, 30)
    wait_for(out / "checkpoint.safetensors", process)
    with pytest.raises(sf.ShazamError, match=f"process {process.pid} on .* is writing there"):
        run(listed, out=out, epochs=30, patience=10_000)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "finetuned.json").exists(), "it was killed too late for this test"
    assert_same(run(listed, out=out, epochs=30, patience=10_000), run(listed, epochs=30, patience=10_000))


def test_a_finished_one_is_loaded_and_another_refused(table, result, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(table, out=out)
    (out / "checkpoint.safetensors").write_bytes(b"left by a process that was killed")
    monkeypatch.setattr(finetuning, "FinetuningRun", None)
    assert_same(run(table, out=out), result)
    assert not (out / "checkpoint.safetensors").exists()
    with pytest.raises(sf.MismatchError, match=r"written with another head_lr \(0.001, now 0.1\)"):
        run(table, out=out, head_lr=0.1)
    labels = table.labels.copy()
    labels[[0, 1]] = labels[[1, 0]]
    with pytest.raises(sf.MismatchError, match="written with other labels"):
        run(dataclasses.replace(table, labels=labels), out=out)
    with pytest.raises(sf.MismatchError, match="written with other images"):
        run(dataclasses.replace(table, paths=table.paths[::-1]), out=out)
    weights = {name: tensor + 1 for name, tensor in sf.load_teacher(TINY, "random").model.state_dict().items()}
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(sf.MismatchError, match="written with other weights"):
        run(table, out=out, weights=tmp_path / "other.pth")


def test_a_checkpoint_of_another_one(table, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "stop_on_interrupt", stopping_after(2))
    with pytest.raises(KeyboardInterrupt):
        run(table, out=tmp_path / "run")
    with pytest.raises(sf.MismatchError, match="written with another seed"):
        run(table, out=tmp_path / "run", seed=3)


def test_damaged_results(table, tmp_path):
    out = tmp_path / "run"
    run(table, out=out, epochs=1)
    content = (out / "head.safetensors").read_bytes()
    (out / "head.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(sf.ArchiveError, match="checksum mismatch"):
        run(table, out=out, epochs=1)
    (out / "head.safetensors").unlink()
    with pytest.raises(sf.ArchiveError, match=r"head\.safetensors"):
        run(table, out=out, epochs=1)
    card = json.loads((out / "finetuned.json").read_text())
    del card["document_xxh3"], card["metrics"]["val"]["classes"]
    (out / "finetuned.json").write_text(json.dumps(card))
    (out / "head.safetensors").write_bytes(content)
    with pytest.raises(sf.ArchiveError, match=r"finetuned\.json: corrupt: not the metrics"):
        run(table, out=out, epochs=1)


def test_dropout_and_parameters_without_a_gradient(table, tmp_path, monkeypatch):
    """A pooler that no feature depends on has no moments; the checkpoint resumes all the same."""

    class WithPooler(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.used, self.pooler = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)

        def forward(self, images):
            return torch.nn.functional.dropout(self.used(images.mean(dim=(2, 3))), 0.5, self.training)

    spec = sf.TeacherSpec("pooler", dim=4, library="torch", pooling="model", arguments={"create": WithPooler})
    options = {"epochs": 2, "batch_size": 10, "device": "cpu"}
    whole = sf.finetune(table, spec, **options)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "stop_on_interrupt", stopping_after(4))
        with pytest.raises(KeyboardInterrupt):
            sf.finetune(table, spec, out=tmp_path / "run", **options)
    assert_same(sf.finetune(table, spec, out=tmp_path / "run", **options), whole)


def test_the_teacher_can_be_extracted_with(table, result, tmp_path):
    run(table, out=tmp_path / "run")
    loaded = sf.load_teacher(TINY, tmp_path / "run" / "teacher.safetensors").state_dict()
    trained = result.model.teacher.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in loaded.items())


def test_as_a_method_of_a_comparison(table, tmp_path):
    splits = np.roll(table.splits, 15)
    archive = sf.open(sf.write_archive(
        tmp_path / "features", {"a": np.ones((60, 2))}, labels=table.labels, splits=splits, classes=CLASSES
    ))  # fmt: skip
    options = {"weights": "random", "epochs": 4, "batch_size": 10, "backbone_lr": 1e-4, "device": "cpu"}
    found = finetuning.finetune_fold(Fold(archive, seed=2), table, TINY, **options)
    alone = run(dataclasses.replace(table, splits=splits), seed=2)
    for name in ("val", "test"):
        paths = [table.paths[row] for row in archive.split(name)]
        images = torch.stack([alone.model.teacher.transform(image_module.open(path)) for path in paths])
        assert np.allclose(found[name], alone.model(images).softmax(dim=1).detach().numpy(), atol=1e-5)
    with pytest.raises(sf.MismatchError, match="images with the archive's classes and labels expected"):
        finetuning.finetune_fold(Fold(archive), dataclasses.replace(table, labels=table.labels[::-1].copy()), TINY)


def test_on_the_command_line(listed, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_registry, "_registry", dict(teacher_registry._registry))
    sf.register_teacher(dataclasses.replace(TINY, name="tiny-by-name"))
    options = ("--teacher", "tiny-by-name", "--weights", "random", "--batch-size", "10", "--device", "cpu")
    command = ("finetune", listed, *options, "--epochs", "2", "--backbone-lr", "1e-4", "--out", tmp_path / "run")
    first = call(*command)
    assert first.returncode == 0, first.stderr
    assert "the best of 2 epochs is number" in first.stdout
    assert "confusion, test" in first.stdout
    assert call(*command).stdout == first.stdout
    other = call(*command, "--seed", "1")
    assert other.returncode == 1
    assert "written with another seed (0, now 1)" in other.stderr
    refused = call("train", listed, "--out", tmp_path / "run")
    assert "holds a fine-tuned teacher already" in refused.stderr


def test_help_of_the_command():
    text = run_program("finetune", "--help", width=200).stdout
    for field in dataclasses.fields(sf.FinetuneConfig):
        assert f"--{field.name.replace('_', '-')} " in text
