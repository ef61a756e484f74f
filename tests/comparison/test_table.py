"""Comparisons on disk: continued after a kill, refused for another job, read again with the same numbers."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import shazam_fast as sf
from shazam_fast.comparison import methods
from shazam_fast.comparison.compare import compare
from shazam_fast.comparison.methods import METHODS, Method

QUICK = ["best_single_balanced", "lr_concat_balanced", "sum"]


@pytest.fixture
def budget(monkeypatch):
    monkeypatch.setattr(methods, "fit_network", quick_network(methods.fit_network))


def quick_network(fit):
    from shazam_fast.comparison.networks import Budget

    return lambda fold, teachers, fusion, budget, seed: fit(fold, teachers, fusion, Budget(epochs=2, dim=8), seed)


def same(found, expected):
    first, second = found.to_dict(), expected.to_dict()
    for record in (*first["methods"].values(), *second["methods"].values()):
        for key in ("seconds", "fit_seconds", "score_seconds"):
            del record[key]
    return first == second


def test_what_is_on_disk(archive, tmp_path, budget):
    found = compare(archive, QUICK, repeats=2, seeds=2, out=tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "comparison.json", "part-00000.parquet", "part-00001.parquet"
    ]  # fmt: skip
    table = pq.read_table(tmp_path / "out" / "part-00001.parquet").to_pylist()
    assert [(row["method"], row["seed"]) for row in table] == [
        ("best_single_balanced", 0), ("lr_concat_balanced", 0), ("sum", 0), ("sum", 1)
    ]  # fmt: skip
    cell = found.cells[-1]
    assert table[-1]["rows"] == cell.rows.tolist()
    assert np.array_equal(np.array(table[-1]["probabilities"], dtype=np.float32), cell.probabilities)
    assert table[-1]["balanced_accuracy"] == cell.metrics.balanced_accuracy
    assert np.array_equal(archive.labels[cell.rows], cell.labels)
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["conclusion"] == found.conclusion()
    assert set(record["methods"]) == set(QUICK)


def test_it_is_read_again_with_the_same_numbers(archive, tmp_path, budget):
    found = compare(archive, QUICK, repeats=2, out=tmp_path / "out")
    again = sf.open_comparison(tmp_path / "out")
    assert again.to_dict() == found.to_dict()
    assert same(found, compare(archive, QUICK, repeats=2))
    for a, b in zip(again.cells, found.cells, strict=True):
        assert np.array_equal(a.probabilities, b.probabilities)
        assert a.teachers == b.teachers


def test_a_killed_comparison_is_continued(archive, tmp_path, monkeypatch, budget):
    fitted = []

    def fit(bench, dies):
        fitted.append(bench.seed)
        if dies and len(fitted) == 2:
            raise KeyboardInterrupt
        return METHODS["lr_concat"].fit(bench)

    def use(dies):
        changed = {**METHODS, "lr_concat": Method(lambda bench: fit(bench, dies))}
        monkeypatch.setattr("shazam_fast.comparison.studies.METHODS", changed)

    use(dies=True)
    with pytest.raises(KeyboardInterrupt):
        compare(archive, ["lr_concat", "best_single_balanced"], repeats=3, out=tmp_path / "out")
    with pytest.raises(sf.ArchiveError, match="interrupted"):
        sf.open_comparison(tmp_path / "out")
    use(dies=False)
    found = compare(archive, ["lr_concat", "best_single_balanced"], repeats=3, out=tmp_path / "out")
    assert fitted == [0, 1, 1, 2]
    assert same(found, compare(archive, ["lr_concat", "best_single_balanced"], repeats=3))
    compare(archive, ["lr_concat", "best_single_balanced"], repeats=3, out=tmp_path / "out")
    assert len(fitted) == 7  # three in memory, none for what is finished


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 5}, "another seed"),
        ({"methods": ["lr_concat"]}, "other methods"),
        ({"repeats": 3}, "other repeats"),
        ({"val": 0.3}, "other splits"),
        ({"study": "subsets", "methods": None}, "study"),
    ],
)
def test_another_job_is_refused(archive, tmp_path, changed, words):
    given = {"methods": ["best_single_balanced"], "repeats": 2, "out": tmp_path / "out"}
    compare(archive, **given)
    with pytest.raises(sf.MismatchError, match=words):
        compare(archive, **{**given, **changed})


def test_other_features_are_refused(archive, tmp_path, patches):
    compare(archive, ["best_single_balanced"], repeats=2, out=tmp_path / "out")
    patches["features"]["uni"] += 1
    other = sf.write_archive(tmp_path / "other", **patches)
    with pytest.raises(sf.MismatchError, match="other features"):
        compare(other, ["best_single_balanced"], repeats=2, out=tmp_path / "out")


def test_a_directory_of_something_else(archive, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(sf.ShazamError, match=r"notes\.txt"):
        compare(archive, ["best_single_balanced"], repeats=1, out=tmp_path / "out")
    with pytest.raises(sf.ArchiveError) as caught:
        sf.open_comparison(archive.path)
    assert caught.value.kind == "foreign"


def test_a_damaged_part_is_noticed(archive, tmp_path):
    compare(archive, ["best_single_balanced"], repeats=1, out=tmp_path / "out")
    part = tmp_path / "out" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(sf.ArchiveError, match="checksum"):
        sf.open_comparison(tmp_path / "out")
    part.unlink()
    with pytest.raises(sf.ArchiveError, match="not found"):
        sf.open_comparison(tmp_path / "out")


def test_a_method_that_could_not_run_stays_in_the_table(archive, tmp_path):
    found = compare(archive, ["best_single_balanced", "finetuned_teacher"], repeats=1, out=tmp_path / "out")
    again = sf.open_comparison(tmp_path / "out")
    assert again.failed == found.failed
    assert set(again.failed) == {"finetuned_teacher"}
