"""Named studies: settings, teachers and amounts of labels on the same splits."""

import numpy as np
import pytest

import shazam_fast as sf
from shazam_fast.archive.opening import choose_of
from shazam_fast.comparison import methods, studies
from shazam_fast.comparison.compare import compare
from shazam_fast.comparison.fold import Fold
from shazam_fast.comparison.methods import Bench
from shazam_fast.comparison.probes import validation_score
from shazam_fast.comparison.products import log_product


@pytest.fixture
def seen(monkeypatch):
    """The options of every student that a study trains, for a moment each."""
    options = []

    def train(archive, **given):
        options.append((tuple(archive.teachers), given))
        kept = {name: given[name] for name in ("seed", "lam", "depth", "device") if name in given}
        return sf.train(archive, **kept, epochs=1, dim=8, batch_size=16)

    monkeypatch.setattr(methods, "train", train)
    return options


def test_depth(archive, seen):
    found = compare(archive, study="depth", repeats=1, device="cpu")
    assert list(found.balanced_accuracy) == ["depth 1", "depth 3", "depth 5", "depth 7"]
    assert [given["depth"] for _, given in seen] == [1, 3, 5, 7]
    assert {given["preset"] for _, given in seen} == {"huncrc"}
    assert set(found.against) == {"depth 5"}
    assert found.study == found.to_dict()["study"] == "depth"
    assert found.conclusion().startswith("Highest balanced accuracy: depth ")


def test_lambda(archive, seen):
    found = compare(archive, study="lambda", methods=["shazam_paper", "shazam_authors_script"], repeats=1, device="cpu")
    assert [given["lam"] for _, given in seen] == list(studies.LAMBDAS) * 2
    assert "shazam_authors_script, lambda 0.05" in found.balanced_accuracy
    assert set(found.against) == {"shazam_paper, lambda 0", "shazam_authors_script, lambda 0"}
    assert set(found.against["shazam_paper, lambda 0"]) == {f"shazam_paper, lambda {v:g}" for v in studies.LAMBDAS[1:]}


def test_teachers_left_out_one_by_one(archive, seen):
    found = compare(archive, study="leave-one-out", repeats=2)
    assert list(found.balanced_accuracy) == ["all teachers", *(f"without {name}" for name in archive.teachers)]
    for name in archive.teachers:
        assert found.teachers_of(f"without {name}") == {tuple(t for t in archive.teachers if t != name): 2}
    compare(archive, study="leave-one-out", methods=["shazam"], repeats=1, device="cpu")
    assert [teachers for teachers, _ in seen] == [
        ("uni", "phikon-v2", "virchow"), ("phikon-v2", "virchow"), ("uni", "virchow"), ("uni", "phikon-v2")
    ]  # fmt: skip


def test_fewer_teachers_give_what_an_archive_without_them_gives(archive, tmp_path, patches):
    found = compare(archive, study="leave-one-out", methods=["lr_concat_scaled"], repeats=1)
    del patches["features"]["phikon-v2"]
    alone = compare(sf.write_archive(tmp_path / "two", **patches), ["lr_concat_scaled"], repeats=1)
    two = next(cell for cell in found.cells if cell.method == "without phikon-v2")
    np.testing.assert_allclose(two.probabilities, alone.cells[0].probabilities, atol=1e-5)


def test_teachers_of_features_that_lie_in_several_files(tmp_path, patches):
    for name, values in patches["features"].items():
        np.save(tmp_path / f"{name}.npy", values)
    given = {name: patches[name] for name in ("labels", "splits", "groups")}
    archive = sf.open({name: tmp_path / f"{name}.npy" for name in patches["features"]}, **given)
    fewer = choose_of(archive, ["virchow", "uni"])
    assert fewer.teachers == {"virchow": 20, "uni": 12}
    expected = np.hstack([patches["features"]["virchow"], patches["features"]["uni"]])
    assert np.array_equal(fewer.gather([5, 299]), expected[[5, 299]])
    assert np.array_equal(fewer.labels, archive.labels)
    with pytest.raises(sf.MismatchError, match="no teacher 'conch'"):
        choose_of(archive, ["conch"])


