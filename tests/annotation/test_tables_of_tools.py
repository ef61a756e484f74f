"""Labels, splits and patients from the tables that tools and users have."""

import numpy as np
import pytest

import shazam_fast as sf

SLIDES = [f"TCGA-{i:02d}" for i in range(8)]
LABELS = dict(zip(SLIDES, "aabbaabb", strict=True))
PATIENTS = {slide: f"P{i // 2}" for i, slide in enumerate(SLIDES)}


@pytest.fixture
def job(tmp_path):
    """Eight slides of two patches, at x 0 and 256."""
    slides = np.repeat(SLIDES, 2)
    coords = np.tile([[0, 0], [256, 0]], (8, 1))
    return sf.write_archive(tmp_path / "job", {"uni": np.ones((16, 3))}, slides=slides, coords=coords)


@pytest.fixture
def write(tmp_path):
    def write(text, name="t.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def by_slide(archive, index, names):
    return {archive.slides[s]: names[i] if i >= 0 else None for s, i in zip(archive.slide_index, index, strict=True)}


def labels(archive):
    return by_slide(archive, archive.labels, archive.classes)


def splits(archive):
    return "".join({0: "t", 1: "v", 2: "e", 255: "-"}[code] for code in archive.splits[::2].tolist())


def test_clam(job, write):
    rows = [f"{PATIENTS[s]},{s},{LABELS[s]}" for s in SLIDES]
    dataset = write("case_id,slide_id,label\n" + "\n".join(rows))
    names = write(f",train,val,test\n0,{SLIDES[0]},{SLIDES[4]},{SLIDES[6]}\n1,{SLIDES[1]},,{SLIDES[7]}.svs\n", "s.csv")
    archive = sf.open(job, labels=dataset, splits=names)
    assert labels(archive) == LABELS
    assert by_slide(archive, archive.group_index, archive.groups) == PATIENTS
    assert splits(archive) == "tt--v-ee"
    for yes, no in (("True", "False"), ("1", "0"), ("1.0", "0.0")):
        flags = [
            f"{s},{yes if i < 4 else no},{yes if i == 4 else no},{yes if i > 5 else no}" for i, s in enumerate(SLIDES)
        ]
        assert splits(sf.open(job, splits=write(",train,val,test\n" + "\n".join(flags), "b.csv"))) == "ttttv-ee"
    with pytest.raises(sf.MismatchError, match=r"b.csv: row 2: slide 'TCGA-00' is in train and in test"):
        sf.open(job, splits=write(f",train,val,test\n{SLIDES[0]},1,0,1\n{SLIDES[1]},1,0,0\n", "b.csv"))


def test_patho_bench(job, write):
    rows = [f"{PATIENTS[s]}\t{s}\t{LABELS[s]}\t{'test' if i > 5 else 'train'}\ttrain" for i, s in enumerate(SLIDES)]
    table = write("case_id\tslide_id\tOS_grade\tfold_0\tfold_1\n" + "\n".join(rows), "k=all.tsv")
    archive = sf.open(job, labels=table, splits=f"{table}:fold_0")
    assert labels(archive) == LABELS
    assert splits(archive) == "ttttttee"
    with pytest.raises(sf.MismatchError, match=r"2 folds; choose one, as in splits='.*k=all.tsv:fold_0'"):
        sf.open(job, splits=table)
    with pytest.raises(sf.MismatchError, match="splits: no column 'fold_2'; it has case_id"):
        sf.open(job, splits=f"{table}:fold_2")


def test_stamp(job, write):
    """Labels by patient, and a table of slides and patients."""
    clini = write("PATIENT,AGE,isMSIH\n" + "\n".join(f"P{i},60,{'ab'[i % 2]}" for i in range(3)) + "\nP9,50,a\n")
    slide = write("PATIENT,FILENAME\n" + "\n".join(f"{PATIENTS[s]},sub/{s}.h5" for s in SLIDES), "slide.csv")
    archive = sf.open(job, labels=clini, groups=slide, label_column="ismsih")
    assert labels(archive) == {s: None if PATIENTS[s] == "P3" else LABELS[s] for s in SLIDES}
    with pytest.raises(sf.MismatchError, match="the patients of the slides are not known; give groups="):
        sf.open(job, labels=clini, label_column="isMSIH")
    with pytest.raises(sf.MismatchError, match="choose one with label_column="):
        sf.open(job, labels=clini, groups=slide)


def test_torchmil_and_words_for_splits(job, write):
    words = ["training", "Train", "valid", "validation", "tune", "Testing", "dev", ""]
    table = write("bag_name,split\n" + "\n".join(f"{s},{w}" for s, w in zip(SLIDES, words, strict=True)))
    assert splits(sf.open(job, splits=table)) == "ttvvvev-"
    with pytest.raises(sf.MismatchError, match=r"t.csv: row 3: unknown split 'holdout'; use train, val, test or none"):
        sf.open(job, splits=write(f"slide,split\n{SLIDES[0]},train\n{SLIDES[1]},holdout\n"))


def test_the_labels_table_gives_splits_too(job, write, caplog):
    rows = "\n".join(f"{s},{LABELS[s]},{'train' if i < 6 else 'val'}" for i, s in enumerate(SLIDES))
    table = write("slide_id,label,split\n" + rows)
    assert splits(sf.open(job, labels=table)) == "ttttttvv"
    assert splits(sf.open(job, labels=table, splits=dict.fromkeys(SLIDES, "test"))) == "eeeeeeee"
    sf.open(job, labels=write("slide_id,label,split\n" + rows + "\nother,a,test\n"))
    assert "1 of 9 slides in" in caplog.text


def test_frames_and_series(job):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"slide_id": SLIDES, "label": list(LABELS.values()), "patient": list(PATIENTS.values())})
    frame.loc[0, "label"] = None
    expected = {**LABELS, "TCGA-00": None}
    shuffled = frame.sample(frac=1, random_state=0)
    for given in (frame, shuffled, frame.set_index("slide_id"), shuffled.set_index("slide_id")["label"]):
        assert labels(sf.open(job, labels=given)) == expected
    assert sf.open(job, labels=frame).groups == ("P0", "P1", "P2", "P3")
    patches = pd.Series(np.repeat(list("aabbaabb"), 2), dtype="category")
    assert labels(sf.open(job, labels=patches)) == LABELS
    with pytest.raises(sf.MismatchError, match="could be per patch or per slide"):
        sf.open(job, labels=patches.sample(frac=1, random_state=0))
    assert splits(sf.open(job, splits=frame.assign(split="Train").set_index("slide_id")["split"])) == "tttttttt"


