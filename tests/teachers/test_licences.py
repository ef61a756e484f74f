"""Licences under every tool's spelling of a teacher's name."""

import pytest

import shazam_fast as sf
from shazam_fast.teachers.licences import find_licence

TRIDENT = """
    uni_v1 uni_v2 conch_v1 conch_v15 virchow virchow2 virchow2-cls phikon phikon_v2 gigapath hoptimus0 hoptimus1
    gpfm musk ctranspath hibou_l midnight12k openmidnight kaiko-vits8 kaiko-vitb16 kaiko-vitl14 lunit-vits8 keep
    h0-mini
"""
STAMP = """
    uni uni2 mahmood-uni mahmood-uni2 mahmood-conch mahmood-conch1_5 conch conch1_5 virchow virchow2 virchow-full
    virchow_full gigapath h-optimus-0 h-optimus-1 ctranspath chief-ctranspath musk
"""
SLIDE2VEC = """
    conchv15 conch-v1.5 conchv1_5 phikon phikonv2 hibou-b hibou-l prov-gigapath prov-gigapath-tile gigapath-slide
    h-optimus-0-mini kaiko-midnight midnight lunit titan prism
"""


@pytest.mark.parametrize("name", (TRIDENT + STAMP + SLIDE2VEC).split())
def test_a_tools_name_has_a_licence(name):
    assert find_licence(name).licence != "unknown"


@pytest.mark.parametrize("name", STAMP.split())
def test_stamp_appends_a_hash(name):
    assert find_licence(f"{name}-49b04e14") == find_licence(name)


@pytest.mark.parametrize("name", ["uni_v1", "UNI", "uni2-h", "conch_v15", "mahmood-conch-0123abcd", "uni:low", "titan"])
def test_terms_that_cover_models_trained_on_the_outputs(name):
    assert find_licence(name).covers_derivatives is True


@pytest.mark.parametrize("name", ["my own", "unity", "resnet18", "", "uni-extra"])
def test_other_names_are_unknown_not_free(name):
    assert find_licence(name) == ("unknown", None)


def test_every_teacher_of_the_table_is_found():
    for spec in sf.list_teachers():
        assert find_licence(spec.name).licence == spec.licence
