"""The fine-tuned teacher baseline, on images that the test makes, with a tiny random ViT."""

import dataclasses

import numpy as np
import pytest
import torch

import shazam_fast as sf
from shazam_fast.comparison import finetuning
from shazam_fast.images.table import ImageTable
from shazam_fast.teachers import registry as teacher_registry

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
    monkeypatch.setattr("shazam_fast.comparison.finetuning.selection_score", lambda *_: next(scores))
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
    assert again.history == result.history
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name])
    assert run(table, seed=1, epochs=1).history[0] != result.history[0]


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
    with pytest.raises(sf.MismatchError, match=r"1 images of split 'train' have no label, the first: .*04.png"):
        run(changed(labels=labels))
    with pytest.raises(sf.MismatchError, match="no training image has class green"):
        run(changed(classes=(*CLASSES, "green")))
    with pytest.raises(sf.MismatchError, match="write the slides' patches out as images"):
        run(changed(sides=np.full((60, 2), 32, dtype=np.int32), coords=np.zeros((60, 2), dtype=np.int32)))
    with pytest.raises(sf.ShazamError, match="learning rates > 0"):
        run(table, head_lr=0.0)


def test_an_image_that_cannot_be_read(table, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(table.paths[0].read_bytes()[:100])
    with pytest.raises(sf.ShazamError, match=r"broken\.png: cannot be decoded.*\(row 0 of the images\)"):
        run(dataclasses.replace(table, paths=(broken, *table.paths[1:])))


def test_logits_that_are_not_finite_name_the_image(table, monkeypatch):
    forward = finetuning.FinetunedTeacher.forward

    def overflowing(self, images):
        logits = forward(self, images)
        return logits if self.training else logits * torch.inf

    monkeypatch.setattr(finetuning.FinetunedTeacher, "forward", overflowing)
    with pytest.raises(sf.NonFiniteError, match=r"30\.png: its logits are NaN or infinite"):
        run(table, epochs=1)


def test_a_loss_that_explodes_is_named(table):
    with pytest.raises(sf.NonFiniteError, match="epoch 0: the loss is nan"):
        run(table, backbone_lr=1e30, head_lr=1e30)