@pytest.mark.parametrize("header", ["slide_id,x,y,label", "Slide,X,Y,Label", "slide,x_coord,Y Coord,label"])
@pytest.mark.parametrize("far", ["256", "256.0", "2.56e2"])
def test_labels_by_position(job, write, header, far):
    table = write(header + "\n" + "\n".join(f"{s},0,0,n\n{s},{far},0,t" for s in SLIDES))
    archive = sf.open(job, labels=table)
    assert [archive.classes[label] for label in archive.labels] == ["n", "t"] * 8


@pytest.mark.parametrize("x", ["", "0x10", "²", "1_0", "9" * 5000, "12.5", "left", "nan", "3e9"])
def test_positions_that_are_none_are_named(job, write, x):
    table = write(f"slide,x,y,label\n{SLIDES[0]},0,0,n\n{SLIDES[0]},{x},0,t\n")
    with pytest.raises(sf.MismatchError, match=r"t.csv: row 3, column 'x'"):
        sf.open(job, labels=table)


def test_rows_that_contradict_each_other_are_both_named(job, write):
    for text, what in (
        ("slide,label\nTCGA-00,a\nTCGA-01,b\nTCGA-00,c\n", r"rows 2 and 4 contradict each other: 'TCGA-00'"),
        (
            "slide,x,y,label\nTCGA-00,0,0,a\nTCGA-00,0.0,0,c\n",
            r"rows 2 and 3 contradict each other: the patch at \(0, 0\)",
        ),
        ("slide,label,patient\nTCGA-00,a,P1\nTCGA-00,a,P2\n", "rows 2 and 3 .* groups 'P1' and 'P2'"),
        ("slide,label\nTCGA-00,a\nTCGA-00.svs,c\n", "'TCGA-00' and 'TCGA-00.svs' both fit the slide 'TCGA-00'"),
    ):
        with pytest.raises(sf.MismatchError, match=what) as caught:
            sf.open(job, labels=write(text))
        assert "t.csv" in str(caught.value)
    assert labels(sf.open(job, labels=write("slide,label\nTCGA-00,a\nTCGA-00,\nTCGA-00,a\n")))["TCGA-00"] == "a"


