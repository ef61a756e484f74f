"""Exported students give in ONNX Runtime what our own forward gives."""

import json

import numpy as np
import pytest
import torch
from students import array, make_batch, make_student

import shazam_fast as sf

onnx = pytest.importorskip("onnx", reason="export needs onnx (extra: onnx)")
runtime = pytest.importorskip("onnxruntime", reason="exported students are run by onnxruntime (extra: onnx)")

TEACHERS = {"a": 6, "b:low": 3, "ü/c": 2}


def run(path, features, present=None):
    """{output: array} of the file in ONNX Runtime."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # "present" has a value of its own, and may be given all the same
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {"features": array(features)} | ({} if present is None else {"present": present.numpy()})
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def check(student, path, features, present, tolerance):
    found = run(sf.export_onnx(student, path), features, present)
    with torch.no_grad():
        ours = student.fold()(features, present)
    scale = float(ours.logits.abs().max())
    np.testing.assert_allclose(found["logits"], ours.logits, atol=tolerance * scale, rtol=0)
    np.testing.assert_allclose(found["probabilities"], ours.logits.softmax(1), atol=tolerance * scale, rtol=0)
    np.testing.assert_allclose(found["shares"], ours.shares, atol=10 * tolerance, rtol=0)
    np.testing.assert_allclose(found["shares"].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_exported_is_what_the_folded_student_gives(tmp_path, heads, missing, dtype, tolerance):
    student = make_student(teachers=TEACHERS, heads=heads).to(dtype)
    features, present = make_batch(student, 7, missing=missing)
    check(student, tmp_path / "s.onnx", features.to(dtype), present, tolerance)


def test_features_of_missing_teachers_have_no_influence_nan_included(tmp_path):
    student = make_student(teachers=TEACHERS, heads=True)
    features, present = make_batch(student, 7, missing=True)
    path = sf.export_onnx(student, tmp_path / "s.onnx")
    before = run(path, features, present)
    hidden = torch.repeat_interleave(~present, torch.tensor(list(TEACHERS.values())), dim=1)
    after = run(path, features.masked_fill(hidden, torch.nan), present)
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])


def test_ensembles_and_single_teachers(tmp_path):
    members = [make_student(teachers=TEACHERS, heads=True), make_student(teachers=TEACHERS, depth=1)]
    features, present = make_batch(members[0], 5, missing=True)
    check(sf.average(members).eval(), tmp_path / "e.onnx", features, present, 1e-10)
    one = make_student(teachers={"a": 4})
    check(one, tmp_path / "one.onnx", make_batch(one, 3)[0], None, 1e-10)


def test_metadata_is_in_the_file(tmp_path):
    student = make_student(teachers=TEACHERS)
    student.training_record = {"teachers": {"a": {"pooling": "cls"}}}
    student.save(tmp_path / "student")
    model = onnx.load(sf.export_onnx(tmp_path / "student", tmp_path / "deep" / "s.onnx"))
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["teachers"]) == TEACHERS
    assert list(json.loads(told["teachers"])) == list(TEACHERS)
    assert json.loads(told["classes"]) == list(student.config.classes)
    assert json.loads(told["teacher_records"]) == {"a": {"pooling": "cls"}}
    assert "projection.<teacher>" in json.loads(told["standardisation"])
    assert {f"feature_mean.{name}" for name in TEACHERS} <= {tensor.name for tensor in model.graph.initializer}


def test_what_cannot_be_exported_is_refused(tmp_path):
    config = sf.StudentConfig({"a": 4}, ("x", "y"), dim=4, depth=1, block="residual")
    with pytest.raises(sf.ShazamError, match="only bare students fold and can be exported, this one is 'residual'"):
        sf.export_onnx(sf.Student(config), tmp_path / "s.onnx")
    with pytest.raises(sf.ShazamError, match=r"float16; give student.float\(\)"):
        sf.export_onnx(make_student(teachers=TEACHERS).half(), tmp_path / "s.onnx")
    with pytest.raises(sf.ArchiveError, match=r"student\.json: file not found"):
        sf.export_onnx(tmp_path, tmp_path / "s.onnx")
    with pytest.raises(sf.ShazamError, match="cannot be written"):
        sf.export_onnx(make_student(teachers=TEACHERS), tmp_path)