def test_the_best_subset_of_each_size(archive):
    found = compare(archive, study="subsets", repeats=3)
    assert list(found.balanced_accuracy) == ["1 of 3 teachers", "2 of 3 teachers", "3 of 3 teachers"]
    for repeat in range(3):
        sets = [set(cell.teachers) for cell in found.cells if cell.repeat == repeat]
        assert [len(one) for one in sets] == [1, 2, 3]
        assert sets[0] < sets[1] < sets[2]
    assert found.gflops("3 of 3 teachers") == pytest.approx(123.1 + 123.1 + 334.8)
    assert found.to_dict()["methods"]["1 of 3 teachers"]["gflops"] < 335
    assert set(found.against["3 of 3 teachers"]) == {"1 of 3 teachers", "2 of 3 teachers"}


def test_forward_selection_by_hand(archive):
    bench = Bench.of(Fold(archive))
    p = {name: probe.probabilities["val"] for name, probe in bench.probes(balanced=True).items()}
    y = bench.fold.labels("val")

    def score(names):
        return validation_score(log_product([p[name] for name in names]), y)

    first = max(archive.teachers, key=lambda name: score([name]))
    second = max((n for n in archive.teachers if n != first), key=lambda name: score([first, name]))
    assert studies.forward_selection(bench)[:2] == (first, second)
    assert set(studies.forward_selection(bench)) == set(archive.teachers)


def test_the_cost_of_encoders_that_are_not_known(archive, tmp_path, patches):
    features = {"uni_v1": patches["features"]["uni"], "mine": patches["features"]["virchow"]}
    path = sf.write_archive(tmp_path / "mine", features, labels=patches["labels"])
    found = compare(path, study="leave-one-out", repeats=1)
    assert found.gflops("without mine") == pytest.approx(123.1)
    assert found.gflops("without uni_v1") is None
    assert found.gflops("all teachers") is None


def test_a_learning_curve(archive):
    found = compare(archive, study="learning-curve", methods=["best_single_balanced", "lr_concat"], repeats=2)
    assert len(found.balanced_accuracy) == 8
    assert "lr_concat, 12.5% of the training groups" in found.balanced_accuracy
    assert set(found.against["best_single_balanced, 50% of the training groups"]) == {
        "lr_concat, 50% of the training groups"
    }
    whole = compare(archive, ["lr_concat"], repeats=2)
    assert found.balanced_accuracy["lr_concat, 100% of the training groups"] == whole.balanced_accuracy["lr_concat"]


def test_smaller_training_sets_lie_within_larger_ones(archive):
    bench = Bench.of(Fold(archive, seed=3))
    before: set[int] = set()
    n_groups = len(np.unique(bench.fold.groups("train")))
    for fraction in (0.01, 0.3, 0.6, 1.0):
        fold = studies.fewer_groups(bench, fraction).fold
        groups = set(fold.groups("train").tolist())
        assert before <= groups
        assert len(groups) == max(round(fraction * n_groups), 1)
        assert set(fold.labels("train").tolist()) == {0, 1, 2}
        assert np.array_equal(fold.labels("test"), bench.fold.labels("test"))
        before = groups


def test_a_small_training_set_keeps_every_class():
    groups, labels = np.arange(100), (np.arange(100) >= 97).astype(np.int64)
    order = studies.order_groups(groups, labels, 0)
    assert sorted(order) == list(range(100))
    assert studies.count_needed(order, groups, labels) == 2


def test_studies_that_cannot_be_made(archive, tmp_path, patches):
    with pytest.raises(sf.ShazamError, match="study: one of depth, lambda"):
        compare(archive, study="width")
    with pytest.raises(sf.MismatchError, match=r"study 'depth': students expected \(.*\), found knn"):
        compare(archive, ["knn"], study="depth")
    one = sf.write_archive(tmp_path / "one", {"uni": patches["features"]["uni"]}, labels=patches["labels"])
    for study in ("subsets", "leave-one-out"):
        with pytest.raises(sf.MismatchError, match=f"study '{study}' needs two teachers, found uni"):
            compare(one, study=study)
