"""What training refuses, before it reads or claims anything where it can, and what it says."""

import numpy as np
import pytest
from trainings import QUICK

import shazam_fast as sf


def change(patches, tmp_path, **changes):
    return sf.write_archive(tmp_path / "bad.archive", **{**patches, **changes})


def test_a_stored_nan_is_named(archive):
    part = archive.path / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    offset = 4096 + (17 * 39 + 12 + 7) * 2
    content[offset : offset + 2] = np.float16(np.nan).tobytes()
    part.write_bytes(content)
    with pytest.raises(sf.NonFiniteError, match=r"teacher 'virchow', row 17 .*: the feature is nan"):
        sf.train(archive, **QUICK)


def test_a_loss_that_explodes_is_named(archive):
    with pytest.raises(sf.NonFiniteError, match=r"epoch \d+, step \d+: .* is not finite; lower lr"):
        sf.train(archive, **{**QUICK, "epochs": 50}, lr=1e30, standardize=False, patience=50)


def test_splits_that_are_missing(tmp_path, patches):
    with pytest.raises(sf.MismatchError, match=r"no patch is marked 'train'. Add splits: --splits FILE, or those"):
        sf.train(change(patches, tmp_path, splits=None), **QUICK)
    splits = np.where(patches["splits"] == "val", "none", patches["splits"])
    archive = sf.write_archive(tmp_path / "no-val", **{**patches, "splits": splits})
    with pytest.raises(sf.MismatchError, match="no patch is marked 'val'"):
        sf.train(archive, **QUICK)


def test_a_class_without_training_patches(tmp_path, patches):
    patches["labels"][(patches["splits"] == "train") & (patches["labels"] == 2)] = 0
    with pytest.raises(sf.MismatchError, match="no training patch has class 'carcinoma'; put slides of it"):
        sf.train(change(patches, tmp_path), **QUICK)


def test_many_classes_without_training_patches(tmp_path):
    labels, splits = np.arange(40) % 20, np.repeat(["train", "val"], 20)
    labels[:20] = np.arange(20) % 2
    archive = sf.write_archive(tmp_path / "a", {"uni": np.ones((40, 3))}, labels=labels, splits=splits)
    message = r"class '2', '3', '4', '5', '6' and 13 more; put"
    with pytest.raises(sf.MismatchError, match=message):
        sf.train(archive, **QUICK)


@pytest.mark.parametrize("config", [{"epochs": 1}, "huncrc", 3])
def test_a_config_that_is_none(archive, config):
    with pytest.raises(
        sf.ShazamError, match=r"config: a TrainConfig expected, found .*; write train\(archive, epochs=1"
    ):
        sf.train(archive, config)


def test_unlabelled_patches(tmp_path, patches):
    patches["labels"][[5, 9]] = -1
    message = r"2 of 150 patches of split 'train' have no label; the first is row 5, of slide '.*' at x \d+, y \d+"
    with pytest.raises(sf.MismatchError, match=message):
        sf.train(change(patches, tmp_path), **QUICK)


def test_the_remedy_for_unlabelled_patches_works(tmp_path, patches):
    patches["labels"][[5, 9]] = -1
    patches["splits"][[5, 9]] = "none"
    assert sf.train(change(patches, tmp_path), **QUICK).history


def test_an_archive_without_labels(tmp_path, patches):
    """The labels are asked for first, whether or not there are splits."""
    for name, splits in (("with", patches["splits"]), ("without", None)):
        archive = sf.write_archive(tmp_path / name, **{**patches, "labels": None, "splits": splits})
        with pytest.raises(sf.MismatchError, match=r"the archive has no labels; open it with labels="):
            sf.train(archive, **QUICK)


def test_withheld_test_labels_are_said_and_skipped(tmp_path, patches, caplog):
    patches["labels"][patches["splits"] == "test"] = -1
    result = sf.train(change(patches, tmp_path), **QUICK)
    assert set(result.metrics) == {"val"}
    assert "was not evaluated" in caplog.text


def test_a_batch_larger_than_the_archive(archive):
    with pytest.raises(sf.MismatchError, match="batch_size 151 is larger than the training split, 150 patches"):
        sf.train(archive, **{**QUICK, "batch_size": 151})