def test_names_that_fit_nothing_are_counted_in_both_directions(job, write, caplog):
    sf.open(job, labels=write("slide,label\n" + "\n".join(f"{s},a" for s in SLIDES[3:]) + "\nlost1,b\nlost2,b\n,b\n"))
    assert "2 of 7 slides in" in caplog.text
    assert "'lost1', 'lost2'" in caplog.text
    assert "3 of 8 slides have no labels" in caplog.text
    assert "1 of 8 rows of" in caplog.text
    with pytest.raises(
        sf.MismatchError, match=r"none of its 8 slides .'TCGA-00', 'TCGA-01', 'TCGA-02' and 5 more. has"
    ):
        sf.open(job, labels=write("slide,label\nlost,b\n"))


def test_a_split_that_empties_is_an_error(job, write):
    table = write(f"slide,split\n{SLIDES[0]},train\nlost,test\nlost2,test\n")
    with pytest.raises(sf.MismatchError, match=r"its 2 rows marked 'test' belong to no patch .* first .*row 3"):
        sf.open(job, splits=table)


def test_patches_of_no_slide_stay_unknown(tmp_path, write):
    slides = ["s1", "", "s2", ""]
    path = sf.write_archive(tmp_path / "a", {"u": np.ones((4, 2))}, slides=slides, coords=np.zeros((4, 2), int))
    archive = sf.open(path, labels=write("slide,label,patient,split\ns1,a,p,train\ns2,b,q,val\n"))
    assert archive.labels.tolist() == [0, -1, 1, -1]
    assert archive.group_index.tolist() == [0, -1, 1, -1]
    assert archive.splits.tolist() == [0, 255, 1, 255]
    by_position = sf.open(path, labels=write("slide,x,y,label\ns1,0,0,a\ns2,0,0,b\n"))
    assert by_position.labels.tolist() == [0, -1, 1, -1]


def test_labels_that_are_no_classes(job, write):
    for values, message in (
        (["0.5", "1"], r"t.csv: row 2: labels are names or whole numbers from 0, found '0.5'"),
        (["-1", "1"], r"t.csv: row 2: .* found '-1'"),
        (["1e-3", "1"], r"t.csv: row 2: .* found '1e-3'"),
    ):
        table = write(f"slide,label\n{SLIDES[0]},{values[0]}\n{SLIDES[1]},{values[1]}\n")
        with pytest.raises(sf.MismatchError, match=message):
            sf.open(job, labels=table)
        assert sf.open(job, labels=table, classes=values).classes == tuple(values)
    assert sf.open(job, labels=[2**40] * 16).classes == ("1099511627776",), "a number is a name like others"
    table = write(f"slide,label\n{SLIDES[0]},0.0\n{SLIDES[1]},10.0\n{SLIDES[2]},2.0\n")
    assert sf.open(job, labels=table).classes == ("0", "2", "10")


def test_numbers_are_classes_where_no_others_are_named(job, tmp_path):
    """No class is made up for a number that nobody gave, per patch as in tables."""
    features = {"u": np.ones((4, 2))}
    path = sf.write_archive(tmp_path / "a", features, labels=[10, 2, -1, 2])
    archive = sf.open(path)
    assert (archive.classes, archive.labels.tolist()) == (("2", "10"), [1, 0, -1, 0])
    assert sf.open(job, labels=np.repeat([1, 2], 8)).classes == ("1", "2")
    with pytest.raises(sf.MismatchError, match=r"row 0: label 10 found, -1 \(unknown\) to 2 allowed"):
        sf.open(path, classes=["x", "y", "z"])
    named = sf.open(sf.write_archive(tmp_path / "b", features, labels=[1, 2, -1, 2]), classes=["x", "y", "z"])
    assert named.labels.tolist() == [1, 2, -1, 2], "numbers are indices of classes that have names"
    with pytest.raises(sf.MismatchError, match=r"could be names or indices of the classes \['1', '2'\]"):
        sf.open(job, labels=np.repeat([1, 1], 8), classes=["1", "2"])
    assert sf.open(job, labels=np.repeat(["1", "2"], 8), classes=["2", "1"]).labels.tolist() == [1] * 8 + [0] * 8
    with sf.ArchiveWriter(tmp_path / "c", {"u": 2}, classes=["1", "2"]) as writer:
        writer.append({"u": np.ones((2, 2))}, labels=[1, 0])
        writer.append({"u": np.ones((2, 2))}, labels=["1", "2"])
    assert sf.open(tmp_path / "c").labels.tolist() == [1, 0, 0, 1]
    with pytest.raises(sf.MismatchError, match="70000 different labels found, at most 65536 classes"):
        sf.write_archive(tmp_path / "d", {"u": np.ones((70_000, 2))}, labels=np.arange(70_000))


