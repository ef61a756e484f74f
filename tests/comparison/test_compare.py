import numpy as np
import pytest
import torch

import shazam_fast as sf
from shazam_fast.comparison import methods, networks
from shazam_fast.comparison.compare import compare
from shazam_fast.comparison.fold import Fold
from shazam_fast.comparison.networks import Budget, FusionNetwork, Mamba, MixtureOfExperts

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


def test_groups_stay_whole_in_every_split(archive):
    for seed in range(4):
        from shazam_fast.comparison.compare import _resplit

        split = _resplit(archive, 0.2, 0.2, seed)
        for group in range(len(archive.groups)):
            assert len(set(split.splits[archive.group_index == group].tolist())) == 1


def test_the_archives_own_splits(archive):
    found = compare(archive, ["lr_concat", "best_single"], repeats=1, own_splits=True)
    assert found.cells[0].metrics.n_rows == len(archive.split("test"))


@pytest.mark.parametrize("fusion", [networks.Sum, networks.Concat, MixtureOfExperts, Mamba])
@pytest.mark.parametrize("N", [1, 3])
def test_every_fusion_learns(archive, fusion, N):
    teachers = list(archive.teachers)[:N]
    found = networks.fit_network(Fold(archive), teachers, fusion, Budget(epochs=15, dim=16))
    assert (found["test"].argmax(axis=1) == Fold(archive).labels("test")).mean() > 0.5
    np.testing.assert_allclose(found["test"].sum(axis=1), 1.0)


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
        raise sf.ShazamError("needs images")

    monkeypatch.setitem(methods.METHODS, "knn", fail)
    found = compare(archive, ["knn", "best_single_balanced"], repeats=1)
    assert found.failed == {"knn": "needs images"}
    assert set(found.balanced_accuracy) == {"best_single_balanced"}
    with pytest.raises(sf.MismatchError, match="needs images"):
        compare(archive, ["knn"], repeats=1)


def test_misuse(archive, tmp_path, patches):
    with pytest.raises(sf.ShazamError, match=r"methods: .* found knm"):
        compare(archive, ["knm"])
    with pytest.raises(sf.ShazamError, match="repeats: at least 1"):
        compare(archive, ["knn"], repeats=0)
    bare = sf.write_archive(tmp_path / "bare", patches["features"])
    with pytest.raises(sf.MismatchError):
        compare(bare, ["knn"])
    one = sf.open(sf.write_archive(tmp_path / "one", {"uni": patches["features"]["uni"]}, labels=patches["labels"]))
    assert compare(one, ["best_single_balanced", "lr_concat_balanced"], repeats=1).teachers == ("uni",)


def test_students_are_methods_too(archive, monkeypatch):
    monkeypatch.setattr(methods, "train", lambda archive, **given: sf.train(archive, **given, epochs=2, dim=8, depth=1))
    found = compare(archive, ["shazam", "shazam_no_distillation"], repeats=1)
    assert set(found.balanced_accuracy) == {"shazam", "shazam_no_distillation"}
