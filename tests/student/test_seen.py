"""Figures on slides that a student was trained on are refused."""

import numpy as np
import pytest

import shazam_fast as sf
from shazam_fast.archive.inspection import slides_by_split
from shazam_fast.student.saving.seen import require_unseen, seen_slides

SLIDES = [f"s{i}" for i in range(12)]


def write(folder, splits):
    """12 slides of 10 patches; splits: of each slide."""
    labels = np.arange(120) % 2
    features = {"uni": np.random.default_rng(0).normal(size=(120, 8)) + labels[:, None]}
    names = np.repeat(SLIDES, 10)
    return sf.open(sf.write_archive(folder, features, labels=labels, slides=names, splits=np.repeat(splits, 10)))


def test_slides_that_lie_in_several_splits_are_not_recorded(tmp_path):
    splits = ["train", "train", "val", "train", "test", "train", "none", "none"]
    features = {"uni": np.ones((8, 4), dtype=np.float32)}
    slides = ["a", "a", "b", "c", "c", "d", "d", "e"]
    archive = sf.open(sf.write_archive(tmp_path / "a", features, labels=np.arange(8) % 2, slides=slides, splits=splits))
    assert slides_by_split(archive) == {"train": ["a", "d"], "val": ["b"]}


def test_members_of_an_ensemble_count():
    record = {"members": [{"slides": {"train": ["a"]}}, {"slides": {"train": ["b"], "val": ["c"]}}, {}]}
    assert seen_slides(record, ["d", "c", "a"]) == ["c", "a"]
    require_unseen(record, ["c"], "archive", "val")
    with pytest.raises(sf.MismatchError, match=r"2 of the 2 slides .* 'c'"):
        require_unseen(record, ["c", "a"], "archive", "test")


def test_a_student_is_not_judged_on_slides_of_its_training(tmp_path):
    splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    archive, other = write(tmp_path / "a", splits), write(tmp_path / "b", splits[::-1])
    student = sf.train(archive, epochs=1, dim=8, depth=1, batch_size=8, device="cpu", out=tmp_path / "run").student
    assert student.training_record["slides"] == {"train": SLIDES[:6], "val": SLIDES[6:9]}
    assert sf.evaluate(student, archive, "val").n_rows == sf.evaluate(student, archive).n_rows == 30
    for split in ("val", "test"):
        with pytest.raises(sf.MismatchError, match=r"trained on 3 of the 3 slides.*'s[03]'"):
            sf.evaluate(tmp_path / "run", other, split)
    assert sf.evaluate(student, other, allow_trained_slides=True).n_rows == 30
    with pytest.raises(sf.MismatchError, match="6 slides that the student was trained on; the first is 's0'"):
        sf.calibrate(student, archive, "train")
