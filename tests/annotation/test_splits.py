"""Random splits that keep patients whole."""

import numpy as np
import pytest

import shazam_fast as sf


def shares(splits):
    return [round(float((splits == code).mean()), 3) for code in range(3)]


@pytest.mark.parametrize(("val", "test"), [(0.4, 0.1), (0.15, 0.15), (0.5, 0.0), (0.33, 0.33), (0.05, 0.2)])
def test_shares_are_met_and_groups_are_whole(val, test):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(5, 200, 60))
    labels = (groups + (rng.random(len(groups)) < 0.2)) % 3
    splits = sf.GroupedSplit(val, test, seed=1).assign(labels, groups)
    np.testing.assert_allclose(shares(splits), [1 - val - test, val, test], atol=0.02)
    for group in range(60):
        assert len(set(splits[groups == group].tolist())) == 1
    for label in range(3):
        np.testing.assert_allclose((splits[labels == label] == 1).mean(), val, atol=0.1)
    np.testing.assert_array_equal(splits, sf.GroupedSplit(val, test, seed=1).assign(labels, groups))
    assert (splits != sf.GroupedSplit(val, test, seed=2).assign(labels, groups)).any()


def test_unknown_patients_are_split_by_slide_and_then_one_by_one(caplog):
    caplog.set_level("INFO")
    groups = np.repeat([0, 1, 2, -1, -1, -1, -1, -1], 100)
    slides = np.repeat([0, 1, 2, 3, 4, 5, -1, -1], 100)
    splits = sf.GroupedSplit(0.25, 0.25).assign(np.arange(800) % 2, groups, slides, "cohort")
    assert shares(splits) == [0.5, 0.25, 0.25]
    for slide in range(6):
        assert len(set(splits[slides == slide].tolist())) == 1
    assert (
        "cohort: split by 3 patients and 3 slides of unknown patient and 200 patches of unknown patient" in caplog.text
    )
    alone = sf.GroupedSplit(0.4, 0.1).assign(np.arange(1000) % 3, np.full(1000, -1))
    np.testing.assert_allclose(shares(alone), [0.5, 0.4, 0.1], atol=0.003)


def test_patches_of_a_slide_stay_with_its_known_patient():
    groups, slides = np.repeat([0, -1, 1], 20), np.repeat([0, 0, 1], 20)
    splits = sf.GroupedSplit(0.33, 0.0).assign(np.zeros(60, int), groups, slides)
    assert splits.tolist() == [0] * 40 + [1] * 20
    with pytest.raises(sf.MismatchError, match=r"too few slides or patients \(2\)"):
        sf.GroupedSplit(0.33, 0.33).assign(np.zeros(60, int), groups, slides)


def test_unlabelled_patches_are_in_no_split():
    splits = sf.GroupedSplit(0.25, 0.25).assign(np.where(np.arange(80) < 40, 0, -1), np.arange(80) // 10)
    assert set(splits[:40].tolist()) == {0, 1, 2}
    assert set(splits[40:].tolist()) == {255}


def test_too_few_groups_for_a_share():
    with pytest.raises(sf.MismatchError, match=r"too few slides or patients \(3\) for a 15% split"):
        sf.GroupedSplit().assign(np.zeros(30, int), np.arange(30) // 10)
    with pytest.raises(
        sf.MismatchError, match=r"15% split .*val=0.2 and test=0.15 \(test: 0.15 is the default.*test=0"
    ):
        sf.GroupedSplit(val=0.2).assign(np.zeros(40, int), np.arange(40) // 10)
    with pytest.raises(sf.MismatchError, match=r"val=0.2 and test=0.2; give larger shares"):
        sf.GroupedSplit(0.2, 0.2).assign(np.zeros(20, int), np.arange(20) // 10)
    with pytest.raises(sf.MismatchError, match=r"too few slides or patients \(0\)"):
        sf.GroupedSplit().assign(np.full(30, -1), np.arange(30))
    with pytest.raises(sf.ShazamError, match=r"val \+ test < 1"):
        sf.GroupedSplit(0.5, 0.5)
    for wrong in ({"val": "0.2"}, {"seed": -1}, {"seed": 0.5}, {"val": float("nan")}):
        with pytest.raises(sf.ShazamError, match="expected, found"):
            sf.GroupedSplit(**wrong)
