"""Generated tables whose truth is known: what is opened is the truth, or an error; SHAZAM_FUZZ sets the number."""

import csv
import io
import random

import numpy as np
import pytest
from fuzzing import EXAMPLES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shazam_fast as sf

SLIDES = ("s1", "s10", "TCGA-3C.F6-1", "Präparat 1", "1009250", "siteA/001", "siteB/001", "b,c;d", "x")
MISSING = ("", "NA", "NaN", "nan", "N/A", "None", " ", "<NA>", "null")
CLASSES = ("tumour", "normal", "grade 10", "grade 2", "none", "HER2+", "a;b,c")
WORDS = {
    "train": ("train", "Train", "training", "TRAINING"), "val": ("val", "valid", "Validation", "tune", "dev"),
    "test": ("test", "Testing"), "": MISSING,
}  # fmt: skip
HEADERS = {
    "slide": ("slide_id", "Slide ID", "slide", "SLIDE", "slide_name", "FILENAME", "bag_name", "image_id"),
    "label": ("label", "Label", " label ", "target", "Diagnosis"),
    "patient": ("patient_id", "Patient ID", "PATIENT", "case_id"),
    "split": ("split", "Split", "subset"),
}
fuzz = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two patches of every slide, and one of none."""
    slides = ["", *np.repeat(SLIDES, 2)]
    return sf.write_archive(tmp_path_factory.mktemp("fuzz") / "a", {"u": np.ones((len(slides), 2))}, slides=slides)


def spell(name, rng):
    """Another name of the slide that tables have."""
    spelled = rng.choice([name, name, f"{name}.svs", f"{name}.NDPI", f"/data/wsi/{name}.ome.tif", f" {name}.h5 "])
    return f"{name}.0" if name.isdigit() and rng.random() < 0.3 else spelled


def written(rows, rng):
    """Bytes of a CSV file of these rows, in some dialect."""
    header = rows[0]
    separator = rng.choice([s for s in (",", ";", "\t") if not any(s in name for name in header)])
    out = io.StringIO()
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=rng.choice(["\n", "\r\n"]))
    for row in rows:
        writer.writerow(row)
        if rng.random() < 0.1 and row is not header:
            writer.writerow([""] * len(row))
    return out.getvalue().encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))


def make_table(rng):
    """Rows of a sound table, and what it says of each slide: {slide: (label, patient, split)}, "" unknown."""
    named = rng.sample(SLIDES, rng.randint(1, len(SLIDES)))
    numbers = rng.random() < 0.3
    classes = [str(n) for n in rng.sample(range(12), 3)] if numbers else rng.sample(CLASSES, 3)
    patients = [f"P{rng.randint(0, 3)}" if rng.random() < 0.9 else "" for _ in named]
    split_of = {patient: rng.choice(["train", "val", "test", ""]) for patient in {*patients}}
    truth = {
        slide: (rng.choice(classes) if rng.random() < 0.85 else "", patient, split_of[patient])
        for slide, patient in zip(named, patients, strict=True)
    }
    floats = numbers and rng.random() < 0.5
    columns = [rng.choice(HEADERS[kind]) for kind in ("slide", "label", "patient", "split")]
    rows = []
    for slide, (label, patient, split) in truth.items():
        name = spell(slide, rng)
        for _ in range(rng.choice([1, 1, 2])):
            cell = f"{label}.0" if floats and label else label or rng.choice(MISSING)
            rows.append([name, cell, patient or rng.choice(MISSING), rng.choice(WORDS[split]), str(rng.random())])
    if rng.random() < 0.3:
        rows.append([f"unknown {rng.random()}.svs", rng.choice(classes) + (".0" if floats else ""), "P9", "", "-"])
    rng.shuffle(rows)
    order = rng.sample(range(5), 5)
    return [
        [row[i] for i in order] for row in ([*columns, "note, free" if rng.random() < 0.1 else "note"], *rows)
    ], truth


def damage(rows, rng):
    """Make the table say what cannot be true; returns the kind of damage."""
    header = rows[0]
    places = {kind: next(i for i, h in enumerate(header) if h in HEADERS[kind]) for kind in HEADERS}
    slide, label, split = (places[kind] for kind in ("slide", "label", "split"))
    known = [row for row in rows[1:] if row[label] not in MISSING and "unknown" not in row[slide]]
    kinds = ["duplicate column", "ragged", "split"] + (["contradiction", "two spellings"] if known else [])
    kind = rng.choice(kinds)
    row = list(rng.choice(known or rows[1:]))
    if kind == "duplicate column":
        place = rng.randrange(len(header))
        for line in rows:
            line.append(line[place])
    elif kind == "ragged":
        rows.append(row[:-1])
    elif kind == "split":
        rows.append([*row[:split], rng.choice(["holdout", "0", "fold1"]), *row[split + 1 :]])
    elif kind == "contradiction":
        rows.append([*row[:label], "11.0" if row[label].endswith(".0") else "another", *row[label + 1 :]])
        if row[label] == "11.0":
            rows[-1][label] = "7"
    else:
        row[slide] = f"/elsewhere/{row[slide].strip().removesuffix('.0')}"
        rows.append(row)
    return kind


def opened(archive, table):
    """What an opened archive says: {slide: (label, patient, split)}; and of the patch of no slide."""
    found = sf.open(archive, labels=table)
    said = {}
    names = {0: "train", 1: "val", 2: "test", 255: ""}
    for slide, label, group, split in zip(
        found.slide_index, found.labels, found.group_index, found.splits, strict=True
    ):
        entry = (
            found.classes[label] if label >= 0 else "", found.groups[group] if group >= 0 else "", names[int(split)],
        )  # fmt: skip
        name = found.slides[slide] if slide >= 0 else None
        assert said.setdefault(name, entry) == entry
    return said, found.classes


@fuzz
@given(seed=st.integers(0, 2**63))
def test_a_sound_table_is_read_as_what_it_says(archive, seed):
    rng = random.Random(seed)
    rows, truth = make_table(rng)
    expected = {slide: truth.get(slide, ("", "", "")) for slide in SLIDES} | {None: ("", "", "")}
    path = archive.parent / "t.csv"
    path.write_bytes(written(rows, rng))
    if not any(label for label, *_ in expected.values()):
        with pytest.raises(sf.MismatchError, match="has labels in"):
            sf.open(archive, labels=path)
        return
    said, classes = opened(archive, path)
    assert said == expected
    assert list(classes) == sorted(classes, key=lambda c: [int(p) if p.isdigit() else p for p in c.split()])


@fuzz
@given(seed=st.integers(0, 2**63))
def test_a_damaged_table_is_an_error_that_names_it(archive, seed):
    rng = random.Random(seed)
    rows, _ = make_table(rng)
    kind = damage(rows, rng)
    path = archive.parent / "d.csv"
    path.write_bytes(written(rows, rng))
    with pytest.raises(sf.ShazamError) as caught:
        sf.open(archive, labels=path)
    assert "d.csv" in str(caught.value), kind


@settings(fuzz, max_examples=EXAMPLES // 3)
@given(seed=st.integers(0, 2**63))
def test_split_files_agree_with_pandas(archive, seed):
    """CLAM's two forms and Patho-Bench's, some with short columns, which turn ids into floats."""
    pd = pytest.importorskip("pandas")
    rng = random.Random(seed)
    slides = [slide for slide in SLIDES if "/" not in slide]
    parts = ["train", "val", "test"] if rng.random() < 0.7 else ["train", "test"]
    truth = {slide: rng.choice(parts) for slide in slides}
    path = archive.parent / "splits.tsv"
    kind = rng.choice(["names", "flags", "folds"])
    if kind == "names":
        columns = {part: [s for s in slides if truth[s] == part] for part in parts}
        if rng.random() < 0.5:  # one column of numbers alone: a float where it is short
            truth = dict.fromkeys(slides, "train") | {"1009250": "test"}
            columns = {"train": [s for s in slides if s != "1009250"], "test": [1009250.0]}
        frame = pd.DataFrame({part: pd.Series(names) for part, names in columns.items()})
        frame.to_csv(path)
        read = pd.read_csv(path, index_col=0, dtype={"test": str} if len(columns) == 3 else None)
        expected = {str(s).removesuffix(".0"): part for part in columns for s in read[part].dropna()}
    elif kind == "flags":
        frame = pd.DataFrame({part: [truth[s] == part for s in slides] for part in parts}, index=slides)
        (frame.astype(int) if rng.random() < 0.5 else frame).to_csv(path)
        read = pd.read_csv(path, index_col=0)
        expected = {str(slide): part for part in parts for slide in read.index[read[part].astype(bool)]}
    else:
        folds = [{slide: rng.choice(["train", "test"]) for slide in slides} for _ in range(3)]
        frame = pd.DataFrame(
            {"slide_id": slides, "task": "x"} | {f"fold_{i}": list(f.values()) for i, f in enumerate(folds)}
        )
        frame.to_csv(path, sep="\t", index=False)
        read = pd.read_csv(path, sep="\t", dtype=str)
        expected = dict(zip(read["slide_id"], read["fold_1"], strict=True))
    given_splits = f"{path}:fold_1" if kind == "folds" else path
    found = sf.open(archive, splits=given_splits)
    names = {0: "train", 1: "val", 2: "test", 255: None}
    said = {found.slides[s]: names[int(c)] for s, c in zip(found.slide_index, found.splits, strict=True) if s >= 0}
    assert {slide: split for slide, split in said.items() if split} == expected
