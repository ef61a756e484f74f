"""Folds: in proportion, by site, from the table; and the protocols by which epochs are chosen."""

import numpy as np
import pandas as pd
import pytest
from cohorts import make_cohort, make_sites

import shazam_fast as sf
from shazam_fast.errors import MismatchError, ShazamError
from shazam_fast.slides.bags import find_patients, make_bags
from shazam_fast.slides.cohort.folds import deal_folds, take_fold
from shazam_fast.slides.cohort.targets import ClassTargets, SeveralClasses, SurvivalTargets, ValueTargets

QUICK = {"folds": 3, "epochs": 2, "dim": 8, "device": "cpu", "model": "mean"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """30 patients of two slides each; one class per patient."""
    archive, labels, _ = make_cohort(tmp_path_factory.mktemp("folds") / "a", slides=60, per_patient=2, sizes=(2, 4))
    return archive, labels, make_bags(archive, "slide", find_patients(archive, None))


def table_of(labels, **columns):
    return pd.DataFrame({"slide_id": list(labels), "label": list(labels.values()), **columns})


def test_several_columns_are_in_proportion(cohort):
    _, _, bags = cohort
    rng = np.random.default_rng(0)
    codes = np.repeat(np.stack([rng.random(30) < 0.3, rng.random(30) < 0.5], axis=1), 2, axis=0).astype(np.int64)
    codes[rng.random((60, 2)) < 0.1] = -1
    folds = deal_folds(bags, SeveralClasses(("a", "b"), (("x", "y"), ("x", "y")), codes), 3, 0)
    for column in range(2):
        for code in (0, 1):
            counts = [int(((folds == k) & (codes[:, column] == code)).sum()) for k in range(3)]
            assert max(counts) - min(counts) <= 4, counts
    assert all(len(set(folds[2 * i : 2 * i + 2])) == 1 for i in range(30))


def test_small_and_large_values_are_in_proportion(cohort):
    _, _, bags = cohort
    values = np.repeat(np.random.default_rng(0).normal(size=30), 2)[:, None]
    folds = deal_folds(bags, ValueTargets(("x",), values), 5, 0)
    above = [int((values[folds == k, 0] > np.median(values)).sum()) for k in range(5)]
    assert above == [6] * 5
    assert np.bincount(folds).tolist() == [12] * 5


def test_events_are_in_proportion_and_censored_times_may_be_few(cohort):
    _, _, bags = cohort
    events = np.repeat(np.arange(30) != 7, 2)
    folds = deal_folds(bags, SurvivalTargets(np.arange(1.0, 61.0), events), 5, 0)
    assert np.bincount(folds).tolist() == [12] * 5
    with pytest.raises(MismatchError, match="an observed event is there for 1 patient, fewer than the 5 folds"):
        deal_folds(bags, SurvivalTargets(np.arange(1.0, 61.0), ~events), 5, 0)


def test_the_seed_deals_other_folds(cohort):
    _, labels, bags = cohort
    targets = ClassTargets(("a", "b"), np.array(["ab".index(labels[name]) for name in bags.names]))
    one, same, other = (deal_folds(bags, targets, 3, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_protocols():
    folds = np.array([0, 1, 2, 3, -1, 0])
    held_out = take_fold(folds, 0, "held_out")
    assert [part.tolist() for part in held_out] == [[2, 3], [1], [0, 5]]
    reported = take_fold(folds, 0, "reported_folds")
    assert [part.tolist() for part in reported] == [[1, 2, 3], [0, 5], [0, 5]]


def test_metrics_of_reported_folds_are_marked(cohort, tmp_path):
    archive, labels, _ = cohort
    result = sf.slides.train(archive, labels, out=tmp_path / "run", protocol="reported_folds", **QUICK)
    assert result.metrics.selected_on_reported
    assert result.metrics.to_dict()["selected_on_reported"]
    assert not sf.slides.train(archive, labels, **QUICK).metrics.selected_on_reported
    with pytest.raises(MismatchError, match="another protocol"):
        sf.slides.train(archive, labels, out=tmp_path / "run", **QUICK)


def test_a_site_is_in_one_fold(cohort):
    archive, labels, _ = cohort
    sites = [f"site {int(name[1:]) // 2 % 7}" for name in labels]
    result = sf.slides.train(archive, table_of(labels, site=sites), sites="site", **QUICK)
    found = result.predictions.to_pandas().assign(site=sites)
    assert (found.groupby("site").fold.nunique() == 1).all()
    assert found.fold.nunique() == 3


def test_a_confounder_by_site_shows_as_a_drop(tmp_path):
    """Nothing but the site tells the class: with a site's slides in all folds that looks like success."""
    archive, table = make_sites(tmp_path / "a")
    options = {
        "model": "mean",
        "folds": 4,
        "epochs": 30,
        "patience": 30,
        "lr": 3e-3,
        "dim": 32,
        "device": "cpu",
        "seed": 2,
    }
    apart, mixed = (
        sf.slides.train(archive, pd.DataFrame(table), sites=sites, **(QUICK | options)).metrics.values["auroc"].value
        for sites in ("site", None)
    )
    assert mixed > 0.7
    assert apart < 0.6
    assert mixed - apart > 0.15


def test_folds_of_the_table(cohort):
    archive, labels, _ = cohort
    given = [f"fold{int(name[1:]) // 4 % 3 + 8}" for name in labels]  # fold8, fold9, fold10
    result = sf.slides.train(archive, table_of(labels, part=given), **(QUICK | {"folds": "part"}))
    assert result.predictions.folds.tolist() == [int(name.removeprefix("fold")) - 8 for name in given]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"sites": "site"}, "sites: no column 'site'; it has slide_id, label"),
        ({}, {"folds": "part"}, "folds: no column 'part'"),
        ({"site": ["x", "y"] * 30}, {"sites": "site"}, "'p000' has two values.*x for slide 's000', y for"),
        ({"part": ["1", "2"] * 30}, {"folds": "part"}, "'p000' has two values.*1 for slide 's000', 2 for"),
        ({"part": ["1", "1", "2", "2"] * 15}, {"folds": "part"}, r"3 or more folds expected, found \['1', '2'\]"),
        ({"site": ["x", "x", "y", "y"] * 15}, {"sites": "site"}, "2 sites cannot be dealt into 3 folds"),
        ({"site": ["", "", *"xxyyzz"] * 7 + ["x"] * 4}, {"sites": "site"}, "'s000' has a target but no value"),
        ({"site": ["a", "a", "b", "b"] * 14 + ["c"] * 4}, {"sites": "site"}, "fold . would be trained without class"),
        ({"part": ["1", "1"] * 30, "site": ["1", "1"] * 30}, {"sites": "site", "folds": "part"}, "not both"),
        ({}, {"protocol": "published"}, "protocol: one of held_out, reported_folds"),
    ],
)  # fmt: skip
def test_folds_that_cannot_be_made(cohort, columns, options, message):
    archive, labels, _ = cohort
    with pytest.raises(ShazamError, match=message):
        sf.slides.train(archive, table_of(labels, **columns), **(QUICK | options))
