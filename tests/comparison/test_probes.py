import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from shazam_fast.comparison import probes, products
from shazam_fast.comparison.fold import Fold


@pytest.fixture
def fold(archive):
    return Fold(archive)


def test_a_probe_is_scikit_learns_on_standardised_features(fold, monkeypatch):
    monkeypatch.setattr(probes, "REGULARISATIONS", (0.1,))
    found = probes.fit_probe(fold, ["uni", "virchow"]).probabilities
    scaler = StandardScaler().fit(fold.features("train", ["uni", "virchow"]))
    model = LogisticRegression(C=0.1, max_iter=5000).fit(
        scaler.transform(fold.features("train", ["uni", "virchow"])), fold.labels("train")
    )
    expected = model.predict_proba(scaler.transform(fold.features("test", ["uni", "virchow"])))
    np.testing.assert_allclose(found["test"], expected, atol=5e-3)


def test_the_space_of_the_training_rows_changes_nothing():
    rng = np.random.default_rng(0)
    x = {part: rng.normal(size=(n, 90)) for part, n in (("train", 30), ("val", 9), ("test", 7))}
    y = np.arange(30) % 3
    spanned = probes._span(x)
    assert spanned["train"].shape == (30, 30)
    expected = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(x["train"], y).predict_proba(x["test"])
    found = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(spanned["train"], y).predict_proba(spanned["test"])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_log_product_is_a_normalised_geometric_mean():
    rng = np.random.default_rng(1)
    p = [rng.dirichlet(np.ones(4), size=6) for _ in range(3)]
    expected = np.prod(p, axis=0) ** (1 / 3)
    np.testing.assert_allclose(products.log_product(p), expected / expected.sum(axis=1, keepdims=True))
    assert np.isfinite(products.log_product([np.eye(2), np.eye(2)[::-1]])).all()  # certain, and contradicting


def test_out_of_fold_predictions_never_saw_their_group(archive):
    fold = Fold(archive)
    x = fold.features("train", ["uni"])
    memorised = products.out_of_fold(fold, "uni", 1.0, balanced=False)
    inside = probes.fit_probe(fold, ["uni"])
    assert memorised.shape == (len(x), 3)
    np.testing.assert_allclose(memorised.sum(axis=1), 1.0)
    model = probes.logistic_regression(1.0, False).fit(
        probes.probe_features(fold, ["uni"])["train"], fold.labels("train")
    )
    own = model.predict_proba(probes.probe_features(fold, ["uni"])["train"])
    right = own[np.arange(len(x)), fold.labels("train")].mean()
    held_out = memorised[np.arange(len(x)), fold.labels("train")].mean()
    assert held_out < right
    assert inside.score > 0


def test_a_gate_at_its_start_is_the_plain_product(fold, monkeypatch):
    monkeypatch.setattr(products, "GATE_STEPS", 0)
    fitted = products.single_probes(fold, balanced=True)
    found = products.gated_product(fold, fitted)["test"]
    plain = products.log_product([probe.probabilities["test"] for probe in fitted.values()])
    np.testing.assert_allclose(found, plain, atol=1e-12)
