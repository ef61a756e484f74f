import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cohorts import TEACHERS, make_cohort

import shazam_fast as sf
from shazam_fast.errors import ArchiveError, MismatchError, NonFiniteError
from shazam_fast.slides import scoring
from shazam_fast.slides.models import inference
from shazam_fast.slides.options import SlideConfig
from shazam_fast.slides.students import SlideStudent, build_model


def make_student(model="shazam_abmil", members=2):
    torch.manual_seed(0)
    config = SlideConfig(TEACHERS, "classification", ("a", "b"), model, dim=8)
    return SlideStudent(config, [build_model(config) for _ in range(members)]).eval()


@pytest.fixture
def cohort(tmp_path):
    return make_cohort(tmp_path / "a", slides=9, sizes=(1, 60))


@pytest.mark.parametrize("model", ["mean", "abmil", "gated_abmil", "shazam_abmil"])
@pytest.mark.parametrize("size", [1e37, 1e38])
def test_features_too_large_for_the_model_are_an_error(tmp_path, model, size):
    """In a patch's values or, where these still are numbers, in their sum over a slide."""
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(400, dim)).astype(np.float32) for name, dim in TEACHERS.items()}
    for matrix in features.values():
        matrix[300:] = size
    slides = np.repeat(["fine", "large"], [300, 100])
    archive = sf.open(sf.write_archive(tmp_path / "a", features, slides=slides, dtype="float32"))
    with pytest.raises(NonFiniteError, match=r"('large'|row 3\d\d): .*too large for float32"):
        sf.slides.score(make_student(model), archive, device="cpu")


@pytest.mark.parametrize("model", ["mean", "max", "abmil", "shazam_abmil"])
def test_chunks_and_groups_change_nothing(cohort, monkeypatch, model):
    archive, _, _ = cohort
    student = make_student(model)
    whole = sf.slides.score(student, archive, device="cpu")
    monkeypatch.setattr(inference, "CHUNK_ROWS", 7)
    monkeypatch.setattr(inference, "GROUP_ROWS", 20)
    pieces = sf.slides.score(student, archive, device="cpu")
    assert pieces.names == whole.names == archive.slides
    assert np.allclose(pieces.values, whole.values, atol=1e-5)
    assert np.allclose(pieces.patches["attention"], whole.patches["attention"], atol=1e-5)
    assert (pieces.shares is None) == (model != "shazam_abmil")
    assert pieces.shares is None or np.allclose(pieces.shares, whole.shares, atol=1e-5)
    assert pieces.patches["row"].to_pylist() == whole.patches["row"].to_pylist()


def test_scores_are_means_over_the_members(cohort):
    archive, _, _ = cohort
    student = make_student()
    x = torch.from_numpy(archive.gather(np.flatnonzero(archive.slide_index == 4)))
    outputs = [member(x, torch.zeros(len(x), dtype=torch.int64), 1).outputs.softmax(dim=1) for member in student.models]
    wanted = torch.stack(outputs).mean(dim=0)[0].detach().numpy()
    assert np.allclose(sf.slides.score(student, archive, device="cpu").values[4], wanted, atol=1e-6)


def test_scores_on_disk(cohort, tmp_path, monkeypatch):
    archive, _, _ = cohort
    monkeypatch.setattr(scoring, "PART_ROWS", 50)
    student = make_student()
    wanted = sf.slides.score(student, archive, device="cpu")
    written = sf.slides.score(student, archive, tmp_path / "out", device="cpu")
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) > 2
    again = sf.slides.score(student, archive, tmp_path / "out", device="cpu")
    opened = sf.slides.open_scores(tmp_path / "out")
    for found in (written, again, opened):
        assert found.columns().keys() == wanted.columns().keys()
        assert found.names == wanted.names
        assert np.allclose(found.values, wanted.values, atol=1e-6)
        assert np.allclose(found.shares, wanted.shares, atol=1e-6)
    assert opened.patches.column_names == ["row", "slide", "x", "y", "attention", *(f"share_{t}" for t in TEACHERS)]
    assert opened.patches["row"].to_pylist() == list(range(len(archive)))
    assert opened.patches["x"].to_pylist() == archive.coords[:, 0].tolist()
    assert pq.read_table(tmp_path / "out" / "slides.parquet")["name"].to_pylist() == list(archive.slides)
    with pytest.raises(MismatchError, match="another student"):
        sf.slides.score(make_student("mean"), archive, tmp_path / "out", device="cpu")


def test_an_interrupted_scoring_goes_on(cohort, tmp_path, monkeypatch):
    archive, _, _ = cohort
    monkeypatch.setattr(scoring, "PART_ROWS", 50)
    student = make_student()
    wanted = sf.slides.score(student, archive, tmp_path / "whole", device="cpu")
    add, calls = scoring.PartDirectory.add, []

    def stops_at_the_third(self, number, *rest):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(self, number, *rest)

    monkeypatch.setattr(scoring.PartDirectory, "add", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        sf.slides.score(student, archive, tmp_path / "out", device="cpu")
    with pytest.raises(ArchiveError, match=r"slides.parquet"):
        sf.slides.open_scores(tmp_path / "out")
    found = sf.slides.score(student, archive, tmp_path / "out", device="cpu")
    assert calls.count(0) == calls.count(1) == 1
    assert np.array_equal(found.values, wanted.values)


def test_joined_patients(tmp_path):
    archive, _, _ = make_cohort(tmp_path / "a", slides=8, per_patient=2, sizes=(3, 9))
    scores = sf.slides.score(make_student(), archive, by="patient", device="cpu")
    assert scores.names == ("p000", "p001", "p002", "p003")
    assert scores.n_patches.sum() == len(archive)


def test_evaluation_on_other_slides(cohort):
    archive, labels, _ = cohort
    metrics = sf.slides.evaluate(make_student(), archive, labels, device="cpu")
    assert metrics.n_slides == 9
    assert metrics.constant["log_loss"] == pytest.approx(np.log(2))
    with pytest.raises(MismatchError, match="not among the classes"):
        sf.slides.evaluate(make_student(), archive, {"s000": "c", "s001": "a"}, device="cpu")


def test_archives_that_do_not_fit(cohort):
    archive, _, _ = cohort
    swapped = sf.open(archive.path, teachers=list(reversed(TEACHERS)))
    with pytest.raises(MismatchError, match="in this order"):
        sf.slides.score(make_student(), swapped, device="cpu")


def test_features_that_are_not_finite(tmp_path):
    features = np.ones((10, 8), np.float32)
    features[7, 2] = np.inf
    np.save(tmp_path / "s1.npy", features)
    config = SlideConfig({"uni": 8}, "classification", ("a", "b"), "abmil", dim=4)
    with pytest.raises(NonFiniteError, match="row 7"):
        sf.slides.score(SlideStudent(config, [build_model(config)]), {"uni": tmp_path}, device="cpu")
