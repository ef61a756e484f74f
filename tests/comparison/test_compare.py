from itertools import pairwise

import numpy as np
import pytest
import torch

import shazam_fast as sf
from shazam_fast.comparison import methods, networks
from shazam_fast.comparison.compare import compare
from shazam_fast.comparison.fold import Fold
from shazam_fast.comparison.methods import METHODS, Method
from shazam_fast.comparison.networks import Budget, FusionNetwork, Mamba, MixtureOfExperts
from shazam_fast.comparison.probes import validation_score

QUICK = ["best_single", "best_single_balanced", "lr_concat_balanced", "logit_product", "stacking", "knn"]


def test_fast_methods_on_repeated_splits(archive):
    found = compare(archive, QUICK, repeats=3, val=0.25, test=0.25)
    assert set(found.balanced_accuracy) == set(QUICK)
    assert len(found.cells) == 18
    for name in QUICK:
        i = found.balanced_accuracy[name]
        assert 1 / 3 < i.low <= i.value <= i.high <= 1
        assert i.value == pytest.approx(found.mean(name, "balanced_accuracy"))
    assert set(found.against["lr_concat_balanced"]) == set(QUICK) - {"lr_concat_balanced"}
    assert "best single teacher" in found.conclusion()
    assert found.to_dict()["methods"]["knn"]["auroc"] > 0.5


def test_the_same_seed_gives_the_same_numbers(archive):
    first, again = (compare(archive, ["best_single_balanced", "stacking", "sum"], repeats=2) for _ in range(2))
    assert first.balanced_accuracy == again.balanced_accuracy
    assert first.against == again.against


def test_the_archives_own_splits(archive):
    found = compare(archive, ["lr_concat", "best_single"], repeats=1, own_splits=True)
    assert found.cells[0].metrics.n_rows == len(archive.split("test"))


@pytest.mark.parametrize("fusion", [networks.Sum, networks.Concat, MixtureOfExperts, Mamba])
@pytest.mark.parametrize("N", [1, 3])
def test_every_fusion_learns(archive, fusion, N):
    teachers = list(archive.teachers)[:N]
    found = networks.fit_network(Fold(archive), teachers, fusion, Budget(epochs=15, dim=16))
    p = found.predict("test")
    assert (p.argmax(axis=1) == Fold(archive).labels("test")).mean() > 0.5
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert found.score == pytest.approx(validation_score(found.predict("val"), Fold(archive).labels("val")))


def test_a_mixture_of_experts_against_its_formula():
    torch.manual_seed(0)
    model, tokens = MixtureOfExperts(3, 4).double(), torch.randn(5, 3, 4, dtype=torch.float64)
    gate = torch.softmax(model.gate(tokens.reshape(5, 12)), dim=1)
    expected = sum(gate[:, i, None] * torch.nn.functional.layer_norm(tokens[:, i], (4,)) for i in range(3))
    torch.testing.assert_close(model(tokens), expected)
    with torch.no_grad():
        model.gate[2].bias.copy_(torch.tensor([30.0, 0.0, 0.0]))
    one_sided = torch.nn.functional.layer_norm(tokens[:, 0], (4,))
    torch.testing.assert_close(model(tokens), one_sided, atol=1e-6, rtol=1e-6)  # the gate changes the direction


def test_sum_and_concat_against_their_formulas():
    tokens = torch.randn(5, 3, 4)
    torch.testing.assert_close(networks.Sum(3, 4)(tokens), tokens[:, 0] + tokens[:, 1] + tokens[:, 2])
    torch.testing.assert_close(networks.Concat(3, 4)(tokens), torch.cat(list(tokens.unbind(1)), dim=1))


