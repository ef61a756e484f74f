import numpy as np
import pandas as pd
import pytest

import shazam_fast as sf
from shazam_fast.errors import MismatchError, ShazamError
from shazam_fast.slides.bags import find_patients, make_bags
from shazam_fast.slides.cohort.targets import Classes, Survival, assign_targets, read_targets

SLIDES = ["s1", "s1", "s2", "s3", "s4", "s4"]
PATIENTS = ["p", "p", "p", "q", "r", "r"]


@pytest.fixture
def archive(tmp_path):
    return sf.open(sf.write_archive(tmp_path / "a", {"uni": np.ones((6, 4))}, slides=SLIDES, groups=PATIENTS))


def assign(archive, targets, by="slide"):
    wanted, table = read_targets(targets)
    return assign_targets(wanted, table, make_bags(archive, by, find_patients(archive, table)))


def csv(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    return tmp_path / "t.csv"


def test_classes_by_slide_with_missing_values(archive, tmp_path, caplog):
    found = assign(archive, csv(tmp_path, "slide_id,label\ns1.svs,lusc\ns2.svs,luad\ns3.svs,\n"))
    assert found.classes == ("luad", "lusc")
    assert found.codes.tolist() == [1, 0, -1, -1]
    assert found.known.tolist() == [True, True, False, False]
    assert "2 of 4 bags have no target" in caplog.text


@pytest.mark.parametrize(
    "source",
    [
        {"p": "a", "q": "b"},
        pd.Series({"p": "a", "q": "b"}),
        pd.DataFrame({"case_id": ["p", "q"], "label": ["a", "b"]}),
        pd.DataFrame({"slide": ["s1", "s2", "s3"], "label": ["a", "a", "b"]}),
    ],
)
def test_classes_by_patient(archive, source):
    assert assign(archive, source, by="patient").codes.tolist() == [0, 1, -1]
    assert assign(archive, source, by="slide").codes.tolist() == [0, 0, 1, -1]


def test_classes_in_a_given_order_and_column(archive, tmp_path):
    table = csv(tmp_path, "slide_id,stage,subtype\ns1,1,x\ns2,2,y\ns3,1,y\ns4,2,x\n")
    assert assign(archive, Classes(table, column="subtype", classes=["y", "x"])).codes.tolist() == [1, 0, 0, 1]


def test_rows_that_contradict_are_both_named(archive, tmp_path):
    table = csv(tmp_path, "slide_id,label\ns1,a\ns3,b\ns1,b\n")
    with pytest.raises(MismatchError, match="rows 2 and 4 contradict each other: 's1' has a and b"):
        assign(archive, table)
    table = csv(tmp_path, "slide_id,label\ns1,a\ns2,b\ns3,b\n")
    assert assign(archive, table).codes.tolist() == [0, 1, 1, -1]
    with pytest.raises(MismatchError, match="rows 2 and 3 contradict each other: 'p' has a and b"):
        assign(archive, table, by="patient")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,label\nz1,a\nz2,b\n", "none of the 4 slides or patients"),
        ("slide_id,label\ns1,a\ns2,a\n", "two or more classes expected"),
        ("slide_id,subtype,stage\ns1,a,1\ns2,b,2\n", "--label-column"),
        ("name,label\ns1,a\ns2,b\n", "a column of slides .* or of patients expected"),
    ],
)
def test_tables_that_cannot_be_used(archive, tmp_path, text, message):
    with pytest.raises(MismatchError, match=message):
        assign(archive, csv(tmp_path, text))


def test_what_is_no_table():
    with pytest.raises(ShazamError, match="targets: a table"):
        read_targets(3)
    with pytest.raises(ShazamError, match=r"a table \(a path or a DataFrame\) expected, found dict"):
        read_targets(Survival({"s1": 3}, "t", "e", 1))


CLINICAL = "case_id,os,event\np,10,1.0\nq,20.5,0.0\nr,,1.0\n"


def test_survival(archive, tmp_path):
    found = assign(archive, Survival(csv(tmp_path, CLINICAL), "OS", "event", observed=1))
    assert np.array_equal(found.times, [10, 10, 20.5, np.nan], equal_nan=True)
    assert found.events.tolist() == [True, True, False, False]


def test_the_meaning_of_the_event_column_must_be_given(archive, tmp_path):
    with pytest.raises(TypeError, match="observed"):
        Survival(csv(tmp_path, CLINICAL), "os", "event")
    words = CLINICAL.replace("1.0", "DECEASED").replace("0.0", "LIVING")
    found = assign(archive, Survival(csv(tmp_path, words), "os", "event", observed="deceased"))
    assert found.events.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("header", "observed", "inverted"),
    [("event", 1, False), ("event", 0, True), ("censorship", 0, False), ("censorship", 1, True), ("Death", "0", True)],
)
def test_a_column_that_looks_inverted_is_questioned(archive, tmp_path, header, observed, inverted):
    targets = Survival(csv(tmp_path, CLINICAL.replace("event", header)), "os", header, observed=observed)
    if inverted:
        with pytest.raises(MismatchError, match=f"column '{header}' looks inverted"):
            assign(archive, targets)
    else:
        assert assign(archive, targets).events.any()


def test_events_that_come_late_are_questioned(archive, tmp_path, caplog):
    assign(archive, Survival(csv(tmp_path, "case_id,os,flag\np,10,0\nq,20,1\nr,30,1\n"), "os", "flag", observed=1))
    assert "is 'flag' = '1' really an observed event?" in caplog.text


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (CLINICAL, {"event": "vital"}, "no column 'vital'"),
        (CLINICAL, {"time": "months"}, "no column 'months'"),
        (CLINICAL, {"observed": "yes"}, "two values expected, one of them observed='yes'; found '0', '1'"),
        (CLINICAL.replace("r,,1.0", "r,3,2"), {}, "two values expected"),
        (CLINICAL.replace("20.5", "-3"), {}, "row 3, column 'os': a time above 0 expected, found -3"),
        (CLINICAL.replace("20.5", "0"), {}, "a time above 0 expected"),
        (CLINICAL.replace("20.5", "inf"), {}, "a number expected, found 'inf'"),
        (CLINICAL.replace("p,10,1.0", "p,10,0.0"), {}, "no slide of the archive has an observed event"),
    ],
)
def test_survival_tables_that_cannot_be_used(archive, tmp_path, text, options, message):
    options = {"time": "os", "event": "event", "observed": 1, **options}
    with pytest.raises(MismatchError, match=message):
        assign(archive, Survival(csv(tmp_path, text), **options))
