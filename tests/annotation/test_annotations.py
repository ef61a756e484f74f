"""Labels, splits and groups from what users have."""

import numpy as np
import pytest

import shazam_fast as sf

SLIDES = [f"TCGA-{i:02d}" for i in range(12)]
PATIENTS = {slide: f"P{i // 2}" for i, slide in enumerate(SLIDES)}  # two slides each
LABELS = {slide: ("tumour" if i % 4 < 2 else "normal") for i, slide in enumerate(SLIDES)}  # one label a patient


@pytest.fixture
def job(tmp_path):
    """One .npy a slide, 10 patches each, in folders named by class."""
    for slide in SLIDES:
        folder = tmp_path / "job" / LABELS[slide]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{slide}.npy", np.full((10, 3), 1.0, np.float32))
    return tmp_path / "job"


def write_csv(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def names(archive):
    return [archive.classes[label] if label >= 0 else None for label in archive.labels[::10]]


def test_a_csv_with_one_row_a_slide(job, tmp_path):
    rows = [f"{PATIENTS[s]},{s}.svs,{LABELS[s]}" for s in reversed(SLIDES)]
    table = write_csv(tmp_path / "labels.csv", "case_id,slide_id,label", rows)
    archive = sf.open(job, labels=table)
    assert archive.classes == ("normal", "tumour")
    assert names(archive) == [LABELS[s] for s in SLIDES]
    assert [archive.groups[g] for g in archive.group_index[::10]] == list(PATIENTS.values())
    chosen = sf.open(job, labels=str(table), classes=["tumour", "normal"])
    assert chosen.classes == ("tumour", "normal")
    assert names(chosen) == names(archive)


def test_mappings_arrays_and_folders(job):
    assert names(sf.open(job, labels=LABELS)) == [LABELS[s] for s in SLIDES]
    assert names(sf.open(job, labels="folder")) == [LABELS[s] for s in SLIDES]
    codes = np.arange(120) % 3
    archive = sf.open(job, labels=codes, groups=PATIENTS, splits=np.repeat(["train", "val", "test"], 40))
    assert archive.labels.tolist() == codes.tolist()
    assert archive.classes == ("0", "1", "2")
    assert archive.split("val").tolist() == list(range(40, 80))


def test_numbers_as_labels_sort_as_numbers(job, tmp_path):
    rows = [f"{s},{i}" for i, s in enumerate(SLIDES)]
    archive = sf.open(job, labels=write_csv(tmp_path / "grades.csv", "slide,target", rows))
    assert archive.classes == tuple(str(i) for i in range(12))
    assert archive.labels[::10].tolist() == list(range(12))


def test_a_csv_with_one_row_a_patch(tmp_path):
    coords = np.stack([np.arange(6) * 10, np.zeros(6, int)], axis=1)
    safetensors = pytest.importorskip("safetensors.numpy")
    (tmp_path / "job").mkdir()
    safetensors.save_file(
        {"features": np.ones((6, 3), np.float32), "coords": coords}, tmp_path / "job" / "s1.safetensors"
    )
    rows = [f"s1,{x},0,{'ab'[x // 10 % 2]}" for x in range(0, 50, 10)]
    archive = sf.open(tmp_path / "job", labels=write_csv(tmp_path / "l.csv", "slide_id,x,y,label", rows))
    assert archive.labels.tolist() == [0, 1, 0, 1, 0, -1]


def test_slides_without_a_label_are_said(job, tmp_path, caplog):
    rows = [f"{s},{LABELS[s]}" for s in SLIDES[2:]]
    archive = sf.open(job, labels=write_csv(tmp_path / "l.csv", "slide_id,label", rows))
    assert (archive.labels[:20] == -1).all()
    assert "2 of 12 slides have no labels" in caplog.text
    assert "'TCGA-00', 'TCGA-01'" in caplog.text


def test_clams_splits(job, tmp_path):
    names_table = write_csv(
        tmp_path / "splits_0.csv",
        ",train,val,test",
        [f"{i},{SLIDES[i]},{SLIDES[8 + i] if i < 2 else ''},{SLIDES[10 + i] if i < 2 else ''}" for i in range(8)],
    )
    flags = write_csv(
        tmp_path / "splits_0_bool.csv",
        ",train,val,test",
        [f"{s},{i < 8},{8 <= i < 10},{i >= 10}" for i, s in enumerate(SLIDES)],
    )
    for table in (names_table, flags):
        archive = sf.open(job, labels=LABELS, splits=table, groups=PATIENTS)
        assert [len(archive.split(s)) for s in ("train", "val", "test")] == [80, 20, 20]
        assert archive.split("val").tolist() == list(range(80, 100))
    both = write_csv(tmp_path / "both.csv", ",train,val,test", [f"0,{SLIDES[0]},{SLIDES[0]},"])
    with pytest.raises(
        sf.MismatchError, match="rows 2 and 2 contradict each other: 'TCGA-00' has the splits 'train' and 'val'"
    ):
        sf.open(job, splits=both)


def test_a_split_column(job, tmp_path):
    rows = [f"{s},{LABELS[s]},{'train' if i < 8 else 'val'}" for i, s in enumerate(SLIDES)]
    table = write_csv(tmp_path / "l.csv", "slide_id,label,split", rows)
    archive = sf.open(job, labels=table, splits=table)
    assert len(archive.split("val")) == 40


def test_a_split_that_leaks_is_refused(job):
    splits = {s: "train" if i < 7 else "val" for i, s in enumerate(SLIDES)}
    with pytest.raises(sf.MismatchError, match=r"the split leaks: group 'P3' has patches in train, val \(1 such"):
        sf.open(job, labels=LABELS, groups=PATIENTS, splits=splits)


def test_a_grouped_split_keeps_patients_whole_and_classes_in_proportion(job):
    wanted = sf.GroupedSplit(val=0.33, test=0.33, seed=3)
    archive = sf.open(job, labels=LABELS, groups=PATIENTS, splits=wanted)
    for group in range(6):
        assert len(set(archive.splits[archive.group_index == group])) == 1
    for split in ("train", "val", "test"):
        assert set(archive.labels[archive.split(split)]) == {0, 1}, split
    again = sf.open(job, labels=LABELS, groups=PATIENTS, splits=wanted)
    np.testing.assert_array_equal(archive.splits, again.splits)
    by_slide = sf.open(job, labels=LABELS, splits=sf.GroupedSplit(val=0.25, test=0))
    assert all(len(set(by_slide.splits[i : i + 10])) == 1 for i in range(0, 120, 10))
    assert len(by_slide.split("test")) == 0


def test_a_grouped_split_needs_groups_and_labels(job, tmp_path):
    with pytest.raises(sf.MismatchError, match="a stratified split needs labels"):
        sf.open(job, splits=sf.GroupedSplit())
    np.save(tmp_path / "one.npy", np.ones((9, 2), np.float32))
    with pytest.raises(sf.MismatchError, match="a grouped split needs patients or slides"):
        sf.open(tmp_path / "one.npy", labels=np.arange(9) % 2, splits=sf.GroupedSplit())
    with pytest.raises(sf.MismatchError, match=r"too few slides or patients \(6\) for a 5% split"):
        sf.open(job, labels=LABELS, groups=PATIENTS, splits=sf.GroupedSplit(val=0.05, test=0.05))
    with pytest.raises(sf.ShazamError, match="shares 0 < val"):
        sf.GroupedSplit(val=0.9)


def test_training_refuses_a_leak_too(tmp_path, patches):
    patches["groups"] = np.full(300, "the only patient")
    with pytest.raises(sf.MismatchError, match="group 'the only patient' has patches in train, val, test"):
        sf.train(sf.write_archive(tmp_path / "a", **patches), epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": {"other": "x"}}, "none of its 12 slides"),
        ({"labels": np.zeros(7, int)}, r"labels of shape \(120,\) expected, found \(7,\)"),
        ({"labels": LABELS, "classes": ["normal"]}, "'tumour'.*not among the classes"),
        ({"splits": dict.fromkeys(SLIDES, "holdout")}, "unknown split 'holdout'; use train, val, test or none"),
    ],
)
def test_what_does_not_fit(job, options, message):
    with pytest.raises(sf.MismatchError, match=message):
        sf.open(job, **options)


def test_tables_that_cannot_be_used(job, tmp_path):
    with pytest.raises(sf.ArchiveError, match=r"nothing.csv: file not found"):
        sf.open(job, labels=tmp_path / "nothing.csv")
    ragged = write_csv(tmp_path / "ragged.csv", "slide_id,label", ["a,b", "c"])
    with pytest.raises(sf.ArchiveError, match="row 3 has 1 fields, the header 2"):
        sf.open(job, labels=ragged)
    other = write_csv(tmp_path / "other.csv", "name,grade", ["a,b"])
    with pytest.raises(sf.MismatchError, match="expected, found name, grade"):
        sf.open(job, labels=other)
