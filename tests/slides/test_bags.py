import numpy as np
import pytest
from cohorts import make_cohort

import shazam_fast as sf
from shazam_fast.errors import MismatchError
from shazam_fast.slides.bags import find_patients, make_bags
from shazam_fast.slides.models.packs import Packs
from shazam_fast.tables.reader import table_of_mapping


def write(tmp_path, slides, **columns):
    features = {"uni": np.arange(len(slides) * 4, dtype=np.float32).reshape(-1, 4) + 1}
    return sf.open(sf.write_archive(tmp_path / "a", features, slides=slides, dtype="float32", **columns))


def test_rows_of_slides_that_are_not_together(tmp_path):
    archive = write(tmp_path, ["s2", "s1", "s2", "s3", "s1"])
    bags = make_bags(archive, "slide", {})
    assert bags.names == ("s1", "s2", "s3")
    assert [bags.rows_of(bag).tolist() for bag in range(3)] == [[1, 4], [0, 2], [3]]


def test_slides_of_a_patient_joined_or_apart(tmp_path):
    archive = write(tmp_path, ["s1", "s2", "s3", "s3"], groups=["p", "q", "p", "p"])
    patients = find_patients(archive, None)
    joined, apart = make_bags(archive, "patient", patients), make_bags(archive, "slide", patients)
    assert joined.names == joined.patients == ("p", "q")
    assert joined.rows_of(0).tolist() == [0, 2, 3]
    assert apart.patients == ("p", "q", "p")


def test_patches_without_a_slide_are_left_out_and_counted(tmp_path, caplog):
    bags = make_bags(write(tmp_path, ["s1", None, "s1", "s2"]), "slide", {})
    assert bags.rows.tolist() == [0, 2, 3]
    assert "1 of 4 patches are of no slide" in caplog.text


def test_an_archive_without_slides_says_so(tmp_path):
    path = sf.write_archive(tmp_path / "a", {"uni": np.ones((3, 4))})
    with pytest.raises(MismatchError, match="no patch says which slide"):
        make_bags(sf.open(path), "slide", {})


def test_patients_come_from_the_table_where_the_archive_has_none(tmp_path):
    archive = write(tmp_path, ["s1", "s2"])
    table = table_of_mapping({"s1.svs": "p", "s2.svs": "p"}, "patient")
    assert find_patients(archive, table) == {"s1": "p", "s2": "p"}
    table = table_of_mapping({"s1.svs": "p"}, "patient")
    table.columns["slide"].append("s1.svs")
    table.columns["patient"].append("q")
    table.rows.append("again")
    with pytest.raises(MismatchError, match="'s1' is of two patients, 'p' and 'q'"):
        find_patients(archive, table)


@pytest.mark.parametrize(("batch_size", "patches"), [(1, 1), (4, 20), (8, 1000), (100, 50)])
def test_packs_hold_every_bag_once_with_its_own_patches(tmp_path, batch_size, patches):
    archive, _, _ = make_cohort(tmp_path / "a", slides=25, sizes=(1, 90))
    bags = make_bags(archive, "slide", {})
    chosen = np.arange(3, 25)
    packs = Packs(bags, chosen, batch_size, patches)
    seen, shapes = [], set()
    for pack in packs.epoch(np.random.default_rng(0), 0):
        shapes.add((pack.features.shape, pack.segments.shape, pack.bags.shape))
        segments = pack.segments.numpy()
        assert (segments[len(pack.rows) :] == packs.places).all()
        assert (pack.features[len(pack.rows) :] == 0).all()
        assert np.array_equal(pack.features[: len(pack.rows)].numpy(), archive.gather(pack.rows))
        for place, bag in enumerate(pack.bags.tolist()):
            rows = pack.rows[segments[: len(pack.rows)] == place]
            assert len(rows) == (0 if bag < 0 else min(patches, bags.sizes[bag]))
            assert set(rows.tolist()) <= (set(bags.rows_of(bag).tolist()) if bag >= 0 else set())
            assert len(set(rows.tolist())) == len(rows)
            seen += [bag] if bag >= 0 else []
    assert sorted(seen) == chosen.tolist()
    assert len(shapes) == 1


def test_packs_are_filled(tmp_path):
    archive, _, _ = make_cohort(tmp_path / "a", slides=60, sizes=(5, 200))
    packs = Packs(make_bags(archive, "slide", {}), np.arange(60), 8, 1000)
    filled = [len(pack.rows) / packs.size for pack in packs.epoch(np.random.default_rng(0), 0)]
    assert np.mean(filled[:-1]) > 0.9


def test_epochs_differ_and_seeds_repeat(tmp_path):
    archive, _, _ = make_cohort(tmp_path / "a", slides=12)
    packs = Packs(make_bags(archive, "slide", {}), np.arange(12), 4, 20)
    rows = [np.concatenate([p.rows for p in packs.epoch(np.random.default_rng(seed), 0)]) for seed in (1, 1, 2)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_other_patches_of_large_slides_are_drawn_in_every_epoch(tmp_path):
    archive, _, _ = make_cohort(tmp_path / "a", slides=2, sizes=(50, 60))
    packs = Packs(make_bags(archive, "slide", {}), np.arange(2), 2, 10)
    seen = [set(pack.rows.tolist()) for e in range(30) for pack in packs.epoch(np.random.default_rng(e), e)]
    assert len(set().union(*seen)) > 0.9 * len(archive)
