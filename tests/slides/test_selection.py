import os
import shutil

import numpy as np
import pytest
import torch
from cohorts import make_cohort
from interruption import run_killed
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import shazam_fast as sf
from shazam_fast.errors import ArchiveError, MismatchError, NonFiniteError
from shazam_fast.slides.selecting.clustering import Views, cluster, draw

DIMS = {"conch": 48, "virchow2": 160, "gigapath": 96}


def planted(n=1500, types=12, seed=0):
    """Types that only all views together tell apart: each view confuses types that another one distinguishes."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, types, n)
    blocks = []
    for view, dim in enumerate(DIMS.values()):
        seen = kinds % 4 if view == 0 else kinds // 4 if view == 1 else np.zeros(n, dtype=int)
        centres = rng.normal(size=(types, dim)) * 2
        blocks.append((centres[seen] + rng.normal(size=(n, dim))) * (1.0, 100.0, 0.01)[view])
    return torch.from_numpy(np.concatenate(blocks, axis=1).astype(np.float32)), kinds


def clustered(x, count, seed=0):
    views = Views(DIMS, seed)
    return cluster(views.balance(views.project(x)), count, seed)


@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_are_found(seed):
    x, kinds = planted(seed=seed)
    assert adjusted_rand_score(kinds, clustered(x, 12, seed)) > 0.95


def test_views_weigh_the_same_whatever_their_scale():
    """Without balance the view of the largest scale decides alone, and confuses what the others tell apart."""
    x, kinds = planted()
    one_view = KMeans(12, n_init=3, random_state=0).fit_predict(x.numpy())
    assert adjusted_rand_score(kinds, one_view) < 0.6


def test_the_objective_is_near_scikit_learns():
    x, _ = planted(types=40)
    views = Views(DIMS, 0)
    points = views.balance(views.project(x))
    found = cluster(points, 30, 0)
    centres = np.stack([points.numpy()[found == c].mean(axis=0) for c in range(30) if (found == c).any()])
    mine = np.square(points.numpy()[:, None] - centres[None]).sum(axis=2).min(axis=1).sum()
    assert mine < 1.05 * KMeans(30, n_init=5, random_state=0).fit(points.numpy()).inertia_


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7])
def test_fewer_points_than_clusters(n):
    found = cluster(torch.randn(n, 3), 6, 0)
    assert len(np.unique(found)) == min(n, 6)


def test_equal_points_and_constant_views():
    points = torch.zeros(100, 4)
    assert set(cluster(points, 5, 0).tolist()) <= set(range(5))
    views = Views({"flat": 3}, 0)
    assert torch.isfinite(views.balance(views.project(torch.ones(9, 3)))).all()


def test_draws_take_from_every_cluster():
    clusters = np.repeat([0, 1, 2], [50, 3, 7])
    chosen = draw(clusters, 5, np.random.default_rng(0))
    assert np.bincount(clusters[chosen]).tolist() == [5, 3, 5]
    assert len(set(chosen.tolist())) == len(chosen)


def test_more_points_than_centres_are_fitted_on(monkeypatch):
    monkeypatch.setattr("shazam_fast.slides.selecting.clustering.FIT_ROWS", 400)
    x, kinds = planted()
    assert adjusted_rand_score(kinds, clustered(x, 12)) > 0.9


@pytest.fixture
def cohort(tmp_path):
    archive, _, _ = make_cohort(tmp_path / "a", slides=40, sizes=(3, 120))
    return archive


def test_selection_of_slides(cohort, tmp_path):
    archive = cohort
    chosen = sf.slides.select(archive, clusters=8, per_cluster=3, bags=4)
    assert list(chosen.rows) == list(archive.slides)
    for name, bags in chosen.rows.items():
        own = np.flatnonzero(archive.slide_index == archive.slides.index(name))
        assert len(bags) == 4
        for bag in bags:
            assert set(bag.tolist()) <= set(own.tolist())
            assert min(len(own), 8) <= len(bag) <= 24
    large = max(chosen.rows, key=lambda name: len(chosen.rows[name][0]))
    assert not np.array_equal(*chosen.rows[large][:2])


def test_a_slides_selection_does_not_depend_on_the_others(cohort):
    archive = cohort
    all_slides = sf.slides.select(archive, clusters=5, per_cluster=2).rows
    path, name = archive.path, archive.slides[17]
    alone = sf.slides.select(sf.open(path, slides=[name]), clusters=5, per_cluster=2).rows
    first = np.flatnonzero(archive.slide_index == 17)[0]
    assert np.array_equal(alone[name][0] + first, all_slides[name][0])


def test_selections_on_disk(cohort, tmp_path):
    archive = cohort
    wanted = sf.slides.select(archive, clusters=5, per_cluster=2, bags=2)
    found = sf.slides.select(archive, tmp_path / "chosen", clusters=5, per_cluster=2, bags=2)
    again = sf.slides.select(archive, tmp_path / "chosen", clusters=5, per_cluster=2, bags=2)
    for other in (found, again, sf.slides.open_selection(tmp_path / "chosen")):
        assert all(
            np.array_equal(a, b) for n in wanted.rows for a, b in zip(wanted.rows[n], other.rows[n], strict=True)
        )
    assert sum(file.stat().st_size for file in (tmp_path / "chosen").iterdir()) < 30_000
    with pytest.raises(MismatchError, match="other clusters"):
        sf.slides.select(archive, tmp_path / "chosen", clusters=6, per_cluster=2, bags=2)


def test_a_killed_selection_goes_on(cohort, tmp_path):
    archive = cohort
    wanted = sf.slides.select(archive, tmp_path / "whole", clusters=5, per_cluster=2).rows
    for last in (8, 13):
        out = tmp_path / f"killed-{last}"
        run_killed(last, sf.slides.select, archive.path, out, clusters=5, per_cluster=2)
        found = sf.slides.select(archive, out, clusters=5, per_cluster=2).rows
        assert all(np.array_equal(found[name][0], wanted[name][0]) for name in wanted)
        assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))


def test_damaged_selections(cohort, tmp_path):
    archive = cohort
    sf.slides.select(archive, tmp_path / "chosen", clusters=5, per_cluster=2)
    shutil.copytree(tmp_path / "chosen", tmp_path / "damaged")
    part = tmp_path / "damaged" / "part-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ArchiveError, match="checksum mismatch"):
        sf.slides.open_selection(tmp_path / "damaged")
    part.unlink()
    with pytest.raises(ArchiveError, match="part-00000"):
        sf.slides.open_selection(tmp_path / "damaged")
    with pytest.raises(ArchiveError, match="file not found"):
        sf.slides.open_selection(tmp_path)


def test_features_that_are_not_finite(tmp_path):
    features = np.ones((10, 4), np.float32)
    features[7, 2] = np.nan
    np.save(tmp_path / "s1.npy", features)
    with pytest.raises(NonFiniteError, match="row 7"):
        sf.slides.select(sf.open({"uni": tmp_path}), clusters=2)