def test_ordered_categories_are_classes_in_their_order(job, tmp_path):
    pd = pytest.importorskip("pandas")
    order = pd.CategoricalDtype(["low", "mid", "high", "unused"], ordered=True)
    values = ["high", "low", "mid", None] * 2
    frame = pd.DataFrame({"slide_id": SLIDES, "label": pd.Series(values, dtype=order)})
    patches = pd.Series(np.repeat(values, 2), dtype=order)
    written = sf.write_archive(tmp_path / "a", {"u": np.ones((16, 2))}, labels=patches)
    archives = [sf.open(job, labels=given) for given in (frame, frame.set_index("slide_id")["label"], patches)]
    for archive in (*archives, sf.open(written)):
        assert archive.classes == ("low", "mid", "high")
        assert [None if c < 0 else archive.classes[c] for c in archive.labels[::2]] == values
    assert sf.open(job, labels=frame, classes=["mid", "high", "low"]).classes == ("mid", "high", "low")
    assert sf.open(job, labels=patches.astype("category").cat.as_unordered()).classes == ("high", "low", "mid")
    numbers = pd.Series(np.repeat([2, 3, 1, 2] * 2, 2), dtype=pd.CategoricalDtype([3, 2, 1], ordered=True))
    assert sf.open(job, labels=numbers).classes == ("3", "2", "1")


def test_classes_always_act(job, tmp_path, write):
    table = write(f"slide,label\n{SLIDES[0]},0\n{SLIDES[1]},1\n")
    assert labels(sf.open(job, labels=table, classes=["n", "t"]))["TCGA-01"] == "t"
    with pytest.raises(sf.MismatchError, match=r"row 3: label 1 found, -1 .unknown. to 0 allowed"):
        sf.open(job, labels=table, classes=["n"])
    features = {"u": np.ones((3, 2))}
    named = sf.write_archive(tmp_path / "n", features, labels=["n", "t", None])
    again = sf.open(named, classes=["t", "n"])
    assert (again.classes, again.labels.tolist()) == (("t", "n"), [1, 0, -1])
    with pytest.raises(sf.MismatchError, match="its class 't' is not among the classes"):
        sf.open(named, classes=["n"])
    coded = sf.write_archive(tmp_path / "c", features, labels=[1, 0, -1])
    assert sf.open(coded, classes=["n", "t"]).labels.tolist() == [1, 0, -1]
    assert sf.open(coded, classes=["1", "0"]).labels.tolist() == [0, 1, -1]
    for wrong in ("nt", ["n", "n"], ["n", None]):
        with pytest.raises(sf.MismatchError, match="classes: "):
            sf.open(named, classes=wrong)


@pytest.mark.parametrize(
    ("column", "attribute"), [("slide", "slide_index"), ("group", "group_index"), ("split", "splits")]
)
def test_stored_indices_out_of_range_are_errors(tmp_path, column, attribute, write):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = sf.write_archive(tmp_path / "a", {"u": np.ones((3, 2))}, slides=list("sst"), groups=list("ppq"))
    part = path / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    stored = safetensors.load_file(part)[column]
    wrong = np.array([0, 7 if column == "split" else -2, 0], stored.dtype).tobytes()
    entry = __import__("json").loads(content[8:4096])[column]["data_offsets"]
    content[4096 + entry[0] : 4096 + entry[1]] = wrong
    part.write_bytes(content)
    with pytest.raises(sf.ArchiveError, match=f"{column} -?[27] in row 1"):
        getattr(sf.open(path), attribute)
    if column == "slide":
        with pytest.raises(sf.ArchiveError, match="slide -2 in row 1 is out of range"):
            sf.open(path, labels={"s": "a"})


