"""Students asked directly, with features in memory."""

import numpy as np
import pytest
import torch
from students import make_batch, make_student
from synthetic import TEACHERS

import shazam_fast as sf

DIMS = list(TEACHERS.values())


@pytest.fixture
def student():
    return make_student(dtype=torch.float32, teacher_dropout=0.2)


@pytest.fixture
def whole(student):
    return make_batch(student, B=9)[0].numpy()


def by_teacher(whole):
    return dict(zip(TEACHERS, np.split(whole, np.cumsum(DIMS)[:-1], axis=1), strict=True))


def test_every_form_of_features_gives_the_same(student, whole):
    expected = student(torch.from_numpy(whole)).logits.softmax(dim=1).detach().numpy()
    blocks = by_teacher(whole)
    other_order = dict(reversed(blocks.items()))
    for features in (
        whole,
        torch.from_numpy(whole),
        list(blocks.values()),
        tuple(blocks.values()),
        blocks,
        other_order,
    ):
        found = student.predict_proba(features)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    names = student.predict(whole)
    assert names.tolist() == [student.config.classes[c] for c in expected.argmax(axis=1)]


def test_float16_lists_of_rows_and_no_rows(student, whole):
    half = whole.astype(np.float16)
    np.testing.assert_array_equal(student.predict_proba(half), student.predict_proba(half.astype(np.float32)))
    np.testing.assert_allclose(student.predict_proba(whole.tolist()), student.predict_proba(whole), rtol=1e-6)
    assert student.predict_proba(whole[:0]).shape == (0, 3)


def test_the_other_byte_order(student, whole):
    assert np.array_equal(student.predict_proba(whole.astype(">f4")), student.predict_proba(whole))


def test_folded_students_and_ensembles_predict_too(student, whole):
    ensemble = sf.average([student, make_student(dtype=torch.float32, depth=2)])
    for one in (student, ensemble):
        np.testing.assert_allclose(one.fold().predict_proba(whole), one.predict_proba(whole), rtol=1e-4, atol=1e-6)


def test_missing_teachers_as_the_student_allows(student, whole):
    blocks = by_teacher(whole)
    del blocks["virchow"]
    present = torch.tensor([True, True, False]).expand(9, -1)
    expected = student(torch.from_numpy(whole), present).logits.softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(student.predict_proba(blocks), expected, rtol=1e-5, atol=1e-7)
    rigid = make_student(dtype=torch.float32)
    with pytest.raises(sf.MismatchError, match=r"missing \['virchow'\].*allow_missing_teachers=True"):
        rigid.predict(blocks)
    assert rigid.predict_proba(blocks, allow_missing_teachers=True).shape == (9, 3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w[:, :-1], r"\[n, 39\] expected.*found \[9, 38\]"),
        (lambda w: w[0], r"found shape \[39\]; for one patch give features\[None\]"),
        (lambda w: list(by_teacher(w).values())[:2], "one array per teacher expected, 3 in the order uni, phikon-v2"),
        (lambda w: by_teacher(w) | {"uni": w[:4, :12]}, "same number of rows.*'uni': 4, 'phikon-v2': 9"),
        (lambda w: by_teacher(w) | {"uni": w[:, :11]}, "'uni' has 11 columns, the student needs 12"),
        (lambda w: np.array([["a"]]), "an array of numbers"),
        (lambda w: {}, "same number of rows"),
    ],
)
def test_features_that_do_not_fit(student, whole, spoil, message):
    with pytest.raises(sf.MismatchError, match=message):
        student.predict(spoil(whole))


def test_features_that_are_not_finite(student, whole):
    whole[4, 12] = np.nan
    with pytest.raises(sf.NonFiniteError, match="features of 'phikon-v2', row 4, column 0: nan"):
        student.predict(whole)


def test_students_show_themselves_in_a_line(student):
    for one in (student, student.fold(), sf.average([student])):
        assert len(repr(one)) < 250
        assert "uni 12, phikon-v2 7, virchow 20" in repr(one)
    strange = sf.Student(sf.StudentConfig({"<b>uni</b>": 8}, ("a", "<script>"), dim=8, depth=1))
    assert "<td>&lt;b&gt;uni&lt;/b&gt;</td>" in strange._repr_html_()
    assert "<script>" not in strange._repr_html_()
