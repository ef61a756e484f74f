"""Readers of UniToPatho and HunCRC, on small copies of their published structure."""

import csv
import logging

import numpy as np
import pytest
import torch
from torch.utils.data import random_split

import shazam_fast as sf
from shazam_fast.images.datasets import HUNCRC_CLASSES, UNITOPATHO_CLASSES, huncrc, unitopatho

TRAIN, VAL, TEST = 0, 1, 2


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(header)
        writer.writerows(rows)


@pytest.fixture
def unitopatho_root(tmp_path):
    """12 training and 5 test slides, seven patches each; a patch's class is its slide's."""
    root = tmp_path / "unitopatho" / "800"
    for name in UNITOPATHO_CLASSES:
        (root / name).mkdir(parents=True)
    number = 0
    for split, slides in (("train", 12), ("test", 5)):
        rows = []
        for _ in range(slides):
            number += 1
            code = number % len(UNITOPATHO_CLASSES)
            label = UNITOPATHO_CLASSES[code]
            slide = f"{number}-B2-{label.replace('.', '')}"
            for i in range(7):
                image = f"{slide}.ndpi_ROI__mpp0.44_reg000_crop_sk{i:05d}_({1000 + i},{2000 + number},1812,1812).png"
                rows.append([image, code, label, -1])
                (root / label / image).touch()
        write_csv(root / f"{split}.csv", ["image_id", "top_label", "top_label_name", "grade"], rows)
    return root


@pytest.fixture
def huncrc_root(tmp_path):
    """200 slides of two patches each, one of them without a label, one with two."""
    root = tmp_path / "huncrc"
    header = ["fname", "topleft_x", *HUNCRC_CLASSES[:3], "lymphovascular_invasion", *HUNCRC_CLASSES[3:]]
    for number in range(1, 201):
        folder = f"{number:03d}"
        (root / folder).mkdir(parents=True)
        rows = []
        for i in range(2):
            flags = dict.fromkeys(header[2:], 0) | {HUNCRC_CLASSES[number % 9]: 1}
            if (number, i) == (7, 0):
                flags = dict.fromkeys(header[2:], 0) | {"lymphovascular_invasion": 1}
            if (number, i) == (160, 1):
                flags["normal"] = flags["artifact"] = 1
            rows.append([f"/data/patches/{folder}/{i}.jpg", 512 * i, *flags.values()])
            (root / folder / f"{i}.jpg").touch()
        write_csv(root / f"{folder}_labels.csv", header, rows)
    return root


def test_unitopatho(unitopatho_root, caplog):
    table = unitopatho(unitopatho_root)
    assert table.classes == ("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG")
    assert len(table) == 17 * 7
    assert [table.classes[c] for c in table.labels] == [path.parent.name for path in table.paths]
    assert table.slides[0] == "1-B2-NORM"
    assert table.groups == table.slides
    assert table.coords[:2].tolist() == [[1000, 2001], [1001, 2001]]
    assert table.note == ""
    assert "(84, 35) training and test patches found, (6270, 2399) published" in caplog.text


def test_validation_is_whole_training_slides(unitopatho_root):
    table = unitopatho(unitopatho_root, val=0.25)
    slides = np.array(table.slides)
    of = {code: set(slides[table.splits == code]) for code in (TRAIN, VAL, TEST)}
    assert of[TEST] == set(slides[84:]), "the official test split is whole"
    assert of[VAL]
    assert not of[VAL] & of[TRAIN]
    assert of[VAL] | of[TRAIN] == set(slides[:84])
    assert np.array_equal(table.splits, unitopatho(unitopatho_root, val=0.25).splits)
    assert not np.array_equal(table.splits, unitopatho(unitopatho_root, val=0.25, seed=1).splits)


