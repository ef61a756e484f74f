"""Scoring and evaluating a student."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from synthetic import CLASSES, TEACHERS, make_patches

import shazam_fast as sf
from shazam_fast.scoring.gpu.streaming import gpu_tile_rows
from shazam_fast.scoring.inference import require_finite_results

NAN = np.float16(np.nan).tobytes()


def test_scores_are_what_the_student_says(trained):
    student, archive = trained
    scores = sf.score(student, archive)
    with torch.no_grad():
        output = student.double()(torch.from_numpy(archive.gather(np.arange(300))).double())
    student.float()
    np.testing.assert_allclose(scores.probabilities, output.logits.softmax(1).numpy(), atol=1e-4)
    np.testing.assert_allclose(scores.shares, output.shares.numpy(), atol=1e-3)
    np.testing.assert_array_equal(scores.prediction, scores.probabilities.argmax(1))
    np.testing.assert_allclose(scores.probabilities.sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(scores.shares.sum(1), 1.0, atol=1e-5)
    assert (scores.classes, scores.teachers) == (CLASSES, tuple(TEACHERS))
    np.testing.assert_array_equal(scores.rows, np.arange(300))


def test_one_split(trained):
    student, archive = trained
    everything, test = sf.score(student, archive), sf.score(student, archive, split="test")
    np.testing.assert_array_equal(test.rows, archive.split("test"))
    np.testing.assert_allclose(test.probabilities, everything.probabilities[test.rows], atol=1e-5)
    with pytest.raises(sf.MismatchError, match="no patches to score in split 'none'"):
        sf.score(student, archive, split="none")
    with pytest.raises(sf.MismatchError, match="no split is called 'holdout'"):
        sf.score(student, archive, split="holdout")


def test_parquet(trained, tmp_path):
    student, archive = trained
    scores = sf.score(student, archive, tmp_path / "scores")
    table = pq.read_table(tmp_path / "scores")  # any reader of Parquet takes the directory as it is
    assert table.num_rows == len(scores) == 300
    assert table["slide"].to_pylist()[26] == "slide-001"
    assert table["prediction"].to_pylist() == [CLASSES[c] for c in scores.prediction]
    np.testing.assert_array_equal(table["row"], np.arange(300))
    np.testing.assert_array_equal(table["probability_adenoma"].to_numpy(), scores.probabilities[:, 1])
    np.testing.assert_array_equal(table["share_phikon-v2"].to_numpy(), scores.shares[:, 1])
    np.testing.assert_array_equal(np.stack([table["x"], table["y"]], 1), archive.coords)
    assert sorted(p.name for p in (tmp_path / "scores").iterdir()) == ["_scores.parquet", "part-00000.parquet"]


def test_archives_without_labels_slides_or_coords(trained, tmp_path):
    student, _ = trained
    path = sf.write_archive(tmp_path / "bare", make_patches(rows=10)["features"])
    scores = sf.score(student, path, tmp_path / "scores")
    assert scores.read(["slide"])["slide"].to_pylist() == [None] * 10
    assert scores.slides == ()
    assert (scores.coords == -1).all()


def test_a_saved_student_scores_the_same(trained, tmp_path):
    student, archive = trained
    student.save(tmp_path / "student")
    left, right = sf.score(student, archive), sf.score(tmp_path / "student", archive.path)
    np.testing.assert_array_equal(left.probabilities, right.probabilities)
    assert sf.evaluate(student, archive).to_dict() == sf.evaluate(tmp_path / "student", archive.path).to_dict()


def test_double_precision_on_request(trained):
    student, archive = trained
    exact = sf.score(student.double(), archive)
    student.float()
    np.testing.assert_allclose(exact.probabilities, sf.score(student, archive).probabilities, atol=1e-4)


def test_residual_students_have_no_teacher_shares(archive, tmp_path):
    student = sf.train(archive, epochs=1, batch_size=16, dim=8, depth=1, block="residual").student
    scores = sf.score(student, archive, tmp_path / "scores")
    assert scores.shares is None
    assert not [n for n in scores.read().column_names if n.startswith("share_")]


def test_teachers_in_another_order_and_one_too_many(trained, tmp_path):
    student, archive = trained
    features = make_patches()["features"]
    shuffled = {"virchow": features["virchow"], "conch": np.ones((300, 5)), "uni": features["uni"]}
    shuffled["phikon-v2"] = features["phikon-v2"]
    other = sf.open(sf.write_archive(tmp_path / "a", shuffled))
    left, right = sf.score(student, archive), sf.score(student, other)
    np.testing.assert_allclose(left.probabilities, right.probabilities, atol=1e-6)
    assert right.teachers == tuple(TEACHERS)


def test_a_student_with_teacher_dropout_does_without_a_teacher(trained, tmp_path):
    student, archive = trained
    features = make_patches()["features"]
    del features["phikon-v2"]
    scores = sf.score(student, sf.write_archive(tmp_path / "a", features))
    assert (scores.shares[:, 1] == 0).all()
    np.testing.assert_allclose(scores.shares.sum(1), 1.0, atol=1e-5)
    present = torch.tensor([True, False, True]).expand(300, -1)
    with torch.no_grad():
        expected = student(torch.from_numpy(archive.gather(np.arange(300))), present).logits.softmax(1)
    np.testing.assert_allclose(scores.probabilities, expected.numpy(), atol=1e-4)


def test_other_teachers_are_named(trained, archive, tmp_path):
    student, _ = trained
    features = make_patches()["features"]
    strict = sf.train(archive, epochs=1, batch_size=16, dim=8, depth=1).student
    fewer = sf.write_archive(tmp_path / "fewer", {"uni": features["uni"], "conch": features["virchow"]})
    with pytest.raises(sf.MismatchError, match=r"missing \['phikon-v2', 'virchow'\]; found \['uni', 'conch'\]"):
        sf.score(strict, fewer)
    with pytest.raises(sf.MismatchError, match="only a student trained with teacher_dropout"):
        sf.score(strict, fewer)
    none = sf.write_archive(tmp_path / "none", {"conch": features["virchow"]})
    with pytest.raises(sf.MismatchError, match=r"missing \['uni', 'phikon-v2', 'virchow'\]"):
        sf.score(student, none)
    wider = sf.write_archive(tmp_path / "wider", {**features, "uni": features["virchow"]})
    with pytest.raises(sf.MismatchError, match="'uni' has 20 columns, the student needs 12"):
        sf.score(student, wider)


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_a_stored_nan_is_named(archive, block):
    student = sf.train(archive, epochs=1, batch_size=16, dim=8, depth=1, block=block).student
    part = archive.path / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    offset = 4096 + (203 * 39 + 12) * 2
    content[offset : offset + 2] = NAN
    part.write_bytes(content)
    with pytest.raises(sf.NonFiniteError, match="teacher 'phikon-v2', row 203"):
        sf.score(student, archive.path)


def test_the_row_of_a_nan_is_named_where_rows_computed_with_it_are_spoilt_too(archive):
    part = archive.path / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    offset = 4096 + (203 * 39 + 12) * 2
    content[offset : offset + 2] = NAN
    part.write_bytes(content)
    results = np.zeros(archive.n_rows, np.float32)
    results[192:208] = np.nan  # one program of a GPU kernel
    with pytest.raises(sf.NonFiniteError, match="teacher 'phikon-v2', row 203"):
        require_finite_results(sf.open(archive.path), np.arange(archive.n_rows), results)


def test_tiles_on_a_gpu_are_measured_in_bytes(archive):
    """Of the features, and of [B N, K D] where a student has no kernels."""
    assert gpu_tile_rows(archive, sf.StudentConfig({"uni": 12}, CLASSES, dim=1, depth=1)) == (128 << 20) // 78
    wide = sf.StudentConfig({f"t{i}": 8 for i in range(16)}, CLASSES, dim=1024, depth=12)
    assert gpu_tile_rows(archive, wide) == 1365


def test_evaluate_needs_labels_and_the_same_classes(trained, tmp_path):
    student, archive = trained
    assert sf.evaluate(student, archive, "val").n_rows == 75
    patches = make_patches()
    patches["labels"][299] = -1
    with pytest.raises(
        sf.MismatchError, match="1 of 75 patches of split 'test' have no label; the first is row 299, of slide"
    ):
        sf.evaluate(student, sf.write_archive(tmp_path / "a", **patches))
    patches["classes"] = ["adenoma", "normal", "carcinoma"]
    with pytest.raises(sf.MismatchError, match=r"its classes .* are not the student's"):
        sf.evaluate(student, sf.write_archive(tmp_path / "b", **patches))


def test_scoring_leaves_the_student_as_it_was(trained):
    student, archive = trained
    student.train()
    sf.score(student, archive)
    assert student.training
    student.eval()


@pytest.mark.parametrize("option", ["fused", "allow_missing_teachers"])
def test_switches_are_true_or_false(trained, option):
    """A text such as "no" is true in Python."""
    with pytest.raises(sf.ShazamError, match=f"{option}: True or False expected, found 'no'"):
        sf.score(*trained, **{option: "no"})