def test_mamba_against_its_recurrence():
    torch.manual_seed(0)
    model, tokens = Mamba(3, 4).double(), torch.randn(2, 3, 4, dtype=torch.float64)
    x, gate = model.enter(model.norm(tokens)).chunk(2, dim=-1)
    selected = model.select(x)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for b in range(2):
        for d in range(4):
            h, outputs = torch.zeros(networks.STATE, dtype=torch.float64), []
            for i in range(3):
                B, C = selected[b, i, : networks.STATE], selected[b, i, networks.STATE : 2 * networks.STATE]
                delta = torch.nn.functional.softplus(selected[b, i, -1] + model.delta_bias[d])
                h = torch.exp(-delta * model.log_decay[d].exp()) * h + delta * B * x[b, i, d]
                outputs.append((h @ C + x[b, i, d]) * torch.nn.functional.silu(gate[b, i, d]))
            expected[b, d] = torch.stack(outputs).mean()
    found = model(tokens)
    linear = model.leave.weight
    torch.testing.assert_close(found, tokens.mean(dim=1) + expected @ linear.T + model.leave.bias)


def test_a_network_ends_as_the_student_does(archive):
    network = FusionNetwork([3, 4], 2, 8, networks.Concat)
    assert [type(layer).__name__ for layer in network.head] == ["Linear", "ReLU", "LayerNorm", "Linear"]
    assert network(torch.randn(5, 7)).shape == (5, 2)


def test_a_method_that_fails_does_not_stop_the_others(archive, monkeypatch):
    def fail(bench):
        raise sf.ShazamError("needs luck")

    monkeypatch.setattr(methods, "METHODS", {**METHODS, "knn": Method(fail)})
    monkeypatch.setattr("shazam_fast.comparison.studies.METHODS", methods.METHODS)
    found = compare(archive, ["knn", "best_single_balanced"], repeats=1)
    assert found.failed == {"knn": "needs luck"}
    assert set(found.balanced_accuracy) == {"best_single_balanced"}
    assert np.isnan(found.mean("knn", "accuracy"))
    with pytest.raises(sf.MismatchError, match="needs luck"):
        compare(archive, ["knn"], repeats=1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("shazam_levels", "features of three levels of every teacher"), ("finetuned_teacher", "give images=")],
)
def test_a_method_that_needs_what_the_archive_lacks_says_so(archive, name, reason):
    found = compare(archive, [name, "best_single_balanced"], repeats=1)
    assert reason in found.failed[name]
    assert set(found.balanced_accuracy) == {"best_single_balanced"}
    assert name not in methods.choose_methods(None, archive, None)


def test_seeds_repeat_methods_with_randomness_alone(archive):
    found = compare(archive, ["sum", "lr_concat"], repeats=2, seeds=3)
    counted = [(cell.repeat, cell.seed, cell.method) for cell in found.cells]
    assert counted == [(r, s, m) for r in range(2) for m, n in (("sum", 3), ("lr_concat", 1)) for s in range(n)]
    p = [cell.probabilities for cell in found.cells if cell.method == "sum"]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in pairwise(p))
    assert found.balanced_accuracy["sum"].value == pytest.approx(found.mean("sum", "balanced_accuracy"))


def test_fitting_and_scoring_are_timed_apart(archive, monkeypatch):
    clock = iter(np.arange(1000) * 1.0)
    monkeypatch.setattr("shazam_fast.comparison.fold.time.perf_counter", lambda: next(clock))
    fold = Fold(archive)

    def shared():
        return fold.shared.get("a", lambda: fold.shared.get("b", lambda: 1))

    assert fold.shared.measure(shared) == (1, 5.0)  # three works, each of one tick, and the two between
    assert fold.shared.measure(shared)[1] == 1 + 2 + 1  # its own tick, those of a without b, that of b
    assert fold.shared.measure(lambda: 2) == (2, 1.0)


