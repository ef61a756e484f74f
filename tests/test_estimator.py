"""The student as a scikit-learn estimator."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import shazam_fast as sf

pd = pytest.importorskip("pandas")

DIMS = {"uni": 6, "gigapath": 9}
SMALL = {"dim": 16, "depth": 2, "epochs": 60, "random_state": 0, "device": "cpu"}
BEST = {"selection": "best", "schedule": "constant"}
QUICK = {**SMALL, "dim": 8, "depth": 1, "epochs": 3}


def planted(n=240, seed=0, gap=1.0):
    """Features [n, 15] of two teachers and labels [n] of two classes, of which every column says a little."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(["normal", "tumor"], n // 2))
    return rng.normal(size=(n, 15)) + gap * (y == "tumor")[:, None] * rng.uniform(0, 1, 15), y


def parts_of(X):
    return {"uni": X[:, :6], "gigapath": X[:, 6:]}


@pytest.fixture(scope="module")
def fitted():
    X, y = planted()
    return sf.ShazamClassifier(DIMS, **SMALL).fit(X, y)


@parametrize_with_checks([sf.ShazamClassifier(**QUICK).set_params(epochs=25, lr=0.01)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_about_as_good_as_logistic_regression():
    X, y = planted(600)
    train, test = slice(0, 400), slice(400, None)
    linear = LogisticRegression(max_iter=1000).fit(X[train], y[train]).score(X[test], y[test])
    found = sf.ShazamClassifier(DIMS, **SMALL).fit(X[train], y[train]).score(X[test], y[test])
    assert found > linear - 0.05
    assert found > 0.8


def test_one_array_a_list_and_a_mapping_give_the_same_student(fitted):
    X, y = planted()
    one = fitted.predict_proba(X)
    for given in (parts_of(X), dict(reversed(parts_of(X).items())), list(parts_of(X).values())):
        again = sf.ShazamClassifier(DIMS, **SMALL).fit(given, y)
        assert again.teachers_ == DIMS
        assert np.array_equal(again.predict_proba(X), one)
        assert np.array_equal(fitted.predict_proba(given), one)
    named = sf.ShazamClassifier(**QUICK).fit(parts_of(X), y)
    assert named.teachers_ == DIMS
    unnamed = sf.ShazamClassifier(**QUICK).fit(list(parts_of(X).values()), y)
    assert unnamed.teachers_ == {"teacher_0": 6, "teacher_1": 9}
    assert sf.ShazamClassifier(**QUICK).fit(X, y).teachers_ == {"teacher_0": 15}
    assert sf.ShazamClassifier([6, 9], **QUICK).fit(X, y).student_.config.teachers == {"teacher_0": 6, "teacher_1": 9}


def test_what_a_fitted_estimator_holds(fitted, tmp_path):
    X, _ = planted()
    assert fitted.classes_.tolist() == ["normal", "tumor"]
    assert fitted.n_features_in_ == 15
    assert [record["epoch"] for record in fitted.history_] == list(range(len(fitted.history_)))
    probabilities = fitted.predict_proba(X)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert np.array_equal(fitted.predict(X), fitted.classes_[probabilities.argmax(axis=1)])
    fitted.student_.save(tmp_path / "student")
    archive = sf.write_archive(tmp_path / "features", parts_of(X), dtype="float32")
    scores = sf.score(sf.load(tmp_path / "student"), archive, device="cpu")
    assert scores.classes == ("normal", "tumor")
    assert np.allclose(scores.probabilities, probabilities, atol=1e-5)
    assert fitted.student_.fold()


def test_names_of_columns():
    X, y = planted()
    table = pd.DataFrame(X, columns=[f"f{i}" for i in range(15)])
    model = sf.ShazamClassifier(DIMS, **QUICK).fit(table, y)
    assert model.feature_names_in_.tolist() == list(table.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(table[table.columns[::-1]])


def test_clone_and_pickle(fitted):
    X, _ = planted()
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copied.predict(X)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(X), fitted.predict_proba(X))


def test_grids_pipelines_and_calibration():
    X, y = planted(gap=3.0)
    model = sf.ShazamClassifier(DIMS, **{**QUICK, "epochs": 20, "lr": 0.01})
    search = GridSearchCV(model, {"lam": [0.0, 0.5], "dim": [8, 16]}, cv=2, error_score="raise").fit(X, y)
    assert set(search.best_params_) == {"lam", "dim"}
    assert search.best_estimator_.student_.config.dim == search.best_params_["dim"]
    assert make_pipeline(StandardScaler(), model).fit(X, y).score(X, y) > 0.7
    calibrated = CalibratedClassifierCV(model, cv=2).fit(X, y)
    assert calibrated.score(X, y) > 0.7
    groups = np.arange(len(y)) // 8
    assert cross_val_score(model, X, y, cv=GroupKFold(3), groups=groups).min() > 0.6


def test_arguments_reach_the_training():
    X, y = planted()
    model = sf.ShazamClassifier(
        DIMS, **{**QUICK, "lam": 0.25, "batch_size": 10_000}, options={**BEST, "targets": "detached"}
    )
    job = model.fit(X, y).student_.training_record["job"]
    assert (job["lam"], job["targets"], job["epochs"], job["dim"]) == (0.25, "detached", 3, 8)
    assert job["batch_size"] == 204, "all training rows are one batch"
    weighted = sf.ShazamClassifier(DIMS, **QUICK, options={"teacher_heads": 0.5}, class_weight="balanced").fit(X, y)
    assert weighted.history_[-1]["teacher_heads"]
    preset = sf.ShazamClassifier(DIMS, preset="authors_script", **QUICK).fit(X, y)
    assert preset.student_.training_record["job"]["targets"] == "frozen"
    assert preset.student_.config.block == "residual"


def test_the_best_validated_epoch_is_taken():
    X, y = planted(gap=0.3)
    options = {"selection": "best", "schedule": "constant"}  # a cycle would depend on the number of epochs
    model = sf.ShazamClassifier(DIMS, **{**SMALL, "lr": 0.03}, options=options).fit(X, y)
    scores = [record["val_score"] for record in model.history_]
    assert scores.index(max(scores)) < len(scores) - 1
    shorter = {**SMALL, "epochs": scores.index(max(scores)) + 1, "lr": 0.03}
    fixed = sf.ShazamClassifier(DIMS, **shorter, options=options).fit(X, y)
    assert np.array_equal(model.predict_proba(X), fixed.predict_proba(X))


def test_without_validation_all_rows_train_for_all_epochs(caplog):
    X, y = planted()
    model = sf.ShazamClassifier(DIMS, **QUICK, validation_fraction=None, patience=1).fit(X, y)
    assert len(model.history_) == 3
    assert "val_score" not in model.history_[0]
    assert not caplog.text
    last = sf.ShazamClassifier(DIMS, **QUICK, options={"selection": "last"}).fit(X, y)
    assert np.array_equal(last.predict_proba(X), model.predict_proba(X))
    assert not caplog.text
    few = sf.ShazamClassifier(DIMS, **QUICK, options=BEST).fit(X[:8], y[:8])
    assert "val_score" not in few.history_[0]
    assert "8 rows are too few to hold out 15% with 5 of every class: all of them train" in caplog.text


def test_features_train_as_float32():
    """What float16 cannot hold: differences of 1 in 4,096, and values above 65,504."""
    X, y = planted(gap=3.0)
    shifted = (X + 4096.0).astype(np.float32)
    shifted[:, 0] *= 100.0
    model = sf.ShazamClassifier(DIMS, **{**SMALL, "lr": 0.01, "validation_fraction": None}).fit(shifted, y)
    mean = model.student_.feature_mean.numpy()
    assert np.allclose(mean, shifted.astype(np.float64).mean(axis=0), rtol=1e-7)
    assert model.score(shifted, y) > 0.95


def test_groups_stay_whole(monkeypatch):
    """Rows of a patient are copies of each other: validation on copies would be perfect."""
    seen = {}
    from shazam_fast import estimator

    train_arrays = estimator.train_arrays
    monkeypatch.setattr(estimator, "train_arrays", lambda *a: seen.update(splits=a[2]) or train_arrays(*a))
    X, y = planted()
    patients = np.array([f"p{i // 6}" for i in range(240)], dtype=object)
    patients[:6] = None  # unknown: rows alone
    sf.ShazamClassifier(DIMS, **QUICK, options=BEST).fit(X, y, groups=patients)
    assert 20 < (seen["splits"] == 1).sum() < 52
    for patient in set(patients[6:]):
        assert len(set(seen["splits"][patients == patient])) == 1
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        sf.ShazamClassifier(DIMS, **QUICK).fit(X, y, groups=patients[:5])


def recalls(model, X, y):
    predicted = model.predict(X)
    return [(predicted[y == name] == name).mean() for name in model.classes_]


def test_class_weights():
    X, y = planted(400, gap=0.4)
    keep = np.concatenate([np.flatnonzero(y == "normal"), np.flatnonzero(y == "tumor")[:30]])
    X, y = X[keep], y[keep]
    fresh, labels = planted(400, seed=1, gap=0.4)
    plain, balanced, extreme, other = (
        recalls(sf.ShazamClassifier(DIMS, **SMALL, preset="huncrc", class_weight=weight).fit(X, y), fresh, labels)
        for weight in (None, "balanced", {"normal": 1e-4, "tumor": 1e3}, {"normal": 10.0})
    )
    assert plain[1] < balanced[1] < extreme[1] == 1.0
    assert other[0] >= plain[0]


def test_the_loss_is_weighted_by_class():
    """Weights 2 and 1 in the loss are a class given twice: the same step, within float32."""
    from shazam_fast.estimator import train_arrays

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 2
    config = sf.TrainConfig.from_preset(
        "huncrc", epochs=4, batch_size=45, dim=8, depth=1, lam=0.0, device="cpu", standardize=False, teacher_heads=1.0
    )
    twice = np.concatenate([np.arange(30), np.flatnonzero(y == 0)])
    found = []
    for rows, weights in ((np.arange(30), np.array([4 / 3, 2 / 3])), (twice, None)):
        splits = np.zeros(len(rows), dtype=np.uint8)
        result = train_arrays({"a": x[rows]}, y[rows], splits, ["x", "y"], config, weights)
        found.append((result.history[-1]["loss"], result.student.head[3].weight.detach().numpy()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert np.allclose(found[0][1], found[1][1], atol=1e-5)


@pytest.mark.parametrize("labels", [[3, 5], [-1.0, 2.0], [True, False], ["", "NA"], ["none", "nan"]])
def test_labels_of_any_kind(labels):
    X, y = planted()
    y = np.where(y == "tumor", labels[1], labels[0])
    model = sf.ShazamClassifier(DIMS, **QUICK).fit(X, y)
    assert set(model.classes_.tolist()) == set(labels)
    assert set(model.predict(X).tolist()) <= set(labels)
    assert model.predict(X).dtype == y.dtype


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda X: X[:, :10], r"15 columns expected for teacher_dims \{'uni': 6, 'gigapath': 9\}, found 10"),
        (lambda X: [X], r"one array for each of the teachers \['uni', 'gigapath'\] expected, found 1 arrays"),
        (lambda X: [X[:, :9], X[:, 9:]], r"columns \{'uni': 6, 'gigapath': 9\} expected, found \{'uni': 9"),
        (lambda X: {"uni": X[:, :6]}, r"arrays of the teachers \['uni', 'gigapath'\] expected, found \['uni'\]"),
        (lambda X: {"uni": X[:, :6], "gigapath": X[:9, 6:]}, r"as many rows of each teacher expected, found .*: 9\}"),
    ],
)
def test_columns_that_do_not_fit(fitted, given, message):
    X, y = planted()
    with pytest.raises(sf.MismatchError, match=message) as raised:
        sf.ShazamClassifier(DIMS, **QUICK).fit(given(X), y)
    assert isinstance(raised.value, ValueError)
    with pytest.raises(ValueError):  # noqa: PT011 - for one array with scikit-learn's message
        fitted.predict(given(X))


def test_values_that_cannot_be_used():
    X, y = planted()
    model = sf.ShazamClassifier(DIMS, **QUICK)
    bad = X.copy()
    bad[3, 7] = np.nan
    with pytest.raises(ValueError, match=r"X\['gigapath'\] contains NaN"):
        model.fit(parts_of(bad), y)
    with pytest.raises(ValueError, match="X contains NaN"):
        model.fit(bad, y)
    with pytest.raises(ValueError, match="too large for dtype"):
        model.fit(X * 1e39, y)
    with pytest.raises(ValueError, match="two or more classes expected, found one class, 'normal'"):
        model.fit(X[y == "normal"], y[y == "normal"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": -1.0}, "lam: a number at least 0 expected"),
        ({"options": {"speed": 1}}, "fields of TrainConfig expected: .*speed"),
        ({"options": {"huber": "other"}}, "huber: one of"),
        ({"preset": "best"}, "no preset is called 'best'"),
        ({"validation_fraction": 0.0}, "validation_fraction: a number more than 0 and less than 0.5 expected"),
        ({"validation_fraction": 0.9}, "more than 0 and less than 0.5 expected"),
        ({"teacher_dims": [6, 9.5]}, "dim of 'teacher_1'"),
        ({"class_weight": {"normal": -1.0}}, "weights of 0 or more expected"),
        ({"class_weight": {"normal": 0.0, "tumor": 0.0}}, "not all 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    X, y = planted()
    with pytest.raises(sf.ShazamError, match=message):
        sf.ShazamClassifier(**{"teacher_dims": DIMS, **QUICK, **arguments}).fit(X, y)


def test_importing_the_package_does_not_import_scikit_learn():
    script = "import sys, shazam_fast; shazam_fast.TrainConfig; print('sklearn' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == (
        "False False\n"
    )