def test_what_leaves_its_meaning_open_is_an_error(job, write):
    for options, message in (
        ({"labels": LABELS, "label_column": "label"}, "labels= is no table"),
        ({"groups": "folder"}, "groups: .* found 'folder'"),
        ({"splits": "folder"}, "splits: .* found 'folder'"),
        ({"labels": "folder"}, "needs one folder per class"),
        ({"labels": write("label,note\na,b\n")}, "a column of slides .* or of patients expected"),
    ):
        with pytest.raises(sf.MismatchError, match=message):
            sf.open(job, **options)


def test_a_split_that_cuts_slides_is_said(job, caplog):
    sf.open(job, splits=["train", "val"] * 8)
    assert "patches in several splits of 8 slides: 'TCGA-00'" in caplog.text


def test_patches_of_unknown_position_stay_unknown(tmp_path, write):
    path = sf.write_archive(tmp_path / "a", {"u": np.ones((2, 2))}, slides=["s", "s"], coords=[[-1, -1], [0, 0]])
    assert sf.open(path, labels=write("slide,x,y,label\ns,-1,-1,a\ns,0,0,b\n")).labels.tolist() == [-1, 0]


def test_names_that_differ_in_case_alone_are_said(job, caplog):
    sf.open(job, labels={"TCGA-00": "Tumour", "TCGA-01": "tumour"}, groups={"TCGA-00": "p1", "TCGA-01": "P1"})
    assert "classes 'Tumour' and 'tumour' differ in case alone" in caplog.text
    assert "groups 'P1' and 'p1' differ in case alone" in caplog.text


def test_polars(job):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"slide_id": SLIDES, "label": [*list(LABELS.values())[:-1], None]})
    assert labels(sf.open(job, labels=frame)) == {**LABELS, "TCGA-07": None}


@pytest.mark.parametrize(("there", "lacking"), [("x", "y"), ("y", "x")])
def test_half_a_position_is_an_error(job, write, there, lacking):
    table = write(f"slide,{there},label\n" + "".join(f"{slide},0,n\n" for slide in SLIDES))
    with pytest.raises(sf.MismatchError, match=f"a column {lacking} expected beside '{there}'"):
        sf.open(job, labels=table)
    assert sf.open(job, labels=table, label_column=there).classes == ("0",)


def test_tables_without_rows(job, write):
    labels = dict.fromkeys(SLIDES, "n")
    for options, header in [
        ({"labels": ...}, "slide,label"),
        ({"labels": ...}, "patient,label"),
        ({"labels": labels, "splits": ...}, "slide,split"),
        ({"labels": labels, "groups": ...}, "slide,patient"),
    ]:
        table = write(header + "\n")
        with pytest.raises(sf.MismatchError, match="the table has no rows"):
            sf.open(job, **{name: table if given is ... else given for name, given in options.items()})


def test_names_are_never_merged_in_silence(job, tmp_path):
    features = {"uni": np.ones((2, 3))}
    for column in ("slides", "groups", "labels"):
        with pytest.raises(sf.MismatchError, match=f"{column}: 'a' and 'a ' differ in the blanks"):
            sf.write_archive(tmp_path / "bad", features, **{column: ["a", "a "]})
        with pytest.raises(
            sf.MismatchError, match=rf"{column}: row 1: text without zero bytes expected, found 'a\\x00'"
        ):
            sf.write_archive(tmp_path / "bad", features, **{column: ["a", "a\0"]})
    with pytest.raises(sf.MismatchError, match="classes: 'a' and 'a ' differ"):
        sf.write_archive(tmp_path / "bad", features, labels=["a", "a"], classes=["a", "a "])
    with pytest.raises(sf.MismatchError, match=r"the mapping.*differ in the blanks"):
        sf.open(job, labels={slide: "n " if i else "n" for i, slide in enumerate(SLIDES)})
    archive = sf.write_archive(tmp_path / "a", features, slides=["a ", "a "])
    assert sf.open(archive).slides == ("a",)
