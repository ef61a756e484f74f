"""An ensemble of students is a student: saved, folded and scored like one."""

import json

import numpy as np
import pytest
import torch
from students import make_batch, make_student
from synthetic import TEACHERS

import shazam_fast as sf
from shazam_fast.errors import ArchiveError, MismatchError, ShazamError


def members(blocks=("bare", "bare", "bare"), dtype=torch.float64, **options):
    found = []
    for index, block in enumerate(blocks):
        student = make_student(block, depth=1 + index, dtype=dtype, **options)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(1 + 0.3 * index)
        found.append(student.eval())
    return found


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("blocks", [("bare",), ("bare", "bare", "bare"), ("residual", "bare")])
def test_it_predicts_the_mean_of_probabilities(blocks, missing):
    students = members(blocks)
    features, present = make_batch(students[0], missing=missing)
    outputs = [student(features, present) for student in students]
    output = sf.average(students)(features, present)
    torch.testing.assert_close(output.logits.softmax(1), torch.stack([o.logits.softmax(1) for o in outputs]).mean(0))
    torch.testing.assert_close(output.logits.exp().sum(1), torch.ones(len(features), dtype=torch.float64))
    torch.testing.assert_close(output.fused, torch.stack([o.fused for o in outputs]).mean(0))
    if "residual" in blocks:
        assert output.shares is None
    else:
        torch.testing.assert_close(output.shares, torch.stack([o.shares for o in outputs]).mean(0))


@pytest.mark.parametrize("missing", [False, True])
def test_folding_is_exact(missing):
    ensemble = sf.average(members())
    features, present = make_batch(ensemble.students[0], missing=missing)
    plain, folded = ensemble(features, present), ensemble.fold()(features, present)
    for name in ("logits", "fused", "shares"):
        torch.testing.assert_close(getattr(folded, name), getattr(plain, name), rtol=1e-9, atol=1e-9)


def test_residual_members_do_not_fold():
    with pytest.raises(ShazamError, match="residual"):
        sf.average(members(("bare", "residual"))).fold()


@pytest.mark.parametrize("blocks", [("bare", "bare"), ("residual", "bare")])
def test_round_trip(tmp_path, blocks):
    students = members(blocks)
    students[0].freeze_targets()
    students[1].add_teacher_heads()
    students[1].training_record = {"job": {"lr": 0.1}, "teachers": {"uni": {"pooling": "cls"}}}
    ensemble = sf.average(students)
    ensemble.save(tmp_path / "e")
    again = sf.load(tmp_path / "e")
    assert isinstance(again, sf.Ensemble)
    assert again.config == ensemble.config
    assert not again.training
    assert again.training_record == ensemble.training_record
    assert [m.training_record for m in again.students] == [m.training_record for m in students]
    assert [m.config for m in again.students] == [m.config for m in students]
    features, _ = make_batch(students[0])
    assert torch.equal(again(features).logits, ensemble(features).logits)
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == ["README.md", "student.json", "student.safetensors"]


def test_a_damaged_ensemble_is_refused(tmp_path):
    sf.average(members()).save(tmp_path / "e")
    card = tmp_path / "e" / "student.json"
    content = json.loads(card.read_text())
    del content["document_xxh3"]
    content["members"][2]["depth"] = 2
    card.write_text(json.dumps(content))
    with pytest.raises(ArchiveError, match="do not fit"):
        sf.load(tmp_path / "e")


def small(archive, blocks=("bare", "bare")):
    return [
        sf.Student(
            sf.StudentConfig(archive.teachers, archive.classes, dim=8, depth=2, block=block),
            torch.Generator().manual_seed(seed),
        ).eval()
        for seed, block in enumerate(blocks)
    ]


@pytest.mark.parametrize("blocks", [("bare", "bare", "bare"), ("residual", "bare")])
def test_it_is_scored_and_evaluated_like_a_student(tmp_path, archive, blocks):
    students = small(archive, blocks)
    ensemble = sf.average(students)
    apart = [sf.score(student, archive, device="cpu", fused=True) for student in students]
    ensemble.save(tmp_path / "e")
    for given in (ensemble, tmp_path / "e"):
        scores = sf.score(given, archive, tmp_path / f"scores-{type(given).__name__}", device="cpu", fused=True)
        wanted = np.mean([s.probabilities for s in apart], axis=0)
        np.testing.assert_allclose(scores.probabilities, wanted, rtol=1e-5, atol=1e-6)
        if "residual" in blocks:
            assert scores.shares is None
        else:
            np.testing.assert_allclose(scores.shares, np.mean([s.shares for s in apart], axis=0), atol=1e-5)
    metrics = sf.evaluate(ensemble, archive, "test", device="cpu")
    test = archive.split("test")
    assert metrics.accuracy == pytest.approx((wanted[test].argmax(1) == archive.labels[test]).mean())


def test_ensembles_of_ensembles_are_ensembles():
    students = members()
    nested = sf.average([sf.average(students[:2]), students[2]])
    features, _ = make_batch(students[0])
    half = sf.average(students[:2])(features).logits.softmax(1)
    wanted = (half + students[2](features).logits.softmax(1)) / 2
    torch.testing.assert_close(nested(features).logits.softmax(1), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": {**TEACHERS, "virchow": 21}}, "student 1 has teachers"),
        ({"teachers": dict(reversed(TEACHERS.items()))}, "student 1 has teachers"),
        ({"classes": ("a", "b", "c")}, "student 1 has classes"),
        ({"dim": 8}, "student 1 has dim 8"),
    ],
)
def test_students_that_do_not_match_are_refused(changes, message):
    shape = {"teachers": TEACHERS, "classes": ("normal", "adenoma", "carcinoma"), "dim": 16, "depth": 1}
    students = [sf.Student(sf.StudentConfig(**shape)), sf.Student(sf.StudentConfig(**{**shape, **changes}))]
    with pytest.raises(MismatchError, match=message):
        sf.average(students)


def test_students_of_other_features_are_refused():
    students = members()
    for student, pooling in zip(students, ("cls", "cls", "mean"), strict=True):
        student.training_record = {"teachers": {"uni": {"pooling": pooling}}}
    with pytest.raises(MismatchError, match=r"student 2 .*'uni' with pooling mean"):
        sf.average(students)


@pytest.mark.parametrize(("given", "found"), [([], "an empty list"), (None, "NoneType"), (["path"], "str at 0")])
def test_what_is_no_list_of_students_is_refused(given, found):
    with pytest.raises(ShazamError, match=f"expected, found {found}"):
        sf.average(given)


def test_one_student_is_no_list():
    with pytest.raises(ShazamError, match="found Student"):
        sf.average(make_student())


def test_what_an_ensemble_has_not_is_refused():
    ensemble = sf.average(members())
    features, _ = make_batch(ensemble.students[0])
    for call in (
        lambda: ensemble.tokens(features), lambda: ensemble.fuse(features),
        ensemble.freeze_targets, ensemble.add_teacher_heads,
    ):  # fmt: skip
        with pytest.raises(ShazamError, match="members"):
            call()
