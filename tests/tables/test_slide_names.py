"""How slides are called, and which names mean the same slide."""

import unicodedata

import pytest

import shazam_fast as sf
from shazam_fast.tables.slide_names import choose_slides, match_slides, name_slides


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["job/a.h5", "job/x/b.H5"], ["a", "b"]),
        (["job/a.svs.h5", "job/b.h5"], ["a", "b"]),
        (["job/case.ome.tif", "job/d.OME.TIFF"], ["case", "d"]),
        (["job/case.ome.h5"], ["case"]),
        (["job/siteA/001.h5", "job/siteB/001.h5"], ["siteA/001", "siteB/001"]),
        (["job/A01.svs", "job/A01.ndpi"], ["A01.svs", "A01.ndpi"]),
        (["job/s.svs", "job/x/s.tif"], ["s.svs", "s.tif"]),
        (["job/TCGA-3C.F6E9-45.svs"], ["TCGA-3C.F6E9-45"]),
        ([unicodedata.normalize("NFD", "job/Präparat.pt")], ["Präparat"]),
        (["job/.h5"], [".h5"]),
    ],
)
def test_files_give_names_as_short_as_they_differ(files, names):
    assert name_slides(files, "job") == names


def test_two_feature_files_of_one_slide_are_an_error():
    with pytest.raises(sf.MismatchError, match=r"job/s.pt and job/s.h5 are two files of the slide 's'"):
        name_slides(["job/s.pt", "job/s.h5"], "job")


@pytest.mark.parametrize(
    ("given", "slides", "found"),
    [
        (["a.svs", "x/b", "c"], ["a", "b"], [0, 1, -1]),
        (["/data/siteB/001.svs", "siteA/001"], ["siteA/001", "siteB/001"], [1, 0]),
        (["siteC/001"], ["siteA/001", "siteB/001"], [-1]),
        (["A01.svs", "A01.ndpi"], ["A01.ndpi", "A01.svs"], [1, 0]),
        (["case.ome", "case2.ome.TIF"], ["case", "case2"], [0, 1]),
        (["1009250.0", "7.0"], ["1009250", "7.0"], [0, 1]),
        ([r"D:\slides\a.SVS"], ["a"], [0]),
        (["a", "a"], ["a"], [0, 0]),
        ([unicodedata.normalize("NFD", "Präparat")], ["Präparat"], [0]),
    ],
)
def test_names_find_their_slides(given, slides, found):
    assert match_slides(given, slides, "the table", "the job").tolist() == found


@pytest.mark.parametrize(
    ("given", "slides", "message"),
    [
        (["001"], ["siteA/001", "siteB/001"], "'001' fits the slides 'siteA/001' and 'siteB/001'"),
        (["siteA/001.svs", "siteB/001.svs"], ["001"], "'siteA/001.svs' and 'siteB/001.svs' both fit the slide '001'"),
        (["A01.svs", "A01.ndpi"], ["A01"], "'A01.svs' and 'A01.ndpi' both fit the slide 'A01'"),
        (["A01"], ["A01.svs", "A01.ndpi"], "'A01' fits the slides 'A01.svs' and 'A01.ndpi'"),
        (["12", "12.0"], ["12"], "'12' and '12.0' both fit"),
    ],
)
def test_ambiguous_names_show_both(given, slides, message):
    with pytest.raises(sf.MismatchError, match=message) as caught:
        match_slides(given, slides, "the table", "the job")
    assert "the table" in str(caught.value)
    assert "the job" in str(caught.value)


def test_slides_are_chosen_once_and_by_names_that_are_there():
    assert choose_slides(["a", "b", "c"], ["c.svs", "a"], "job") == [2, 0]
    for wanted, message in (
        (["a", "a"], "'a' is chosen twice"),
        (["a", "a.svs"], "'a' and 'a.svs' both fit"),
        (["d", "a"], r"no slide 'd' \(1 of 2 chosen are not there\); it has 'a', 'b', 'c'"),
        ("abc", "a list of names expected"),
        ([], "found none"),
    ):
        with pytest.raises(sf.MismatchError, match=message):
            choose_slides(["a", "b", "c"], wanted, "job")


def test_slides_of_one_name_are_an_error():
    with pytest.raises(sf.MismatchError, match="the job: two slides are called"):
        match_slides(["a"], ["Präparat", unicodedata.normalize("NFD", "Präparat")], "the table", "the job")
