import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from synthetic import make_patches

import shazam_fast as sf
from shazam_fast.comparison import probes, products
from shazam_fast.comparison.fold import Fold


@pytest.fixture
def fold(archive):
    return Fold(archive)


def test_a_probe_is_scikit_learns_on_standardised_features(fold, monkeypatch):
    monkeypatch.setattr(probes, "REGULARISATIONS", (0.1,))
    found = probes.fit_probe(fold, ["uni", "virchow"]).probabilities
    assert set(found) == {"val", "test"}
    scaler = StandardScaler().fit(fold.features("train", ["uni", "virchow"]))
    model = LogisticRegression(C=0.1, max_iter=5000).fit(
        scaler.transform(fold.features("train", ["uni", "virchow"])), fold.labels("train")
    )
    expected = model.predict_proba(scaler.transform(fold.features("test", ["uni", "virchow"])))
    np.testing.assert_allclose(found["test"], expected, atol=5e-3)


@pytest.fixture
def wide(tmp_path):
    """60 patches with more columns than training rows."""
    patches = make_patches(60, {"uni": 70, "virchow": 50})
    return Fold(sf.open(sf.write_archive(tmp_path / "wide", **patches)))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
def test_fitting_in_the_span_of_the_training_rows_changes_nothing(wide, monkeypatch, scaled, balanced):
    monkeypatch.setattr(probes, "REGULARISATIONS", (0.1, 1.0))
    spanned = probes.fit_probe(wide, wide.teachers, balanced=balanced, scaled=scaled)
    assert probes.make_space(wide, wide.teachers, scaled).train.shape == (30, 30)
    monkeypatch.setattr(probes, "KERNEL_ROWS", 0)
    plain = probes.fit_probe(wide, wide.teachers, balanced=balanced, scaled=scaled)
    assert spanned.C == plain.C
    np.testing.assert_allclose(spanned.predict("test"), plain.predict("test"), atol=2e-3)
    scaler = StandardScaler().fit(wide.features("train"))
    x = {part: scaler.transform(wide.features(part)) / (np.sqrt([70] * 70 + [50] * 50) if scaled else 1)
         for part in ("train", "test")}  # fmt: skip
    model = LogisticRegression(C=spanned.C, tol=1e-8, max_iter=5000, class_weight="balanced" if balanced else None).fit(
        x["train"], wide.labels("train")
    )
    np.testing.assert_allclose(spanned.predict("test"), model.predict_proba(x["test"]), atol=2e-3)


def test_two_classes_and_constant_columns(tmp_path):
    patches = make_patches(80, {"uni": 50}, ("a", "b"))
    patches["features"]["uni"][:, 3] = 7.5
    fold = Fold(sf.open(sf.write_archive(tmp_path / "two", **patches)))
    probe = probes.fit_probe(fold, ["uni"])
    assert np.isfinite(probe.weight).all()
    np.testing.assert_allclose(probe.predict("test").sum(axis=1), 1.0)
    scaler = StandardScaler().fit(fold.features("train"))
    model = LogisticRegression(C=probe.C, tol=1e-8).fit(scaler.transform(fold.features("train")), fold.labels("train"))
    np.testing.assert_allclose(
        probe.predict("test"), model.predict_proba(scaler.transform(fold.features("test"))), atol=2e-3
    )


def test_a_neighbour_at_no_distance_leaves_no_weight_to_others():
    assert products.vote(np.array([[0.0, 0.5]]), np.array([[0, 1]]), 2).tolist() == [[1.0, 0.0]]
    np.testing.assert_allclose(products.vote(np.array([[0.25, 0.5]]), np.array([[0, 1]]), 2), [[2 / 3, 1 / 3]])


def test_neighbours_vote_as_scikit_learns_do(fold):
    from sklearn.neighbors import KNeighborsClassifier

    x = probes.standardised(fold, fold.teachers, scaled=True)
    x["test"][0] = x["train"][0]  # at distance 0
    model = KNeighborsClassifier(7, metric="cosine", weights="distance", algorithm="brute")
    model.fit(x["train"], fold.labels("train"))
    distance, near = model.kneighbors(x["test"])
    distance[0, 0] = 0.0
    expected = model.predict_proba(x["test"])
    np.testing.assert_allclose(products.vote(distance, fold.labels("train")[near], 3)[1:], expected[1:])
    assert products.vote(distance, fold.labels("train")[near], 3)[0].max() == 1
    predict = products.nearest_neighbours(fold, fold.teachers)
    models = [KNeighborsClassifier(k, metric="cosine", weights="distance") for k in products.NEIGHBOURS]
    best = max(
        (model.fit(x["train"], fold.labels("train")) for model in models),
        key=lambda model: probes.validation_score(model.predict_proba(x["val"]), fold.labels("val")),
    )
    np.testing.assert_allclose(predict("val"), best.predict_proba(x["val"]), atol=1e-4)


