"""The report's numbers: metrics and intervals, similarity of teachers, errors, the confounding check."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support, roc_auc_score

import shazam_fast as sf
from shazam_fast.reporting.report.confounding import Attribute, tell
from shazam_fast.reporting.report.evidence import Resampling, measure, sample
from shazam_fast.reporting.report.hardest import choose_hardest
from shazam_fast.reporting.report.redundancy import error_correlation, linear_cka, probe_teachers, rescued
from shazam_fast.scoring.metrics import compute_metrics


def draw(n=400, C=4, groups=40, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, n)
    logits = 2 * rng.normal(size=(n, C)) + 1.5 * np.eye(C)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.round(2).astype(np.float32), labels, rng.integers(0, groups, n)  # rounded: ties


def test_metrics_are_those_of_scikit_learn():
    probabilities, labels, groups = draw()
    found, draws = measure(probabilities, labels, groups, seed=0)
    expected = compute_metrics(probabilities, labels, tuple("abcd"))
    prediction = probabilities.argmax(axis=1)
    overall = {name: i.value for name, i in found.overall.items()}
    assert overall["balanced accuracy"] == pytest.approx(expected.balanced_accuracy)
    assert overall["weighted F1"] == pytest.approx(f1_score(labels, prediction, average="weighted"))
    assert overall["accuracy"] == pytest.approx(expected.accuracy)
    assert overall["AUROC"] == pytest.approx(expected.auroc)
    assert overall["calibration error"] == pytest.approx(expected.calibration_error)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, prediction)
    for c in range(4):
        values = {name: i.value for name, i in found.by_class[c].items()}
        auroc = roc_auc_score(labels == c, probabilities[:, c])
        assert values == pytest.approx(
            {"precision": precision[c], "recall": recall[c], "F1": f1[c], "AUROC": auroc}, abs=1e-9
        )
    assert (found.confusion == expected.confusion).all()
    assert draws.n_groups == 40
    for i in (*found.overall.values(), *found.by_class[0].values()):
        assert i.low < i.value + 0.05
        assert i.low < i.high


def test_every_draw_weighs_patches_by_their_group():
    probabilities, labels, groups = draw()
    draws = Resampling(groups, seed=0)
    found = draws.auroc(probabilities[:, 1].astype(float), labels == 1)
    for place in (0, 1, 77):
        weights = draws.weights[place][groups]
        expected = roc_auc_score(labels == 1, probabilities[:, 1], sample_weight=weights)
        assert found[place] == pytest.approx(expected)
    assert len(found) == draws.draws + 1


def test_intervals_are_wider_where_groups_resemble():
    rng = np.random.default_rng(0)
    of_group = rng.random(30) < 0.7  # whole groups are right or wrong
    groups = np.repeat(np.arange(30), 20)
    labels = np.tile([0, 1], 300)
    right = of_group[groups]
    prediction = np.where(right, labels, 1 - labels)
    probabilities = np.eye(2)[prediction] * 0.8 + 0.1
    by_group = measure(probabilities, labels, groups, 0)[0].overall["accuracy"]
    by_patch = measure(probabilities, labels, np.arange(600), 0)[0].overall["accuracy"]
    assert by_group.high - by_group.low > 3 * (by_patch.high - by_patch.low)


def test_no_interval_from_one_group():
    probabilities, labels, _ = draw()
    found, _ = measure(probabilities, labels, np.zeros(400, np.int64), 0)
    assert np.isnan(found.overall["accuracy"].low)
    assert not np.isnan(found.overall["accuracy"].value)


def test_cka_does_not_change_with_rotation_and_tells_unrelated_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 30))
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    rotation, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    unrelated = rng.normal(size=(200, 500))  # more columns than patches: the plain estimate would say 0.5 and more
    found = linear_cka([scaled, scaled @ rotation * 7 + 3, unrelated])
    assert found[0, 1] > 0.99
    assert abs(found[0, 2]) < 0.1
    plain = np.linalg.norm(scaled.T @ (unrelated - unrelated.mean(axis=0))) ** 2
    plain /= np.linalg.norm(scaled.T @ scaled) * np.linalg.norm(unrelated.T @ unrelated)
    assert plain > 0.3


def test_cka_is_the_plain_formula_for_many_patches():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 5))
    y = x @ rng.normal(size=(5, 4)) + rng.normal(size=(3000, 4))
    x, y = ((z - z.mean(axis=0)) / z.std(axis=0) for z in (x, y))
    plain = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert linear_cka([x, y])[0, 1] == pytest.approx(plain, abs=0.01)


def test_errors_of_teachers():
    wrong = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=bool)
    assert rescued(wrong)[:, 0].tolist() == [0, 0.5, 1]
    assert np.isnan(rescued(wrong)[0, 2])
    correlation = error_correlation(wrong)
    assert correlation[0, 1] == pytest.approx(0)
    assert np.isnan(correlation[0, 2])


def test_probes_are_fitted_on_train_and_judged_on_test(archive):
    found = probe_teachers(archive, seed=0)
    assert (found.rows == archive.split("test")).all()
    assert found.n_train == len(archive.split("train"))
    assert found.predicted.shape == (3, len(found.rows))
    assert 0 <= found.chosen < 3
    for wrong, accuracy in zip(found.wrong, found.accuracy, strict=True):
        recall = [1 - wrong[found.labels == c].mean() for c in range(3)]
        assert accuracy == pytest.approx(np.mean(recall))
        assert accuracy > 0.4


def planted(n=400, shift=0.0, seed=0):
    """Features of patches in 40 slides of 20 patients of 2 sites; patients differ, and sites by `shift`."""
    rng = np.random.default_rng(seed)
    slides = np.arange(n) % 40
    patients, classes = slides // 2, rng.integers(0, 2, n)
    sites = patients % 2
    fused = rng.normal(size=(n, 8)) + 2 * rng.normal(size=(20, 8))[patients] + shift * sites[:, None] + classes[:, None]
    return fused, slides, patients, sites, classes


def test_an_attribute_that_is_there_is_told():
    fused, slides, patients, sites, classes = planted(shift=4.0)
    assert tell(fused, Attribute("patient", patients, slides), classes, 0).found > 0.7
    site = tell(fused, Attribute("site", sites, patients), classes, 0)
    assert site.found > site.high
    assert site.p < 0.05
    assert (site.n_values, site.n_rows) == (2, 400)


def test_a_site_is_not_told_through_its_patients():
    fused, _, patients, sites, classes = planted()
    leaky = tell(fused, Attribute("site", sites), classes, 0)
    assert leaky.found > leaky.high  # each patient is known, and with it the site
    fair = [tell(planted(seed=seed)[0], Attribute("site", sites, patients), classes, 0) for seed in range(5)]
    assert np.median([one.p for one in fair]) > 0.05


@pytest.mark.parametrize("units", [None, np.arange(400) // 8])
def test_what_the_class_alone_tells_counts_as_chance(units):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 400)
    values = np.where(rng.random(400) < 0.9, classes, 1 - classes)  # goes along with the class
    fused = rng.normal(size=(400, 4)) + 4 * classes[:, None]
    found = tell(fused, Attribute("stain", values, units), classes, 0)
    assert found.found > 0.8
    assert found.chance > 0.8
    assert found.p > 0.01


def test_too_little_to_tell():
    fused, slides, *_, classes = planted()
    assert "fewer than two values" in tell(fused, Attribute("slide", np.zeros(400, np.int64)), classes, 0)
    assert "in two slides or patients" in tell(fused, Attribute("site", slides, slides), classes, 0)


def test_hardest_patches_are_spread_over_groups():
    loss = np.array([5.0, 4, 3, 2, 1, 0.5, -np.inf])
    assert choose_hardest(loss, None).tolist() == [0, 1, 2, 3, 4, 5]
    assert choose_hardest(loss, np.array([7, 7, 7, 7, 7, 8, 8])).tolist() == [0, 1, 2, 3, 5]


def test_samples_repeat():
    assert (sample(100, 10, 3) == sample(100, 10, 3)).all()
    assert len(set(sample(100, 10, 3).tolist())) == 10


def test_the_largest_splits_get_fewer_draws():
    assert Resampling(np.zeros(10, np.int64), 0).draws == 2000
    assert Resampling(np.arange(200_000) % 50, 0).draws == 200


def test_real_features(real_archive, tmp_path):
    result = sf.train(real_archive, epochs=3, preset="huncrc", device="cpu")
    page = sf.report(result, real_archive, tmp_path / "r.html", device="cpu").read_text()
    assert "gleason_mobilenet" in page
    assert "Which teacher is right where others fail" in page
