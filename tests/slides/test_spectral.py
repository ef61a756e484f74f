"""Multi-view spectral clustering against dense float64 definitions and mvlearn."""

import numpy as np
import pytest
import torch
from cohorts import make_cohort
from sklearn.metrics import adjusted_rand_score

import shazam_fast as sf
from shazam_fast.errors import MismatchError, ShazamError
from shazam_fast.slides.selecting import spectral
from shazam_fast.slides.selecting.clustering import Views, cluster
from shazam_fast.slides.selecting.spectral import cluster_spectral, leading_vectors, neighbour_graph, normalised

DIMS = {"conch": 48, "virchow2": 160, "gigapath": 96}


def planted(n=1200, types=12, seed=0, seen="in part"):
    """Types that every view tells apart, or that all views together do; of very different scales."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, types, n)
    blocks = []
    for view, dim in enumerate(DIMS.values()):
        by_view = kinds if seen == "by all" else (kinds % 4, kinds // 4, kinds % 6)[view]
        centres = rng.normal(size=(types, dim)) * 2
        blocks.append((centres[by_view] + rng.normal(size=(n, dim))) * (1.0, 100.0, 0.01)[view])
    return torch.from_numpy(np.concatenate(blocks, axis=1).astype(np.float32)), kinds


def balanced(x, seed=0):
    views = Views(DIMS, seed)
    return views.balance(views.project(x)), views.widths


@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_are_found(seed):
    x, kinds = planted(seed=seed)
    points, widths = balanced(x, seed)
    assert adjusted_rand_score(kinds, cluster_spectral(points, widths, 12, seed)) > 0.95
    alone = cluster_spectral(points[:, : widths[0]], widths[:1], 12, seed)
    assert adjusted_rand_score(kinds, alone) < 0.6


def cut_kept(points, widths, found):
    """Sum over clusters of the part of their weight that stays within, which spectral clustering maximises."""
    joint = normalised(sum(normalised(neighbour_graph(view)) for view in points.split(widths, dim=1))).toarray()
    total = 0.0
    for code in np.unique(found):
        own = found == code
        total += joint[np.ix_(own, own)].sum() / joint[own].sum()
    return total


def by_mvlearn(points, widths, count):
    mvlearn = pytest.importorskip("mvlearn.cluster")
    model = mvlearn.MultiviewSpectralClustering(
        count, random_state=0, affinity="nearest_neighbors", n_init=20, max_iter=2
    )
    return model.fit_predict([view.double().numpy() for view in points.split(widths, dim=1)])


def test_agreement_with_mvlearn():
    """Where every view sees all types both find them; where each sees a part, ours does alone, with the smaller cut."""
    x, kinds = planted(n=400, types=8, seen="by all")
    points, widths = balanced(x)
    assert adjusted_rand_score(by_mvlearn(points, widths, 8), cluster_spectral(points, widths, 8, 0)) > 0.95
    x, kinds = planted(n=400)
    points, widths = balanced(x)
    mine, theirs = cluster_spectral(points, widths, 12, 0), by_mvlearn(points, widths, 12)
    assert adjusted_rand_score(kinds, mine) > 0.85
    assert adjusted_rand_score(kinds, theirs) < 0.7
    assert cut_kept(points, widths, mine) > cut_kept(points, widths, theirs)


def test_the_objective_on_real_features(real_archive):
    """On real features of several networks the cut is no worse than mvlearn's."""
    features = torch.from_numpy(real_archive.gather(np.arange(len(real_archive))[::2]))
    views = Views(real_archive.teachers, 0)
    points = views.balance(views.project(features))
    mine = cluster_spectral(points, views.widths, 10, 0)
    assert cut_kept(points, views.widths, mine) >= cut_kept(points, views.widths, by_mvlearn(points, views.widths, 10))