def test_features_that_are_not_finite_are_named(tmp_path, patches):
    patches["features"]["virchow"][20, 3] = np.inf
    np.save(tmp_path / "virchow.npy", patches["features"]["virchow"])
    given = {name: patches[name] for name in ("labels", "splits")}
    fold = Fold(sf.open({"virchow": tmp_path / "virchow.npy"}, **given))
    with pytest.raises(sf.NonFiniteError, match=r"(?s)virchow.*20"):
        fold.features("test")


def test_a_log_product_is_a_normalised_geometric_mean():
    rng = np.random.default_rng(1)
    p = [rng.dirichlet(np.ones(4), size=6) for _ in range(3)]
    expected = np.prod(p, axis=0) ** (1 / 3)
    np.testing.assert_allclose(products.log_product(p), expected / expected.sum(axis=1, keepdims=True))
    assert np.isfinite(products.log_product([np.eye(2), np.eye(2)[::-1]])).all()  # certain, and contradicting


def test_out_of_fold_predictions_never_saw_their_group(fold):
    """Predictions for a group do not change when its labels do."""
    first = products.out_of_fold(fold, "uni", 1.0, balanced=False)
    np.testing.assert_allclose(first.sum(axis=1), 1.0)
    x, y = probes.make_space(fold, ["uni"]).train, fold.labels("train")
    own = probes.logistic_regression(1.0, False).fit(x, y).predict_proba(x)
    assert first[np.arange(len(y)), y].mean() < own[np.arange(len(y)), y].mean()
    groups = fold.groups("train")
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=fold.seed)
    inside, outside = next(iter(splitter.split(x, y, groups)))
    assert not set(groups[inside]) & set(groups[outside])
    model = probes.logistic_regression(1.0, False).fit(x[inside], y[inside])
    np.testing.assert_allclose(first[outside], model.predict_proba(x[outside]))


def test_out_of_fold_predictions_need_two_groups(tmp_path, patches):
    groups = np.repeat(["a", "b", "c"], [150, 75, 75])
    archive = sf.open(sf.write_archive(tmp_path / "one", **{**patches, "groups": groups, "slides": groups}))
    with pytest.raises(sf.MismatchError, match=r"two groups .* found 1 and"):
        products.out_of_fold(Fold(archive), "uni", 1.0, balanced=True)


def test_a_gate_at_its_start_is_the_plain_product(fold, monkeypatch):
    monkeypatch.setattr(products, "GATE_STEPS", 0)
    fitted = products.single_probes(fold, balanced=True)
    inner = [products.out_of_fold(fold, name, probe.C, True) for name, probe in fitted.items()]
    found = products.gated_product(fold, fitted, inner)("test")
    plain = products.log_product([probe.predict("test") for probe in fitted.values()])
    np.testing.assert_allclose(found, plain, atol=1e-12)


def test_the_gate_reads_what_its_paper_says():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), size=(5, 2))  # [n, N, C]
    raw, mean, scale = products._gate_features([p[:, 0], p[:, 1]])
    f = raw.numpy() * scale + mean
    for n in range(5):
        entropies = [-sum(q * np.log(q) for q in p[n, t]) for t in range(2)]
        pooled = p[n].mean(axis=0)
        expected = [p[n, t].max() for t in range(2)]
        expected += [np.sort(p[n, t])[-1] - np.sort(p[n, t])[-2] for t in range(2)]
        expected += [*entropies, np.mean(entropies), -sum(pooled * np.log(pooled)) - np.mean(entropies)]
        np.testing.assert_allclose(f[n], expected)


def test_the_gates_penalty_holds_the_correlation_of_errors():
    p = [np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([[0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])]
    y = np.array([0, 1, 1])
    errors = [[0.1, 0.6, 0.2], [0.2, 0.3, 0.4]]
    np.testing.assert_allclose(products.error_correlation(p, y), np.corrcoef(errors))
    assert products.error_correlation([p[0], np.full((3, 2), 0.5)], y)[0, 1] == 0


def test_stacking_is_a_regression_on_log_probabilities(fold):
    fitted = products.single_probes(fold, balanced=False)
    inner = [products.out_of_fold(fold, name, probe.C, False) for name, probe in fitted.items()]
    model = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-8, max_iter=5000)
    model.fit(np.log(np.clip(np.hstack(inner), 1e-12, None)), fold.labels("train"))
    outer = np.log(np.hstack([probe.predict("test") for probe in fitted.values()]))
    np.testing.assert_allclose(products.stacked(fold, fitted, inner)("test"), model.predict_proba(outer), atol=5e-3)