def test_the_result_as_tables_and_words(archive):
    found = compare(archive, ["best_single_balanced", "knn"], repeats=2)
    frame = found.to_pandas()
    assert list(frame["method"]) == ["best_single_balanced", "knn"] * 2
    assert frame["accuracy"].between(0, 1).all()
    assert repr(found).startswith("Comparison(methods: 2 on 2 splits of 300 patches, tested on")
    assert found.conclusion() in repr(found)
    assert "<td>knn</td>" in found._repr_html_()
    record = found.to_dict()
    assert record["methods"]["knn"]["teachers"] == [[list(archive.teachers), 2]]
    assert len(record["methods"]["best_single_balanced"]["teachers"][0][0]) == 1
    assert record["methods"]["knn"]["gflops"] == pytest.approx(123.1 + 123.1 + 334.8)


def test_misuse(archive, tmp_path, patches):
    with pytest.raises(sf.ShazamError, match=r"methods: .* found knm"):
        compare(archive, ["knm"])
    with pytest.raises(sf.ShazamError, match="repeats: a whole number from 1"):
        compare(archive, ["knn"], repeats=0)
    bare = sf.write_archive(tmp_path / "bare", patches["features"])
    with pytest.raises(sf.MismatchError):
        compare(bare, ["knn"])
    one = sf.open(sf.write_archive(tmp_path / "one", {"uni": patches["features"]["uni"]}, labels=patches["labels"]))
    found = compare(one, ["best_single_balanced", "lr_concat_balanced", "logit_product_gated"], repeats=1)
    assert found.teachers == ("uni",)
    assert "one teacher only (uni), so nothing is fused" in found.conclusion()
    with pytest.raises(sf.ShazamError, match="found the text 'knn'"):
        compare(archive, "knn")
    with pytest.raises(sf.ShazamError, match="seeds: a whole number from 1"):
        compare(archive, ["knn"], seeds=0)
    with pytest.raises(sf.ShazamError, match=r"repeats: 3 random splits, or own_splits"):
        compare(archive, ["knn"], repeats=3, own_splits=True)


def test_students_are_methods_too(archive, monkeypatch):
    monkeypatch.setattr(methods, "train", lambda archive, **given: sf.train(archive, **given, epochs=2, dim=8, depth=1))
    names = ["shazam", "shazam_paper", "shazam_no_distillation", "shazam_authors_script"]
    found = compare(archive, names, repeats=1, device="cpu")
    assert set(found.balanced_accuracy) == set(names), found.failed


def test_a_student_on_levels_is_a_method_where_there_are_levels(tmp_path, patches, monkeypatch):
    monkeypatch.setattr(methods, "train", lambda archive, **given: sf.train(archive, **given, epochs=2, dim=8))
    uni = patches["features"]["uni"]
    features = {"uni:low": uni + 1, "uni:mid": uni + 2, "uni": uni}
    archive = sf.open(sf.write_archive(tmp_path / "levels", **{**patches, "features": features}))
    assert "shazam_levels" in methods.choose_methods(None, archive, None)
    found = compare(archive, ["shazam_levels"], repeats=1, device="cpu")
    assert found.failed == {}
    assert found.gflops("shazam_levels") == pytest.approx(123.1)  # one run of the teacher gives all three


def test_a_fine_tuned_teacher_is_a_method(archive, monkeypatch):
    """The best teacher on val predicts; options go to every fine-tuning."""
    seen = []

    def finetune_fold(fold, images, teacher, **options):
        seen.append((teacher, images, options))
        right = {part: np.eye(3)[fold.labels(part)] for part in ("val", "test")}
        return right if teacher == "virchow" else {part: 1 - p for part, p in right.items()}

    monkeypatch.setattr("shazam_fast.comparison.finetuning.run.finetune_fold", finetune_fold)
    given = {"images": "the images", "finetuning": {"epochs": 1}, "device": "cpu"}
    found = compare(archive, ["finetuned_teacher"], repeats=1, **given)
    assert found.cells[0].teachers == ("virchow",)
    assert found.balanced_accuracy["finetuned_teacher"].value == 1
    options = {"device": "cpu", "epochs": 1, "seed": 0}
    assert seen == [(name, "the images", options) for name in archive.teachers]
    assert "finetuned_teacher" in methods.choose_methods(None, archive, "the images")
