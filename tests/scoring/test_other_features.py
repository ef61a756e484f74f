"""Features made with other weights, another transform or pooling than those that a student was trained on."""

import json

import numpy as np
import pytest

import shazam_fast as sf

RECORD = {"transform": {"size": 224, "mean": [0.5, 0.5, 0.5]}, "pooling": "cls", "revision": "abc"}


def write(path, record):
    """An archive of a teacher's two levels, with what `extract` says of the teacher."""
    rng, rows = np.random.default_rng(0), np.arange(60)
    features = {"uni": rng.normal(size=(60, 6)), "uni:low": rng.normal(size=(60, 4))}
    sf.write_archive(path, features, labels=rows % 2, splits=np.repeat(["train", "val", "test"], 20))
    manifest = json.loads((path / "archive.json").read_text())
    manifest.pop("document_xxh3", None)
    if record is not None:
        manifest["job"] = {"teachers": {"uni": record}}
    (path / "archive.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture
def student(tmp_path):
    archive = write(tmp_path / "trained", RECORD)
    out = tmp_path / "run"
    sf.train(archive, out=out, epochs=1, dim=8, depth=1, batch_size=8, device="cpu")
    return out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"revision": "def"}, "'uni': its features have revision def, the student was trained on revision abc"),
        ({"pooling": "cls+mean"}, "'uni': its features have pooling cls.mean, the student was trained on pooling cls"),
        ({"transform": {"size": 448}}, "'uni': its features have transform .*448.*, the student .*224"),
    ],
)
@pytest.mark.parametrize("call", [sf.score, sf.evaluate])
def test_other_features_are_refused(tmp_path, student, changes, named, call):
    with pytest.raises(sf.MismatchError, match=named):
        call(student, write(tmp_path / "other", {**RECORD, **changes}), device="cpu")


@pytest.mark.parametrize("record", [RECORD, None, {}, {"pooling": "cls"}, {**RECORD, "precision": "float16"}])
def test_the_same_and_the_unknown_are_accepted(tmp_path, student, record):
    assert len(sf.score(student, write(tmp_path / "other", record), device="cpu")) == 60


def test_the_record_is_kept_with_the_student(student):
    assert sf.load(student).training_record["teachers"]["uni:low"]["revision"] == "abc"
