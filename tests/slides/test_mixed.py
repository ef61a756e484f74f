"""Training steps whose products are of bfloat16 operands, and the CPU forms of dropout and softmax."""

import numpy as np
import pytest
import torch
from cohorts import make_cohort

import shazam_fast as sf
from shazam_fast.errors import NonFiniteError, ShazamError
from shazam_fast.slides import fitting
from shazam_fast.slides.bags import make_bags
from shazam_fast.slides.models.elementwise import Dropout, kth_largest, softmax_of_largest
from shazam_fast.slides.models.mixed import linear, multiplying, standardise
from shazam_fast.slides.models.packs import Packs
from shazam_fast.slides.options import FitOptions, SlideConfig
from shazam_fast.slides.students import build_model

STEP = 2.0**-8  # of bfloat16, relative, twice the largest rounding error


def gradients(model, features, segments):
    outputs = model(features, segments, 3).outputs
    outputs.square().sum().backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters()}


def away(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("model", ["mean", "gated_abmil", "shazam_abmil"])
def test_outputs_and_gradients_are_those_of_float32_but_for_rounding(model):
    torch.manual_seed(0)
    config = SlideConfig({"uni": 40, "virchow2": 70}, "classification", ("a", "b"), model, dim=16, dropout=0.0)
    built = build_model(config)
    x, segments = torch.randn(60, 110) * 3 + 500, torch.arange(60) % 3  # a mean that would cost bfloat16 all digits
    built.feature_mean.fill_(500.0)
    built.feature_scale.fill_(3.0)
    outputs, wanted = gradients(built, x, segments)
    built.zero_grad()
    rounded = torch.empty(60, 110, dtype=torch.bfloat16)
    standardise(x.clone(), (built.feature_mean, built.feature_scale), rounded)
    with multiplying("bf16"):
        coarse, found = gradients(built, rounded, segments)
    assert 0 < away(coarse, outputs) < 4 * STEP
    assert all(grad.dtype == torch.float32 for grad in found.values())
    assert all(away(found[name], wanted[name]) < 12 * STEP for name in wanted)


def test_products_add_in_float32():
    x, W = torch.ones(2, 10_000), torch.full((10_000, 3), 2.0**-7)
    with multiplying("bf16"):
        assert torch.equal(linear(x, W, torch.zeros(3)), torch.full((2, 3), 78.0))  # 78.125 rounded once
    assert torch.equal(linear(x, W, torch.zeros(3)), torch.full((2, 3), 78.125))


def test_packs_are_standardised_before_they_are_rounded(tmp_path, monkeypatch):
    archive, _, _ = make_cohort(tmp_path / "a", slides=9, sizes=(1, 40))
    bags = make_bags(archive, "slide", {})
    standard = (torch.randn(archive.width), torch.rand(archive.width) + 0.5)
    monkeypatch.setattr("shazam_fast.slides.models.mixed.BLOCK_VALUES", 7 * archive.width)  # several blocks per pack
    seen = 0
    for pack in Packs(bags, np.arange(9), 3, 100, standard=standard).epoch(np.random.default_rng(0), 0):
        wanted = (torch.from_numpy(archive.gather(pack.rows)) - standard[0]) / standard[1]
        assert torch.equal(pack.features[: len(pack.rows)], wanted.bfloat16())
        assert (pack.features[len(pack.rows) :] == 0).all()
        seen += len(pack.rows)
    assert seen == len(archive)


def test_the_planted_signal_is_found_in_either_precision(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=60, sizes=(20, 40), telling=0.2)
    options = {"model": "gated_abmil", "folds": 3, "epochs": 12, "lr": 1e-2, "dim": 16, "device": "cpu"}
    found = {p: sf.slides.train(archive, labels, precision=p, **options) for p in ("ieee", "bf16")}
    assert all(one.metrics.values["auroc"].value > 0.9 for one in found.values())
    again = sf.slides.train(archive, labels, precision="bf16", **options)
    values = [one.predictions.values for one in (found["ieee"], found["bf16"], again)]
    assert np.array_equal(values[1], values[2])
    assert not np.array_equal(values[0], values[1])


def test_what_cannot_be_computed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "STATISTICS_ROWS", 1)  # so that a step is the first to see it
    for i in range(10):
        features = np.random.default_rng(i).normal(size=(4, 8))
        features[2, 3] = np.inf if i == 5 else 0.0
        np.save(tmp_path / f"s{i}.npy", features.astype(np.float32))
    labels = {f"s{i}": "ab"[i % 2] for i in range(10)}
    with pytest.raises(NonFiniteError, match="row 22"):
        sf.slides.train({"uni": tmp_path}, labels, folds=3, epochs=1, dim=4, precision="bf16", device="cpu")
    with pytest.raises(ShazamError, match="precision: one of ieee, bf16 expected"):
        FitOptions(precision="fp16")


def test_a_training_that_was_begun_before_there_was_a_precision_goes_on():
    assert "precision" not in FitOptions().job()
    assert FitOptions(precision="bf16").job()["precision"] == "bf16"


def test_dropout_leaves_out_as_many_as_it_says():
    torch.manual_seed(0)
    x = torch.ones(1001, 101, requires_grad=True)
    for p in (0.1, 0.25, 0.9):
        found = Dropout(p)(x)
        assert (found == 0).float().mean().item() == pytest.approx(p, abs=0.005)
        assert found.mean().item() == pytest.approx(1, abs=0.02)
        (grad,) = torch.autograd.grad(found.sum(), x)
        assert torch.equal(grad, found.detach())
    assert (Dropout(1.0)(x) == 0).all()
    assert torch.equal(Dropout(0.0)(x), x)


@pytest.mark.parametrize(("K", "top_k"), [(1, 8), (5, 2), (10, 8), (16, 1), (40, 7)])
def test_softmax_of_the_largest_is_that_of_masked_logits(K, top_k):
    torch.manual_seed(0)
    logits = torch.randn(3, 4, K, dtype=torch.float64, requires_grad=True)
    present = torch.rand(3, 1, K) < 0.8
    present[..., 0] = True
    masked = logits.masked_fill(~present, -torch.inf)
    if top_k < K:
        masked = masked.masked_fill(masked < masked.topk(top_k).values[..., -1:], -torch.inf)
    wanted, found = masked.softmax(dim=-1), softmax_of_largest(logits, present, top_k)
    assert torch.allclose(found, wanted)
    upstream = torch.randn_like(found)
    grads = [torch.autograd.grad(result, logits, upstream)[0] for result in (found, wanted)]
    assert torch.allclose(*grads)
    assert (softmax_of_largest(logits, torch.zeros(K, dtype=torch.bool), top_k) == 0).all()


@pytest.mark.parametrize("K", [1, 2, 9, 16, 17])
def test_the_kth_largest(K):
    values = torch.randint(0, 6, (20, K)).float()  # with ties
    for k in range(1, K + 1):
        assert torch.equal(kth_largest(values, k), values.sort(descending=True).values[:, k - 1])
