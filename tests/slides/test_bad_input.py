"""What users hand in by mistake: each is an error, or a warning, that says where and what to do."""

import numpy as np
import pandas as pd
import pytest

import shazam_fast as sf
from shazam_fast.errors import MismatchError, NonFiniteError, ShazamError

h5py = pytest.importorskip("h5py")

QUICK = {"folds": 3, "epochs": 1, "dim": 4, "device": "cpu", "model": "gated_abmil"}
LABELS = {f"s{i}": "ab"[i % 2] for i in range(8)}


def write_job(folder, sizes, dim=4, shift=0, seed=0):
    """A directory of TRIDENT: one file per slide."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for name, n in sizes.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"] = rng.normal(size=(n, dim)).astype(np.float32)
            file["coords"] = np.stack([np.arange(n) * 256 + shift, np.zeros(n)], axis=1).astype(np.int64)
            file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 256})
    return folder


def test_a_slide_without_patches_is_left_out_and_named(tmp_path, caplog):
    job = write_job(tmp_path / "uni", {name: 0 if name == "s3" else 5 for name in LABELS})
    result = sf.slides.train({"uni": job}, LABELS, **QUICK)
    assert "s3" not in result.predictions.names
    assert result.metrics.n_slides == 7
    assert "'s3'" in caplog.text


def test_no_slide_has_a_patch(tmp_path):
    with pytest.raises(ShazamError, match="uni"):
        sf.slides.train({"uni": write_job(tmp_path / "uni", dict.fromkeys(LABELS, 0))}, LABELS, **QUICK)


def test_slides_of_one_patch_are_slides(tmp_path):
    job = write_job(tmp_path / "uni", dict.fromkeys(LABELS, 1))
    result = sf.slides.train({"uni": job}, LABELS, **QUICK)
    assert result.metrics.n_slides == 8
    scores = sf.slides.score(result.student, {"uni": job}, device="cpu")
    assert scores.patches["attention"].to_pylist() == [1.0] * 8


def test_slides_with_fewer_patches_than_clusters_keep_all_of_them(tmp_path):
    archive = sf.open({"uni": write_job(tmp_path / "uni", dict.fromkeys(LABELS, 3))})
    chosen = sf.slides.select(archive, clusters=50, per_cluster=10)
    assert all(len(bags[0]) == 3 for bags in chosen.rows.values())
    assert sf.slides.train(archive, LABELS, selection=chosen, **QUICK).metrics.n_slides == 8


@pytest.mark.parametrize(
    ("sizes", "shift", "message"),
    [
        ({"s2": 6}, 0, "s2"),
        ({}, 128, "s0.*"),
        ({"s2": None}, 0, "s2"),
    ],
    ids=["other number of patches", "other positions", "a slide is missing"],
)
def test_teachers_that_disagree_on_a_slide_are_named_with_it(tmp_path, sizes, shift, message):
    one = write_job(tmp_path / "uni", dict.fromkeys(LABELS, 5))
    counts = {name: n for name, n in {**dict.fromkeys(LABELS, 5), **sizes}.items() if n is not None}
    other = write_job(tmp_path / "virchow2", counts, dim=6, shift=shift, seed=1)
    with pytest.raises(MismatchError, match=message) as caught:
        sf.slides.train({"uni": one, "virchow2": other}, LABELS, **QUICK)
    assert "virchow2" in str(caught.value)
    assert "uni" in str(caught.value)


def test_labels_of_one_patient_that_contradict(tmp_path):
    archive = {"uni": write_job(tmp_path / "uni", dict.fromkeys(LABELS, 3))}
    table = pd.DataFrame({"patient_id": [*"ppqrstuv"], "slide_id": list(LABELS), "label": list(LABELS.values())})
    with pytest.raises(MismatchError, match=r"column 'label': rows 0 and 1 contradict each other: 'p' has a and b"):
        sf.slides.train(archive, table, by="patient", **QUICK)


def test_a_class_with_fewer_patients_than_folds(tmp_path):
    """Eight slides, but both of class "b" are of one patient."""
    archive = {"uni": write_job(tmp_path / "uni", dict.fromkeys(LABELS, 3))}
    table = pd.DataFrame({"patient_id": [*"ppqrstuv"], "slide_id": list(LABELS), "label": [*"bbaaaaaa"]})
    with pytest.raises(MismatchError, match="class 'b' is there for 1 patient, fewer than the 3 folds; give fewer"):
        sf.slides.train(archive, table, **QUICK)


def test_a_column_that_few_patients_have(tmp_path):
    archive = {"uni": write_job(tmp_path / "uni", dict.fromkeys(LABELS, 3))}
    table = pd.DataFrame({"slide_id": list(LABELS), "ki67": [1.0, 2.0, 3.0, None, None, None, None, None]})
    with pytest.raises(MismatchError, match=r"column 'ki67', a .* value is there for . patients?, fewer"):
        sf.slides.train(archive, sf.slides.Regression(table, "ki67"), **QUICK)


def test_an_infinite_feature_is_named_with_its_teacher_and_row(tmp_path):
    job = write_job(tmp_path / "uni", dict.fromkeys(LABELS, 3))
    with h5py.File(job / "s1.h5", "r+") as file:
        file["features"][1, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"uni.*row|row.*uni"):
        sf.slides.train({"uni": job}, LABELS, **QUICK)
