"""Splits of a comparison: groups and sites whole, classes in proportion; splits that nothing can be fitted on."""

import numpy as np
import pytest

import shazam_fast as sf
from shazam_fast.archive.opening import read_sites
from shazam_fast.comparison.compare import compare
from shazam_fast.comparison.splitting import join_units, random_splits


@pytest.fixture
def cohort(tmp_path):
    """800 patches, 80 slides, 40 patients, 10 sites; 1 of 4 patches is a tumour, at random."""
    rng = np.random.default_rng(0)
    labels = (rng.random(800) < 0.25).astype(np.int64)
    slides = np.arange(800) // 10
    features = {name: rng.normal(size=(800, 4)) + labels[:, None] for name in ("uni", "virchow")}
    path = sf.write_archive(
        tmp_path / "cohort", features, labels=labels, slides=[f"s{i:02d}" for i in slides],
        groups=[f"p{i // 2:02d}" for i in slides], classes=["normal", "tumour"],
    )  # fmt: skip
    return sf.open(path)


def site_of(slide):
    return f"site {int(slide[1:]) // 8}"


def whole(splits, codes):
    return all(len(set(splits[codes == code].tolist())) == 1 for code in np.unique(codes[codes >= 0]))


def test_random_splits_keep_groups_whole_and_classes_in_proportion(cohort):
    splits = random_splits(cohort, 5, 0.2, 0.2, 3, None)
    assert len({codes.tobytes() for codes in splits}) == 5
    for codes in splits:
        assert whole(codes, cohort.group_index)
        for code, share in ((0, 0.6), (1, 0.2), (2, 0.2)):
            assert (codes == code).mean() == pytest.approx(share, abs=0.03)
            assert cohort.labels[codes == code].mean() == pytest.approx(cohort.labels.mean(), abs=0.04)


def test_whole_sites_stay_in_one_part(cohort, tmp_path):
    by_slide = {slide: site_of(slide) for slide in cohort.slides}
    names, codes = read_sites(cohort, by_slide)
    assert len(names) == 10
    for splits in random_splits(cohort, 4, 0.2, 0.2, 0, codes):
        assert whole(splits, codes)
        assert whole(splits, cohort.group_index)
        assert set(splits.tolist()) == {0, 1, 2}
        for code in (0, 1, 2):
            assert cohort.labels[splits == code].mean() == pytest.approx(cohort.labels.mean(), abs=0.08)
    table = tmp_path / "sites.csv"
    table.write_text("slide_id,Site\n" + "\n".join(f"{slide},{site}" for slide, site in by_slide.items()))
    per_row = [site_of(cohort.slides[i]) for i in cohort.slide_index]
    for given in (table, str(table), per_row):
        assert np.array_equal(read_sites(cohort, given)[1], codes)
    patients = tmp_path / "patients.csv"
    patients.write_text("patient,hospital\n" + "\n".join(f"p{i:02d},site {i // 4}" for i in range(40)))
    assert np.array_equal(read_sites(cohort, patients)[1], codes)
    found = compare(cohort, ["lr_concat"], repeats=2, sites=by_slide)
    sites_of = [set(codes[cell.rows].tolist()) for cell in found.cells]
    assert all(
        np.isin(np.flatnonzero(np.isin(codes, list(s))), c.rows).all()
        for s, c in zip(sites_of, found.cells, strict=True)
    )