def test_kmeans_agrees_with_mvlearns_of_two_views():
    """mvlearn's multi-view k-means takes two views, and starts from one random draw."""
    mvlearn = pytest.importorskip("mvlearn.cluster")
    x, kinds = planted(n=400, types=8, seen="by all")
    points, widths = balanced(x)
    widths = widths[:2]
    points = points[:, : sum(widths)]
    blocks = [view.double().numpy() for view in points.split(widths, dim=1)]
    theirs = mvlearn.MultiviewKMeans(8, random_state=0, n_init=20).fit_predict(blocks)
    mine = cluster(points, 8, 0)
    assert adjusted_rand_score(kinds, mine) > 0.95
    assert adjusted_rand_score(theirs, mine) > adjusted_rand_score(theirs, kinds) - 0.05


def test_the_graph_is_that_of_nearest_neighbours():
    points = torch.randn(40, 3)
    distances = torch.cdist(points.double(), points.double()).numpy()
    wanted = np.zeros((40, 40))
    for i, row in enumerate(distances):
        for j in row.argsort()[1 : spectral.NEIGHBOURS + 1]:
            wanted[i, j] += 0.5
            wanted[j, i] += 0.5
    assert np.array_equal(neighbour_graph(points).toarray(), wanted)


@pytest.mark.parametrize("m", [1, 7, 16, 100, 333])
def test_the_nearest_are_found_among_any_number(m):
    points, others = torch.randn(30, 3), torch.randn(m, 3)
    count = min(m, 11)
    found = spectral.nearest(points, others, count)
    wanted = torch.cdist(points.double(), others.double()).topk(count, largest=False).indices
    assert torch.equal(found.sort(dim=1).values, wanted.sort(dim=1).values)


def test_both_solvers_give_the_same_space(monkeypatch):
    graph = spectral.normalised(neighbour_graph(torch.randn(300, 5)))
    first = np.random.default_rng(0).standard_normal(300)
    values, dense = leading_vectors(graph, 6, first)
    monkeypatch.setattr(spectral, "DENSE_ROWS", 0)
    found, sparse = leading_vectors(graph, 6, first)
    assert np.allclose(found, values, rtol=spectral.TOLERANCE)
    assert np.allclose(np.linalg.svd(dense.T @ sparse)[1], 1, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 8, 30])
def test_few_points(n):
    points = torch.randn(n, 6)
    found = cluster_spectral(points, [3, 3], 6, 0)
    assert len(found) == n
    assert len(np.unique(found)) <= 6


def test_equal_points():
    assert set(cluster_spectral(torch.zeros(50, 4), [2, 2], 3, 0).tolist()) <= {0, 1, 2}


def test_more_points_than_are_clustered(monkeypatch):
    monkeypatch.setattr(spectral, "FIT_ROWS", 400)
    x, kinds = planted()
    points, widths = balanced(x)
    assert adjusted_rand_score(kinds, cluster_spectral(points, widths, 12, 0)) > 0.9


def test_the_same_seed_gives_the_same_clusters(monkeypatch):
    monkeypatch.setattr(spectral, "DENSE_ROWS", 0)
    points, widths = balanced(planted(n=300)[0])
    first, again = (cluster_spectral(points, widths, 12, 3) for _ in range(2))
    assert np.array_equal(first, again)


def test_selecting_by_it(tmp_path):
    archive, _, _ = make_cohort(tmp_path / "a", slides=6, sizes=(3, 90))
    chosen = sf.slides.select(archive, tmp_path / "chosen", clusters=5, per_cluster=2, method="spectral")
    for name, (bag,) in chosen.rows.items():
        own = np.flatnonzero(archive.slide_index == archive.slides.index(name))
        assert set(bag.tolist()) <= set(own.tolist())
        assert len(bag) == len(chosen.clusters[name][0])
    with pytest.raises(MismatchError, match="other method"):
        sf.slides.select(archive, tmp_path / "chosen", clusters=5, per_cluster=2)
    with pytest.raises(ShazamError, match="method: one of kmeans, spectral"):
        sf.slides.select(archive, method="agglomerative")
