"""Cells, columns and tables as users have them."""

import os
import sys

import numpy as np
import pytest

import shazam_fast as sf
from shazam_fast.tables.cells import natural_key, normalise, read_numbers
from shazam_fast.tables.reader import read_table, table_of_frame


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_columns_of_any_kind_are_text_or_whole_numbers():
    pd = pytest.importorskip("pandas")
    text = [
        ["a", None, float("nan")], np.array(["a", None, np.nan], dtype=object), pd.Series(["a", None, pd.NA]),
        pd.Series(["a", None, None], dtype="category"), pd.Series(["a", None, None], dtype="string"),
        [b"a", "NA", " N/A "], ["a", "nan", ""],
    ]  # fmt: skip
    for column in text:
        assert normalise(column, "labels").tolist() == ["a", "", ""], column
    numbers = [
        [2, None, 0], [2.0, float("nan"), 0.0], np.ma.array([2, 5, 0], mask=[0, 1, 0]), np.array([2, 255, 0], np.uint8),
        pd.Series([2, None, 0], dtype="Int64"), np.array([2, np.nan, 0], np.float16), pd.Series([2.0, None, 0.0]),
    ]  # fmt: skip
    for column in numbers:
        expected = [2, 255, 0] if getattr(column, "dtype", None) == np.uint8 else [2, -1, 0]
        assert normalise(column, "labels").tolist() == expected, column
    assert normalise([True, None], "labels").tolist() == ["True", ""]
    assert normalise(["a", 1, 2.0], "labels").tolist() == ["a", "1", "2"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.array([0, 1.5]), "labels: row 1: a whole number expected, found 1.5"),
        (np.array([0, np.inf]), "row 1: a whole number expected, found inf"),
        ([1, 2**70], "row 1: a number of at most 64 bits expected, found 1180591620717411303424"),
        ([0, 10**5000], "row 1: a number of at most 64 bits expected, found a number of too many digits"),
        (np.array([2**63], np.uint64), "row 0: a number of at most 64 bits"),
        ([[0], [1]], "rows of several values"),
        (np.zeros((2, 1)), r"an array of shape \(2, 1\)"),
        ("normal", "one value per row expected, found 'normal'"),
        ({"a": 1}, "one value per row expected"),
        (["a", {"b": 1}], "row 1: text or a number expected, found {'b': 1}"),
        (np.array(["2020-01-01"], "datetime64[D]"), "text or whole numbers expected"),
        ([b"\xff"], "row 0: text in UTF-8 expected"),
    ],
)
def test_values_that_are_neither_are_quoted_with_their_place(column, message):
    with pytest.raises(sf.MismatchError, match=message):
        normalise(column, "labels")


def test_the_natural_order_holds_for_numbers_of_any_length():
    names = ["b", "grade 10", "10", "grade 2", "9" * 5000, "2", "02", "²"]
    assert sorted(names, key=natural_key) == ["02", "2", "10", "9" * 5000, "b", "grade 2", "grade 10", "²"]