def test_sites_that_cannot_be_used(cohort, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("slide_id,colour\ns00,red\n")
    with pytest.raises(sf.MismatchError, match="one column of sites"):
        compare(cohort, ["knn"], sites=table)
    with pytest.raises(sf.MismatchError, match=r"sites of shape \(800,\) expected"):
        compare(cohort, ["knn"], sites=["a", "b"])
    with pytest.raises(sf.MismatchError, match=r"at least 3 of them .* found 2"):
        compare(cohort, ["knn"], sites={slide: slide > "s39" for slide in cohort.slides})
    with pytest.raises(sf.MismatchError, match="no patch has a known site"):
        compare(cohort, ["knn"], sites=[None] * 800)


def test_what_stays_together():
    sites = np.array([0, 0, 1, 1, 2, -1, -1])
    patients = np.array([0, 1, 1, 2, 3, 4, 4])
    assert join_units(sites, patients).tolist() == [0, 0, 0, 0, 4, 5, 5]  # patient 1 joins sites 0 and 1


def test_a_group_in_two_of_the_archives_splits(tmp_path, patches):
    splits = patches["splits"].copy()
    patches["groups"][0], patches["slides"][0] = patches["groups"][-1], "alone"
    with pytest.raises(sf.MismatchError, match="test-patient-11"):
        compare(sf.open(sf.write_archive(tmp_path / "cut", **patches)), ["knn"], own_splits=True)
    patches["groups"][:] = ""
    splits[0] = "test"
    patches["slides"][0] = "slide-001"
    archive = sf.open(sf.write_archive(tmp_path / "slides", **{**patches, "splits": splits}))
    with pytest.raises(sf.MismatchError, match="slide-001"):
        compare(archive, ["knn"], own_splits=True)


def test_a_class_that_no_training_patch_has(tmp_path, patches):
    patches["labels"][patches["splits"] == "train"] %= 2
    archive = sf.open(sf.write_archive(tmp_path / "lacking", **patches))
    with pytest.raises(sf.MismatchError, match=r"no training patch has class 'carcinoma' in the archive's own split"):
        compare(archive, ["knn"], own_splits=True)
    groups = np.repeat(["a", "b", "c"], 100)  # each of them is one part, and c alone has all classes
    labels = np.where(np.arange(300) < 200, np.arange(300) % 2, np.arange(300) % 3)
    archive = sf.open(sf.write_archive(tmp_path / "rare", patches["features"], labels=labels, groups=groups))
    with pytest.raises(sf.MismatchError, match=r"class '2' in random split \d+; it has 34 patches in 1 group "):
        compare(archive, ["knn"], repeats=10, val=0.33, test=0.33)


def test_a_class_that_no_test_patch_has_is_said(tmp_path, patches):
    patches["labels"][patches["splits"] == "test"] %= 2
    archive = sf.open(sf.write_archive(tmp_path / "lacking", **patches))
    found = compare(archive, ["lr_concat"], own_splits=True)
    assert found.notes == ("class 'carcinoma' has no patch in test of 1 of 1 splits; there it does not count",)
    assert found.to_dict()["notes"] == list(found.notes)


def test_labels_that_are_all_equal_or_unknown(tmp_path, patches):
    archive = sf.open(sf.write_archive(tmp_path / "equal", **{**patches, "labels": np.ones(300, dtype=np.int64)}))
    with pytest.raises(sf.MismatchError, match="all labelled patches are of class 'adenoma'"):
        compare(archive, ["knn"])
    with pytest.raises(sf.MismatchError, match="labels"):
        compare(sf.open(sf.write_archive(tmp_path / "none", patches["features"])), ["knn"])


def test_fewer_groups_than_splits_or_folds(tmp_path, patches):
    two = np.repeat(["a", "b"], 150)
    archive = sf.open(
        sf.write_archive(tmp_path / "two", patches["features"], labels=patches["labels"], groups=two, slides=two)
    )
    with pytest.raises(sf.MismatchError, match="too few slides or patients"):
        compare(archive, ["knn"])
    three = np.repeat(["a", "b", "c"], [150, 75, 75])
    archive = sf.open(sf.write_archive(tmp_path / "three", **{**patches, "groups": three, "slides": three}))
    found = compare(archive, ["stacking", "logit_product_gated", "logit_product"], own_splits=True)
    assert set(found.failed) == {"stacking", "logit_product_gated"}
    assert "two groups" in found.failed["stacking"]


def test_fewer_patches_than_a_batch_or_neighbours(tmp_path, patches):
    few = np.r_[0:12, 150:162, 225:237]
    small = {name: value[few] for name, value in patches.items() if name not in ("features", "classes")}
    features = {name: value[few] for name, value in patches["features"].items()}
    small |= {"groups": [f"p{i}" for i in range(36)], "slides": [f"s{i}" for i in range(36)]}
    archive = sf.open(sf.write_archive(tmp_path / "few", features, **small))
    names = ["knn", "stacking", "sum", "logit_product_gated"]
    assert compare(archive, names, own_splits=True).failed == {}