def test_a_training_split_smaller_than_a_usual_batch(tmp_path, caplog):
    """It is one batch; a batch that was asked for is refused, as the user may have meant it."""
    caplog.set_level("INFO", "shazam_fast")
    features = {"uni": np.random.default_rng(0).normal(size=(12, 4))}
    splits = ["train"] * 6 + ["val"] * 6
    archive = sf.write_archive(tmp_path / "a", features, labels=np.arange(12) % 2, splits=splits)
    shape = {"epochs": 1, "dim": 4, "depth": 1, "device": "cpu"}
    assert sf.train(archive, **shape).student.training_record["job"]["batch_size"] == 6
    assert "; 6 per batch" in caplog.text
    assert sf.sweep(archive, {"seed": [0]}, **shape).runs[0].config.batch_size == 6
    for asked in ({"batch_size": 64}, {"config": sf.TrainConfig(**shape)}):
        with pytest.raises(sf.MismatchError, match="batch_size 64 is larger than the training split, 6 patches"):
            sf.train(archive, **asked)
    with pytest.raises(sf.MismatchError, match="batch_size 7 is larger"):
        sf.sweep(archive, [{"batch_size": 7}], **shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.1}, "train.. has no option learning_rate; options are epochs"),
        ({"preset": "camelyon"}, "no preset is called 'camelyon'"),
        ({"threads": 1000}, "threads: a whole number from 1 to 256 expected, found 1000"),
        ({"huber": "l1"}, "huber: one of norm, elementwise expected, found 'l1'"),
        ({"targets": "raw"}, "targets: one of"),
        ({"block": "moe"}, "block: one of bare, residual, levels expected, found 'moe'"),
        ({"backend": "cuda"}, "backend: one of"),
        ({"precision": "fp8"}, "precision: one of"),
        ({"standardize": "no"}, "standardize: True or False expected, found 'no'"),
        *(
            ({name: value}, f"{name}: a whole number from {0 if name == 'seed' else 1}")
            for name in ("epochs", "batch_size", "patience", "dim", "depth", "seed")
            for value in (-1, 2.0, True, "3", None, np.float32(2), *([0] if name != "seed" else []))
        ),
        *(
            ({name: value}, f"{name}: a number ")
            for name in ("lr", "weight_decay", "lam", "delta", "teacher_dropout", "checkpoint_seconds")
            for value in (-0.1, float("nan"), float("inf"), True, "1", None)
        ),
        ({"lr": 0.0}, "lr: a number more than 0 expected, found 0.0"),
        ({"delta": 0}, "delta: a number more than 0"),
        ({"teacher_dropout": 1.0}, "teacher_dropout: a number at least 0 and less than 1 expected, found 1.0"),
        ({"dim": 10**7}, "dim: a whole number from 1 to 16384"),
        ({"depth": 10**7}, "depth: a whole number from 1 to 1000"),
        ({"seed": 2**63}, "seed: a whole number from 0 to"),
        ({"device": "gpu"}, "device: 'cpu', 'cuda' or 'cuda:1' expected, found 'gpu'; use device='cpu'"),
        ({"device": ""}, "device: 'cpu', 'cuda' or 'cuda:1' expected"),
        ({"device": "cuda:99"}, "device 'cuda:99': (PyTorch finds no NVIDIA GPU|this machine has)"),
        ({"device": 0}, "device: 'cpu', 'cuda' or 'cuda:1' expected, found 0"),
        ({"device": "mps"}, "device: 'cpu', 'cuda' or 'cuda:1' expected, found 'mps'"),
    ],
)
def test_impossible_options(archive, tmp_path, options, message):
    """Refused before anything is read or claimed: not even the directory is made."""
    with pytest.raises(sf.ShazamError, match=message):
        sf.train(archive, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_are_numbers(tmp_path, archive):
    options = {
        "epochs": np.int64(1),
        "lr": np.float32(0.001),
        "dim": np.int32(8),
        "depth": 1,
        "batch_size": np.int16(16),
    }
    sf.train(archive, out=tmp_path / "run", **options, standardize=np.True_)
    job = sf.load(tmp_path / "run").training_record["job"]
    assert (job["epochs"], job["dim"], job["standardize"]) == (1, 8, True)