def test_numbers_are_read_in_ascii_digits_alone():
    assert read_numbers(["256", "256.0", "2.56e+02", "-1"], "abcd").tolist() == [256, 256, 256, -1]
    for text in ("0x10", "1_000", "²", "٣", "nan", "inf", "", "1e999", "9" * 5000, "12,5"):
        with pytest.raises(sf.MismatchError, match="row 7: a number expected"):
            read_numbers([text], ["row 7"])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_dialects_of_csv(tmp_path, separator, encoding):
    lines = ['"Slide ID"| Label |note', 'a |"tumour"|"x, y; z"', "||", '"b"| normal|"two\nlines"', ""]
    text = "\r\n".join(lines).replace("|", separator)
    table = read_table(write(tmp_path / "t.csv", text, encoding))
    assert table.find("slide") == "Slide ID"
    assert table.texts(table.find("label")).tolist() == ["tumour", "normal"]
    assert table.texts("Slide ID").tolist() == ["a", "b"]
    assert table.columns["note"] == ["x, y; z", "two\nlines"]
    assert table.place(0).endswith("row 2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,label,label\na,b,c\n", "two columns are called 'label'"),
        ("slide,,\na,b,c\n", "two columns have no name"),
        ("slide,label\na\n", "row 2 has 1 fields, the header 2"),
        ('slide,label\na,"b\n', "row 2 cannot be read as CSV"),
        ('slide,label\na,"b"c\n', "row 2 cannot be read as CSV"),
        ("slide,label;x\na,b;c\n", "can be split at commas, semicolons or tabs"),
        ("slide,label\na,b\0\n", "zero bytes"),
    ],
)
def test_tables_that_leave_something_open_are_errors(tmp_path, text, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(sf.ArchiveError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


def test_other_encodings_and_files_that_are_no_tables(tmp_path):
    with pytest.raises(sf.ArchiveError, match=r"no text in UTF-8 \(byte 12\)"):
        read_table(write(tmp_path / "latin.csv", "slide,label\n\xe4,b\n", "latin-1"))
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path):
        with pytest.raises(sf.ArchiveError, match="a regular file expected, found a directory, pipe or device"):
            read_table(path)


def test_columns_that_could_both_be_meant(tmp_path):
    table = read_table(write(tmp_path / "t.csv", "slide_id,target,class\na,0,n\n"))
    with pytest.raises(sf.MismatchError, match=r"'target' and 'class' could both hold the label; .*label_column="):
        table.find_label()
    assert table.find_label("Class") == "class"
    assert read_table(write(tmp_path / "t.csv", "slide_id,target,class\na,n,n\n")).find_label() == "target"
    twice = read_table(write(tmp_path / "t.csv", "x,X,y,slide\n1,2,3,a\n"))
    with pytest.raises(sf.MismatchError, match="'x' and 'X' could both hold the x"):
        twice.find("x")
    assert read_table(write(tmp_path / "t.csv", "slide_id,BRAF\na,1\n")).find_label() == "BRAF"
    assert read_table(write(tmp_path / "t.csv", "slide_id,BRAF,KRAS\na,1,0\n")).find_label() is None
    with pytest.raises(sf.MismatchError, match="label_column: no column 'TP53'; it has slide_id, BRAF, KRAS"):
        read_table(tmp_path / "t.csv").find_label("TP53")


def test_excel_files(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        ["PATIENT", "isMSIH", "age"],
        ["p1", "MSIH", 61],
        [None, None, None],
        ["p2", None, 3.0],
        [1009250, "x", "#N/A"],
    ):
        sheet.append(row)
    book.create_sheet("empty")
    book.save(tmp_path / "t.xlsx")
    table = read_table(tmp_path / "t.xlsx")
    assert table.texts("PATIENT").tolist() == ["p1", "p2", "1009250"]
    assert table.texts("isMSIH").tolist() == ["MSIH", "", "x"]
    assert table.texts("age").tolist() == ["61", "3", ""]
    assert table.place(1).endswith("row 4")
    sheet["B2"] = "=1+1"
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(sf.MismatchError, match="row 2, column 'isMSIH': a formula without a stored value"):
        read_table(tmp_path / "t.xlsx").texts("isMSIH")
    assert read_table(tmp_path / "t.xlsx").texts("PATIENT").tolist() == ["p1", "p2", "1009250"]
    book["empty"].append(["slide"])
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(sf.ArchiveError, match=r"2 sheets hold entries \(Sheet, empty\)"):
        read_table(tmp_path / "t.xlsx")
    with pytest.raises(sf.ArchiveError, match="cannot be read as an Excel file"):
        read_table(write(tmp_path / "no.xlsx", "slide,label\n"))


def test_excel_files_need_openpyxl(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(sf.ShazamError, match=r"openpyxl is needed .*shazam_fast\[tables\]"):
        read_table(write(tmp_path / "t.xlsx", ""))


def test_frames_keep_an_index_that_names_rows():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"label": ["t", "n"]}, index=pd.Index(["a", "b"], name="slide_id"))
    assert table_of_frame(frame).columns == {"slide_id": ["a", "b"], "label": ["t", "n"]}
    assert list(table_of_frame(frame.reset_index()).columns) == ["slide_id", "label"]
    with pytest.raises(sf.ArchiveError, match="the DataFrame: two columns are called 'label'"):
        table_of_frame(pd.concat([frame, frame], axis=1))
