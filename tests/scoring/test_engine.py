"""Tiles through the compiled core: what the student says, in any shape, alone or in company."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import shazam_fast as sf
from shazam_fast import _core
from shazam_fast.runtime import memory
from shazam_fast.scoring import engine
from shazam_fast.scoring.engine import Scorer
from shazam_fast.student.matching import TeacherMatch


def make_student(dims, D, K, C, seed=0, heads=False):
    teachers = {f"teacher-{i}": dim for i, dim in enumerate(dims)}
    generator = torch.Generator().manual_seed(seed)
    student = sf.Student(sf.StudentConfig(teachers, [str(c) for c in range(C)], dim=D, depth=K), generator)
    student.feature_mean.normal_(generator=generator)
    if heads:
        student.add_teacher_heads(generator)
    return student.eval(), generator


def withheld(core, features, starts, D, C):
    """Logits without each teacher in turn."""
    N, n = len(starts), len(features)
    found = np.full((N, n, C), np.nan, np.float32)
    core.forward(features, starts, *(np.empty((n, width), np.float32) for width in (C, N, D)), found)
    return found


def forward(core, features, starts, D, C):
    shapes = (len(features), C), (len(features), len(starts)), (len(features), D)
    logits, weights, pooled = (np.full(shape, np.nan, np.float32) for shape in shapes)
    core.forward(features, starts, logits, weights, pooled)
    return logits, weights, pooled


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("rows", [1, 13, 48, 101])
@pytest.mark.parametrize(
    ("dims", "D", "K", "C"),
    [([5, 3], 4, 1, 2), ([300, 257, 16], 33, 3, 5), ([64], 16, 2, 3), ([700, 20], 288, 2, 7), ([9] * 32, 17, 2, 2)],
)
def test_every_shape(rows, dims, D, K, C, heads):
    student, generator = make_student(dims, D, K, C, heads=heads)
    folded = student.fold()
    features = torch.randn(rows, sum(dims), generator=generator)
    starts = np.cumsum([0, *dims[:-1]]).tolist()
    logits, weights, pooled = forward(folded.to_core(), features.numpy(), starts, D, C)
    with torch.no_grad():
        exact = student.double()(features.double())
    np.testing.assert_allclose(logits, exact.logits, atol=2e-5)
    np.testing.assert_allclose(weights, exact.shares, atol=2e-6)
    fused = torch.from_numpy(pooled).double() @ folded.value_map.double()
    np.testing.assert_allclose(fused, exact.fused, atol=2e-5 * float(exact.fused.abs().max() + 1))


@pytest.mark.parametrize("rows", [1, 13, 48, 101])
@pytest.mark.parametrize(
    ("dims", "D", "K", "C", "starts"),
    [
        ([5, 3], 4, 1, 2, [0, 5]),
        ([300, 257, 16], 33, 3, 5, [0, 300, 557]),
        ([300, 257, 16], 33, 3, 5, [0, -1, 557]),
        ([9] * 32, 17, 2, 2, list(range(0, 288, 9))),
    ],
)
def test_every_teacher_withheld(rows, dims, D, K, C, starts):
    student, generator = make_student(dims, D, K, C, heads=True)
    core = student.fold().to_core()
    features = torch.randn(rows, sum(dims), generator=generator).numpy()
    found = withheld(core, features, starts, D, C)
    for i, start in enumerate(starts):
        without = [-1 if j == i else s for j, s in enumerate(starts)]
        expected = forward(core, features, starts if start < 0 else without, D, C)[0]
        np.testing.assert_array_equal(found[i], expected)  # the same bits as with a teacher that is absent


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_features_as_stored(dtype):
    student, generator = make_student([40, 300], 24, 2, 3)
    core = student.fold().to_core()
    features = torch.randn(50, 340, generator=generator).to(getattr(torch, dtype))
    stored = (features.view(torch.uint16) if dtype == "bfloat16" else features).numpy()
    for found, expected in zip(
        forward(core, stored, [0, 40], 24, 3), forward(core, features.float().numpy(), [0, 40], 24, 3), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_a_patch_does_not_see_its_tile():
    student, generator = make_student([40, 300], 24, 2, 3)
    core = student.fold().to_core()
    features = torch.randn(150, 340, generator=generator).numpy()
    together = forward(core, features, [0, 40], 24, 3)
    features[:60], features[61:] = np.nan, np.inf
    for alone in (forward(core, features[60:61], [0, 40], 24, 3), forward(core, features, [0, 40], 24, 3)):
        for found, expected in zip(alone, together, strict=True):
            np.testing.assert_array_equal(found[60 % len(found)], expected[60])


@pytest.mark.parametrize("heads", [False, True])
def test_absent_teachers_and_other_columns(heads):
    student, generator = make_student([4, 6, 5], 8, 2, 3, heads=heads)
    core = student.fold().to_core()
    features = torch.randn(20, 30, generator=generator)
    logits, weights, _ = forward(core, features.numpy(), [20, -1, 3], 8, 3)
    own = torch.cat([features[:, 20:24], torch.full((20, 6), torch.nan), features[:, 3:8]], dim=1)
    with torch.no_grad():
        expected = student(own, torch.tensor([True, False, True]).expand(20, -1))
    np.testing.assert_allclose(logits, expected.logits, atol=1e-5)
    np.testing.assert_allclose(weights, expected.shares, atol=1e-6)
    assert (weights[:, 1] == 0).all()


def test_nan_reaches_the_logits():
    student, generator = make_student([4, 6], 8, 2, 3)
    features = torch.randn(20, 10, generator=generator).numpy()
    features[7, 5] = np.nan
    logits, _, _ = forward(student.fold().to_core(), features, [0, 4], 8, 3)
    assert np.isnan(logits[7]).all()
    assert np.isfinite(np.delete(logits, 7, axis=0)).all()


def test_misuse():
    student, _ = make_student([4, 6], 8, 2, 3)
    core = student.fold().to_core()
    features = np.zeros((5, 10), np.float32)
    for changed, starts, message in [
        (features, [0], "one for every teacher"),
        (features, [0, 5], "columns of the features"),
        (features, [-1, -1], "at least one teacher"),
        (features.astype(np.float64), [0, 4], "features: expected float32, float16 or uint16"),
        (features[:, ::2], [0, 4], "starts: expected columns"),
        (features[::2, :], [0, 4], "contiguous"),
        (features[0], [0, 4], r"features: expected \[B, columns\]"),
    ]:
        with pytest.raises(_core.StoreError, match=message):
            forward(core, changed, starts, 8, 3)
    with pytest.raises(_core.StoreError, match="withheld: expected at least two teachers"):
        withheld(core, features, [0, -1], 8, 3)
    with pytest.raises(_core.StoreError, match="logits: expected a shape"):
        core.forward(features, [0, 4], *(np.zeros((5, 9), np.float32) for _ in range(3)))
    tensors = [getattr(student.fold(), name).numpy() for name in ("weight", "bias", "score_maps")]
    with pytest.raises(_core.StoreError, match="weight: expected a shape"):
        _core.FoldedStudent([4, 5], *tensors, tensors[0], tensors[0][0], tensors[0], tensors[0][0])


def test_which_students_go_through_the_core():
    student, _ = make_student([4, 6], 8, 2, 3)
    assert student.fold().to_core() is not None
    assert student.double().fold().to_core() is None
    assert make_student([2] * 33, 4, 1, 2)[0].fold().to_core() is None


def test_an_error_in_one_thread_ends_all(trained, monkeypatch):
    student, archive = trained
    gather = archive.gather

    def fail(rows, **options):
        if rows[0] == 240:
            raise sf.ArchiveError("the disk broke")
        return gather(rows, **options)

    monkeypatch.setattr(archive, "gather", fail)
    with (
        Scorer(student, archive, torch.device("cpu"), fused=False, allow_missing_teachers=False) as scorer,
        pytest.raises(sf.ArchiveError, match="the disk broke"),
    ):
        scorer.score(np.arange(300))


def test_the_first_rows_of_the_next_part_are_read_while_the_last_are_computed(trained, monkeypatch):
    """Even if they cannot be read: whoever scores them is told. What comes after them is left to the next call."""
    student, archive = trained
    monkeypatch.setattr(engine, "TILE_ROWS", 12)
    monkeypatch.setattr(engine, "CHUNK_BYTES", 1)
    monkeypatch.setattr(engine, "CHUNKS_AHEAD", 3)
    read = []

    def read_ahead(rows):
        read.extend(rows.tolist())
        if 130 in rows:
            raise sf.ArchiveError("gone")

    monkeypatch.setattr(archive, "read_ahead", read_ahead)
    with Scorer(student, archive, torch.device("cpu"), fused=False, allow_missing_teachers=False) as scorer:
        expected = scorer.score(np.arange(60)).probabilities
        read.clear()
        found = scorer.score(np.arange(60), np.arange(60, 300)).probabilities
        assert read == list(range(60 + 3 * 12))
        scorer.score(np.arange(60), np.arange(130, 300))
        with pytest.raises(sf.ArchiveError, match="gone"):
            scorer.score(np.arange(120, 140))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("block", ["bare", "residual"])
def test_features_read_past_the_page_cache_give_the_same_scores(tmp_path, monkeypatch, block):
    """Where they fill much of the memory, and only those that the page cache lacks."""
    generator = np.random.default_rng(0)
    features = {"uni": generator.normal(size=(3000, 300)).astype("f2"), "conch": generator.normal(size=(3000, 211))}
    archive = sf.open(sf.write_archive(tmp_path / "a.archive", [features]))
    config = sf.StudentConfig({"uni": 300, "conch": 211}, ["a", "b"], dim=16, block=block)
    student = sf.Student(config, torch.Generator().manual_seed(0))
    monkeypatch.setattr(engine, "CHUNK_BYTES", 1 << 20)
    options = {"fused": True, "allow_missing_teachers": False}
    rows = np.concatenate([np.arange(3000), np.arange(500), [7, 2999, 7]])
    with Scorer(student, archive, torch.device("cpu"), **options) as scorer:
        expected = scorer.score(rows)
    for path in archive.files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    monkeypatch.setattr(memory, "READ_ONCE", 0)
    archive = sf.open(archive.path)
    with Scorer(student, archive, torch.device("cpu"), **options) as scorer:
        for _ in range(2):
            found = scorer.score(rows, then=np.arange(9))
            np.testing.assert_array_equal(found.probabilities, expected.probabilities)
            np.testing.assert_array_equal(found.fused, expected.fused)


def test_one_core_for_many_threads():
    student, generator = make_student([300, 200], 64, 3, 4)
    core = student.fold().to_core()
    features = torch.randn(400, 500, generator=generator).numpy()
    expected = forward(core, features, [0, 300], 64, 4)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: forward(core, features, [0, 300], 64, 4), range(16)):
            for found, wanted in zip(result, expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_columns_of_an_archive(trained):
    student, archive = trained
    match = TeacherMatch(archive.path, archive.teachers, student.config)
    assert (match.starts, match.missing, match.forced) == ([0, 12, 19], (), False)


def test_threads_are_as_before_when_folding_fails(trained, monkeypatch):
    student, archive = trained
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        monkeypatch.setattr(sf.Student, "fold", lambda self: 1 / 0)
        with (
            pytest.raises(ZeroDivisionError),
            Scorer(student, archive, torch.device("cpu"), fused=False, allow_missing_teachers=False),
        ):
            pass
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_evaluation_builds_no_tables(trained, monkeypatch):
    from shazam_fast.scoring import parts, score

    student, archive = trained
    expected = sf.score(student, archive, split="test").probabilities
    for module in (parts, score):
        monkeypatch.setattr(module, "make_table", lambda *_: pytest.fail("an Arrow table"))
    metrics = sf.evaluate(student, archive, "test")
    labels = archive.labels[archive.split("test")]
    assert metrics.accuracy == (expected.argmax(axis=1) == labels).mean()
