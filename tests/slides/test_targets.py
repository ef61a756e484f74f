import numpy as np
import pandas as pd
import pytest

import shazam_fast as sf
from shazam_fast.errors import MismatchError, ShazamError
from shazam_fast.slides.bags import find_patients, make_bags
from shazam_fast.slides.cohort.assigning import assign_targets
from shazam_fast.slides.cohort.requests import Classes, Regression, Survival, read_targets

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
    assert "2 of 4 bags have no value in column 'label'" in caplog.text


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


GENES = "case_id,TP53,EGFR,ki67\np,mutated,wild,3\nq,wild,,1\nr,,mutated,\n"


def test_several_columns_of_classes(archive, tmp_path):
    found = assign(archive, Classes(csv(tmp_path, GENES), ["tp53", "EGFR"], {"EGFR": ["wild", "mutated"]}))
    assert found.names == ("tp53", "EGFR")
    assert found.classes == (("mutated", "wild"), ("wild", "mutated"))
    assert found.codes.tolist() == [[0, 0], [0, 0], [1, -1], [-1, 1]]
    assert found.constant(np.arange(4)).tolist() == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 3])
    assert [one.words for one in found.strata()] == [
        "column 'tp53', class 'mutated'", "column 'tp53', class 'wild'", "column 'EGFR', class 'wild'",
        "column 'EGFR', class 'mutated'",
    ]  # fmt: skip


def test_columns_of_numbers(archive, tmp_path):
    table = csv(tmp_path, "case_id,a,b\np,1,5\nq,3,\nr,,7.5\n")
    found = assign(archive, Regression(table, ["a", "b"]))
    assert np.array_equal(found.values, [[1, 5], [1, 5], [3, np.nan], [np.nan, 7.5]], equal_nan=True)
    assert found.constant(np.arange(4)).tolist() == pytest.approx([5 / 3, 17.5 / 3])
    assert assign(archive, Regression(table, "a", log2=True)).values[:3, 0].tolist() == [1, 1, 2]


def test_rows_of_a_patient_complete_one_another(archive, tmp_path):
    """One row may hold one column of a patient and another row the other; they must not disagree."""
    table = csv(tmp_path, "case_id,a,b\np,1,\nq,3,2\np,,5\n")
    assert assign(archive, Regression(table, ["a", "b"]), by="patient").values[:2].tolist() == [[1, 5], [3, 2]]
    table = csv(tmp_path, "case_id,a,b\np,1,4\nq,3,2\np,,5\n")
    with pytest.raises(MismatchError, match="column 'b': rows 2 and 4 contradict each other: 'p' has 4 and 5"):
        assign(archive, Regression(table, ["a", "b"]), by="patient")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda t: Classes(t, ["TP53", "KRAS"]), "no column 'KRAS'; it has case_id, TP53, EGFR, ki67"),
        (lambda t: Classes(t, ["TP53", "TP53"]), "column 'TP53' is given twice"),
        (lambda t: Classes(t, []), "column: the name of a column or a list of them expected"),
        (lambda t: Classes(t, ["TP53"], ["wild", "mutated"]), "column: class names} expected beside several columns"),
        (lambda t: Classes(t, ["TP53"], {"KRAS": ["wild", "mutated"]}), "'KRAS' is not among the columns"),
        (lambda t: Classes(t, "TP53", {"TP53": ["wild", "mutated"]}), "a list of class names expected"),
        (lambda t: Classes(t, "TP53", "wild"), "a list of class names expected, found 'wild'"),
        (lambda t: Classes(t, ["TP53", "EGFR"], {"TP53": ["wild", "WT"]}), "row 2.*mutated"),
        (lambda t: Classes({"p": "a"}, ["TP53"]), r"a table \(a path or a DataFrame\) expected"),
        (lambda t: Regression(t, "KRAS"), "no column 'KRAS'"),
        (lambda t: Regression(t, []), "columns: the name of a column or a list of them expected"),
        (lambda t: Regression(t, "TP53"), "row 2, column 'TP53': a number expected, found 'mutated'"),
        (lambda t: Regression({"p": 3}, "label"), r"a table \(a path or a DataFrame\) expected"),
    ],
)
def test_columns_that_cannot_be_used(archive, tmp_path, ask, message):
    table = csv(tmp_path, GENES)
    with pytest.raises(ShazamError, match=message):
        assign(archive, ask(table))


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (("", "", ""), {}, "column 'x': all 3 cells are empty; fill them, or leave the column out"),
        (("2", "2", ""), {}, "column 'x': all 3 values of the archive's slides are 2, so nothing can be learnt"),
        (("-1", "2", ""), {"log2": True}, "row 2, column 'x': 0 or more expected for log2"),
        (("1", "inf", ""), {}, "row 3, column 'x': a number expected, found 'inf'"),
        (("1", "2,5", ""), {}, "row 3 has 3 fields, the header 2"),
    ],
)
def test_numbers_that_cannot_be_used(archive, tmp_path, cells, options, message):
    rows = "".join(f"{name},{cell}\n" for name, cell in zip("pqr", cells, strict=True))
    with pytest.raises(ShazamError, match=message):
        assign(archive, Regression(csv(tmp_path, f"case_id,x\n{rows}"), "x", **options))


def test_a_patient_has_one_time(archive, tmp_path):
    table = csv(tmp_path, "slide_id,os,event\ns1,10,1\ns2,12,1\ns3,20,0\n")
    with pytest.raises(MismatchError, match=r"10 \(event\) for slide 's1', 12 \(event\)"):
        assign(archive, Survival(table, "os", "event", observed=1))


def test_slides_of_a_patient_with_different_classes_are_counted(archive, tmp_path, caplog):
    assign(archive, csv(tmp_path, "slide_id,label\ns1,a\ns2,b\ns3,b\n"))
    assert "slides of 1 patients have different classes ('p': a, b)" in caplog.text


def test_times_of_which_none_is_censored_are_questioned(archive, tmp_path, caplog):
    found = assign(archive, Survival(csv(tmp_path, "case_id,os,event\np,10,1\nq,20,1\n"), "os", "event", observed=1))
    assert found.events.tolist() == [True, True, True, False]
    assert "no time is censored: all 3 have 'event' = '1'" in caplog.text
