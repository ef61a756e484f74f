"""How levels of a teacher are spelt, and which sets of them are complete."""

import pytest

import shazam_fast as sf
from shazam_fast.runtime.levels import LEVELS, group_levels, name_level, split_level


@pytest.mark.parametrize("teacher", ["uni", "phikon-v2", "my own", "a:b"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_name_tells_teacher_and_level(teacher, level):
    assert split_level(name_level(teacher, level)) == (teacher, level)
    assert split_level(f"{teacher}:{level}") == (teacher, level)  # version 0.1 wrote "uni:high" too


@pytest.mark.parametrize("name", ["uni-low", "uni:lower", ":low", "low", "uni:", "uni:LOW"])
def test_other_names_are_teachers(name):
    assert split_level(name) == (name, "high")


def test_every_registered_teacher_is_its_own_high_level():
    for spec in sf.list_teachers():
        assert split_level(spec.name) == (spec.name, "high")


def test_levels_are_grouped_in_order_of_appearance():
    names = ["b:mid", "a", "b:low", "a:low", "b:high", "a:mid"]
    assert group_levels(names) == {"b": ("b:low", "b:mid", "b:high"), "a": ("a:low", "a:mid", "a")}
    assert group_levels([]) == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["uni"], r"'uni' lacks low \('uni:low'\), mid \('uni:mid'\); extract them with levels="),
        (["uni:low", "uni:mid"], r"'uni' lacks high \('uni'\)"),
        (["a:low", "a:mid", "a", "b", "b:mid", "c"], r"'b' lacks low \('b:low'\); 'c' lacks low .*, mid"),
        (["uni:low", "uni:mid", "uni", "uni:high"], "'uni' and 'uni:high' both are the level high of teacher 'uni'"),
        (["uni-low", "uni-mid", "uni"], r"'uni-low' lacks low \('uni-low:low'\)"),
    ],
)
def test_incomplete_sets_are_refused(names, message):
    with pytest.raises(sf.MismatchError, match=message):
        group_levels(names)