@pytest.mark.parametrize(("name", "seed"), [("unitopatho", 12), ("huncrc", 42)])
def test_as_published_is_the_scripts_random_split(name, seed, unitopatho_root, huncrc_root):
    """Their scripts: manual_seed, then torch's random_split of the test features in int(0.5 * n) and the rest."""
    table = sf.load_dataset(name, unitopatho_root if name == "unitopatho" else huncrc_root, split="as_published")
    n = int((table.splits != TRAIN).sum())
    assert n % 2 == 1, "an odd number tells which half is the larger"
    torch.manual_seed(seed)
    val, test = random_split(range(n), [n // 2, n - n // 2])
    halves = table.splits[-n:]
    assert sorted(np.flatnonzero(halves == VAL)) == sorted(val.indices)
    assert sorted(np.flatnonzero(halves == TEST)) == sorted(test.indices)
    assert table.note.startswith(f"as published: validation and test are random halves (seed {seed})")
    assert table.groups == (), "it cuts slides, which a training would refuse"
    assert table.slides


def test_the_folder_above_is_found_too(unitopatho_root, huncrc_root):
    assert unitopatho(unitopatho_root.parent).paths == unitopatho(unitopatho_root).paths
    above = huncrc_root.parent / "above"
    above.mkdir()
    huncrc_root.rename(above / "patches")
    assert len(huncrc(above)) == 398


def test_huncrc(huncrc_root, caplog):
    caplog.set_level(logging.INFO)
    table = huncrc(huncrc_root)
    assert table.classes == HUNCRC_CLASSES
    assert len(table) == 398
    assert "left out 2 rows without exactly one label" in caplog.text
    first = table.paths.index(huncrc_root / "012" / "1.jpg")
    assert table.classes[table.labels[first]] == HUNCRC_CLASSES[12 % 9]
    slides = np.array(table.slides)
    assert set(slides[table.splits == TEST]) == {f"{n:03d}" for n in range(152, 201)}
    assert set(slides[table.splits == VAL]) & set(slides[table.splits == TRAIN]) == set()
    assert (table.splits == VAL).any()
    assert table.coords is None


def test_missing_images_are_listed(unitopatho_root, huncrc_root):
    lost = sorted((unitopatho_root / "NORM").iterdir())[:6]
    for path in lost:
        path.unlink()
    with pytest.raises(sf.ShazamError, match=r"6 of 119 image files are missing: .*1-B2-NORM.* and 1 more"):
        unitopatho(unitopatho_root)
    (huncrc_root / "003" / "1.jpg").unlink()
    with pytest.raises(sf.ShazamError, match=r"1 of 398 image files are missing: .*003/1.jpg"):
        huncrc(huncrc_root)


def test_an_image_listed_twice(unitopatho_root, huncrc_root):
    source = unitopatho_root / "test.csv"
    source.write_text(source.read_text() + source.read_text().splitlines()[-1] + "\n")
    with pytest.raises(sf.ShazamError, match="listed more than once: 1 image"):
        unitopatho(unitopatho_root)
    source = huncrc_root / "009_labels.csv"
    source.write_text(source.read_text() + source.read_text().splitlines()[-1] + "\n")
    with pytest.raises(sf.ShazamError, match=r"listed more than once: 1 image: .*009/1.jpg"):
        huncrc(huncrc_root)


def test_missing_csv_files(unitopatho_root, huncrc_root, tmp_path):
    (unitopatho_root / "test.csv").unlink()
    with pytest.raises(sf.ArchiveError, match=r"test.csv: file not found"):
        unitopatho(unitopatho_root)
    for name in ("004", "117"):
        (huncrc_root / f"{name}_labels.csv").unlink()
    with pytest.raises(sf.MismatchError, match=r"2 of 200 CSV files are missing: 004_labels.csv, 117_labels.csv"):
        huncrc(huncrc_root)
    with pytest.raises(sf.MismatchError, match=r"200 of 200 CSV files are missing: 001_labels.csv.* and 195 more"):
        huncrc(tmp_path / "nowhere")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('1,"NORM"', '1,"ADENOMA"', r"train.csv: row 2: a class of 0 HP, .*expected, found 1 ADENOMA"),
        ('1,"NORM"', '3,"NORM"', "row 2: a class of .* found 3 NORM"),
        ("ndpi_ROI__", "scan_", r"row 2: an image named <slide>.ndpi_ROI_"),
        ('"top_label"', '"label"', "columns top_label are missing, found image_id, label, top_label_name, grade"),
    ],
)
def test_unitopatho_rows_that_cannot_be(unitopatho_root, old, new, message):
    edit(unitopatho_root / "train.csv", old, new)
    with pytest.raises(sf.MismatchError, match=message):
        unitopatho(unitopatho_root)


def test_a_slide_in_train_and_test_is_refused(unitopatho_root):
    image = "1-B2-NORM.ndpi_ROI__mpp0.44_reg000_crop_sk00009_(1,2,1812,1812).png"
    (unitopatho_root / "NORM" / image).touch()
    with (unitopatho_root / "test.csv").open("a") as file:
        file.write(f'"{image}",1,"NORM",-1\n')
    with pytest.raises(sf.MismatchError, match="the split leaks: group '1-B2-NORM'"):
        unitopatho(unitopatho_root)


def test_huncrc_rows_that_cannot_be(huncrc_root):
    edit(huncrc_root / "002_labels.csv", '"normal"', '"healthy"')
    with pytest.raises(sf.MismatchError, match=r"002_labels.csv: columns normal are missing"):
        huncrc(huncrc_root)
    edit(huncrc_root / "001_labels.csv", '0.jpg",0,0,1', '0.jpg",0,0,2')
    with pytest.raises(sf.MismatchError, match=r"001_labels.csv: row 2: 0 or 1 for every class expected, found 0, 2"):
        huncrc(huncrc_root)


def test_an_empty_split(unitopatho_root):
    source = unitopatho_root / "test.csv"
    source.write_text(source.read_text().splitlines()[0] + "\n")
    with pytest.raises(sf.ShazamError, match=r"official training and test split expected, found \(84, 0\)"):
        unitopatho(unitopatho_root)


def test_unknown_names(unitopatho_root):
    with pytest.raises(sf.ShazamError, match="no dataset is called 'camelyon'; there are unitopatho, huncrc"):
        sf.load_dataset("camelyon", unitopatho_root)
    with pytest.raises(sf.ShazamError, match=r"split: one of .* expected, found 'random'"):
        unitopatho(unitopatho_root, split="random")
    with pytest.raises(sf.ShazamError, match=r"0 < val <= 0\.5"):
        unitopatho(unitopatho_root, val=0.9)
