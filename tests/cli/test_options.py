"""The options that say which features, labels and splits a command reads."""

import numpy as np
import pytest
from program import call, run_program

import shazam_fast as sf

QUICK = ("--epochs", "2", "--batch-size", "8", "--dim", "16", "--depth", "2")
h5py = pytest.importorskip("h5py", reason="the cohort lies in HDF5 files (extra: hdf5)")


def write_slide(path, n, dim, seed, coords=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = np.random.default_rng(seed).normal(size=(n, dim)).astype("f4") + seed % 2
        file["coords"] = np.stack([np.arange(n) * 256, np.arange(n) % 3 * 256], 1)
        file["coords"].attrs.update(patch_size=256, patch_size_level0=256)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A TRIDENT job: 12 slides of 6 patients; uni has all, virchow lacks s11. And its tables."""
    place = tmp_path_factory.mktemp("cohort")
    job = place / "20x_256px_0px_overlap"
    for i in range(12):
        write_slide(job / "features_uni" / f"s{i:02d}.h5", 8, 6, i)
        if i < 11:
            write_slide(job / "features_virchow" / f"s{i:02d}.h5", 8, 4, i)
    slides = [f"s{i:02d}" for i in range(12)]
    rows = [f"{slide},{'ab'[i % 2]},{'xy'[i // 2 % 2]}" for i, slide in enumerate(slides)]
    (place / "labels.csv").write_text("slide_id,label,grade\n" + "\n".join(rows) + "\n")
    (place / "patients.csv").write_text(
        "slide_id,patient\n" + "\n".join(f"{slide},p{i // 2}" for i, slide in enumerate(slides)) + "\n"
    )
    splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    (place / "splits.csv").write_text("slide_id,split\n" + "\n".join(map(",".join, zip(slides, splits, strict=True))))
    (place / "most.txt").write_text("\n".join(slides[:11]) + "\n")
    return place


def tables(cohort):
    return ["--labels", cohort / "labels.csv", "--slides", cohort / "most.txt"]


def counts(run):
    """{class: patches in train, val, test, none} as `inspect` prints them."""
    words = [line.split() for line in run.stdout.splitlines()]
    return {w[0]: [int(n.replace(",", "")) for n in w[-4:]] for w in words if len(w) == 5 and w[-1].isdigit()}


def test_a_slide_that_a_teacher_lacks_can_be_left_out(cohort, tmp_path):
    job = cohort / "20x_256px_0px_overlap"
    run = run_program("inspect", job)
    assert run.returncode == 1
    assert "s11" in run.stderr
    assert "slides" in run.stderr
    run = call("inspect", job, "--slides", cohort / "most.txt")
    assert run.returncode == 0, run.stderr
    assert "88 patches" in run.stdout
    (tmp_path / "some.csv").write_text("slide_id,other\ns03,1\ns05,2\n")
    assert "24 patches" in call("inspect", job, "--slides", tmp_path / "some.csv", "--slides", "s00").stdout
    assert "16 patches" in call("verify", job, "--slides", "s00", "--slides", "s01").stdout
    run = call(
        "convert", job, "--out", tmp_path / "a", "--slides", "s00", "--slides", "s01", "--labels", cohort / "labels.csv"
    )
    assert run.returncode == 0, run.stderr
    assert sf.open(tmp_path / "a").slides == ("s00", "s01")


def test_teachers_are_chosen_or_joined(cohort, tmp_path):
    job = cohort / "20x_256px_0px_overlap"
    run = call("inspect", job, "--teacher", "uni")
    assert "96 patches" in run.stdout
    assert "virchow" not in run.stdout
    pairs = [f"--teacher={name}={job / f'features_{name}'}" for name in ("virchow", "uni")]
    run = call("inspect", *pairs, "--slides", cohort / "most.txt")
    assert run.returncode == 0, run.stderr
    assert "88 patches" in run.stdout


def test_inspect_prints_where_patches_lie(cohort):
    """12 slides with patches of 256 pixels; nothing where the files do not tell it."""
    run = call("inspect", cohort / "20x_256px_0px_overlap", "--teacher", "uni")
    assert run.returncode == 0, run.stderr
    assert ["12", "pixels", "256", "unknown", "unknown"] in [line.split() for line in run.stdout.splitlines()]


def test_inspect_prints_no_positions_where_none_are_known(tmp_path):
    sf.write_archive(tmp_path / "a", {"uni": np.ones((3, 4))})
    run = call("inspect", tmp_path / "a")
    assert run.returncode == 0, run.stderr
    assert "mpp" not in run.stdout


def test_from_features_to_maps_with_splits_made_on_the_way(cohort, tmp_path):
    """train, evaluate and score make the same splits of the same options."""
    job, splits = cohort / "20x_256px_0px_overlap", ["--val", "0.25", "--test", "0.25", "--seed", "3"]
    groups = ["--groups", cohort / "patients.csv"]
    inspected = call("inspect", job, *tables(cohort), *groups, *splits)
    assert inspected.returncode == 0, inspected.stderr
    n_test = sum(row[2] for row in counts(inspected).values())
    assert 0 < n_test < 44
    student = tmp_path / "student"
    trained = call("train", job, "--out", student, *tables(cohort), *groups, *splits, *QUICK)
    assert trained.returncode == 0, trained.stderr
    assert sf.load(student).training_record["job"]["seed"] == 3, "one seed for splits and training"
    evaluated = call("evaluate", student, job, *tables(cohort), *groups, *splits)
    assert evaluated.returncode == 0, evaluated.stderr
    row = next(line for line in trained.stdout.splitlines() if line.split()[:1] == ["test"])
    assert row.split() == next(line for line in evaluated.stdout.splitlines() if line.split()[:1] == ["test"]).split()
    options = ["--split", "test", "--out", tmp_path / "scores"]
    scored = call("score", student, job, *options, *tables(cohort), *groups, *splits)
    assert f"{n_test} patches scored" in scored.stdout, scored.stderr


def test_without_splits_a_training_makes_them_and_says_so(cohort, tmp_path):
    job, labels = cohort / "20x_256px_0px_overlap", tables(cohort)
    trained = call("train", job, "--out", tmp_path / "a", *labels, *QUICK, "--seed", "3")
    assert trained.returncode == 0, trained.stderr
    made = ("--val", "0.15", "--test", "0.15", "--seed", "3")
    assert f"no splits are given: made as by {' '.join(made)};" in trained.stdout
    same = call("train", job, "--out", tmp_path / "b", *labels, *QUICK, *made)
    assert "no splits" not in same.stdout
    assert sf.load(tmp_path / "a").training_record["job"] == sf.load(tmp_path / "b").training_record["job"]
    again = call("train", job, "--out", tmp_path / "a", *labels, *QUICK, "--seed", "3")
    assert (again.returncode, again.stdout) == (0, trained.stdout)
    refused = call("evaluate", tmp_path / "a", job, *labels)
    assert refused.returncode == 1
    assert "--val, --test and --seed as there" in refused.stderr


def test_a_column_of_splits_in_the_labels_is_used(cohort, tmp_path):
    rows = [f"s{i:02d},{'ab'[i % 2]},{'train' if i < 6 else 'val' if i < 9 else 'test'}" for i in range(12)]
    (tmp_path / "labels.csv").write_text("slide_id,label,split\n" + "\n".join(rows) + "\n")
    job = cohort / "20x_256px_0px_overlap"
    options = ("--labels", tmp_path / "labels.csv", "--teacher", "uni")
    assert counts(call("inspect", job, *options)) == {"a": [24, 16, 8, 0], "b": [24, 8, 16, 0]}
    run = call("train", job, "--out", tmp_path / "student", *options, *QUICK)
    assert run.returncode == 0, run.stderr
    assert "no splits" not in run.stdout


def test_the_seed_decides_the_splits(cohort, tmp_path):
    job, splits = cohort / "20x_256px_0px_overlap", ("--val", "0.25", "--test", "0.25")
    for seed in (1, 2):
        run = call("convert", job, "--out", tmp_path / f"{seed}", *tables(cohort), *splits, "--seed", seed)
        assert run.returncode == 0, run.stderr
    wanted = sf.open(
        job,
        labels=cohort / "labels.csv",
        slides=[f"s{i:02d}" for i in range(11)],
        splits=sf.GroupedSplit(0.25, 0.25, seed=2),
    )
    assert sf.open(tmp_path / "2").splits.tolist() == wanted.splits.tolist()
    assert sf.open(tmp_path / "1").splits.tolist() != wanted.splits.tolist()


def test_the_share_that_is_not_given_is_said(cohort):
    text = " ".join(call("inspect", "--help").stdout.replace("\u2502", " ").split())
    assert "Default, with --test: 0.15." in text
    assert "Default, with --val: 0.15; 0 for none." in text
    few = ("--slides", "s00", "--slides", "s01", "--slides", "s02")
    run = call("inspect", cohort / "20x_256px_0px_overlap", "--labels", cohort / "labels.csv", *few, "--val", "0.33")
    assert run.returncode == 1
    assert "test: 0.15 is the default where no share is given" in " ".join(run.stderr.split())


def test_groups_stay_whole(cohort, tmp_path):
    (tmp_path / "leaks.csv").write_text(
        "slide_id,split\n" + "".join(f"s{i:02d},{'train' if i % 2 else 'val'}\n" for i in range(12))
    )
    job = cohort / "20x_256px_0px_overlap"
    options = ["--teacher", "uni", "--groups", cohort / "patients.csv"]
    run = call("inspect", job, *options, "--splits", tmp_path / "leaks.csv")
    assert run.returncode == 1
    assert "'p0' has patches in train, val" in run.stderr
    assert call("inspect", job, *options, "--splits", cohort / "splits.csv").returncode == 1, (
        "p4 is in val and test too"
    )


def test_the_column_of_the_labels(cohort):
    run = call("inspect", cohort / "20x_256px_0px_overlap", *tables(cohort), "--label-column", "grade")
    assert run.returncode == 0, run.stderr
    assert set(counts(run)) >= {"x", "y"}


def test_broken_slides_can_be_skipped(cohort):
    run = call("inspect", cohort / "20x_256px_0px_overlap", "--on-error", "skip")
    assert run.returncode == 0, run.stderr
    assert "88 patches" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect",), "ARCHIVE is missing"),
        (("inspect", "in", "--teacher", "uni=x"), "not both"),
        (("inspect", "--teacher", "uni=x", "--teacher", "virchow"), "NAME=PATH"),
        (("inspect", "--teacher", "uni=x", "--teacher", "uni=y"), "each name once"),
        (("convert", "--out", "out", "--teacher", "uni"), "ARCHIVE is missing"),
        (("convert", "in", "more", "--out", "out"), "unexpected extra argument"),
        (("inspect", "in", "--splits", "a.csv", "--val", "0.1"), "not both"),
        (("inspect", "in", "--seed", "1"), "--seed is the seed of --val and --test"),
        (("train", "in"), "--out"),
        (("train", "in", "--out", "out", "--epohcs", "3"), "No such option"),
        (("train", "in", "--out", "out", "--epochs", "three"), "--epochs"),
        (("extract", "in", "--teacher", "uni", "--out", "out", "--workers", "0"), "--workers"),
        (("extract", "in", "--teacher", "uni", "--weights", "uni.pth", "--out", "out"), "--weights NAME=PATH"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    run = call(*arguments)
    assert run.returncode == 2, run.stderr
    assert message in " ".join(run.stderr.replace("\u2502", " ").split())
    assert not list(tmp_path.iterdir())
