"""The student on three levels among the methods of a comparison."""

import math

import pytest
from synthetic import make_patches

import shazam_fast as sf
from shazam_fast.comparison.methods import choose_methods


@pytest.fixture(params=[["uni", "virchow"], ["uni:low", "uni:mid", "uni"]])
def archive(request, tmp_path):
    patches = make_patches(rows=200, teachers=dict.fromkeys(request.param, 6))
    return sf.open(sf.write_archive(tmp_path / "patches.archive", **patches))


def test_it_is_among_the_methods_where_the_archive_has_levels(archive):
    assert ("shazam_levels" in choose_methods(None, archive, None)) == ("uni:low" in archive.teachers)


def test_an_archive_without_levels_says_so_and_the_others_go_on(tmp_path):
    patches = make_patches(rows=200, teachers={"uni:low": 6, "uni:mid": 6, "uni": 6, "virchow": 6})
    archive = sf.open(sf.write_archive(tmp_path / "mixed.archive", **patches))
    comparison = sf.compare(archive, methods=["knn", "shazam_levels"], repeats=1, device="cpu")
    reasons = {cell.method: cell.reason for cell in comparison.cells}
    assert (
        "mixed.archive: features of three levels of every teacher expected: 'virchow' lacks" in reasons["shazam_levels"]
    )
    assert not reasons["knn"]
    assert not math.isnan(comparison.balanced_accuracy["knn"].value)
