"""The models on packed patches against plain loops over slides in float64, forward and every gradient."""

import math

import pytest
import torch
from torch.nn import functional as F

from shazam_fast.ops.projection import linear
from shazam_fast.slides.models.pooling import PatchEncoder, segment_max, segment_softmax, segment_sum
from shazam_fast.slides.options import MODELS, OF_CLUSTERS, OF_SLIDE_TEACHERS, SlideConfig
from shazam_fast.slides.students import build_model

TEACHERS = {"uni": 5, "virchow2": 7, "gigapath": 3}
ALONE = [name for name in MODELS if name not in (*OF_CLUSTERS, *OF_SLIDE_TEACHERS)]  # each patch by itself
SIZES = [1, 13, 2, 31, 1, 6]


def build(model, task="classification", classes=("a", "b", "c"), depth=2):
    torch.manual_seed(1)
    config = SlideConfig(TEACHERS, task, classes, model, dim=8, depth=depth, dropout=0.0)
    built = build_model(config).eval()
    built.feature_mean.normal_()
    built.feature_scale.uniform_(0.5, 2.0)
    return built


def pack(shuffled=True):
    torch.manual_seed(0)
    segments = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    if shuffled:
        segments = segments[torch.randperm(len(segments))]
    return torch.randn(len(segments), sum(TEACHERS.values())) * 3, segments


def project(p, x, dims):
    """Tokens [n, N, D]: each teacher's standardised columns through its own map."""
    x = (x - p["feature_mean"]) / p["feature_scale"]
    pairs = zip(x.split(dims, dim=1), p["projection.weight"].split(dims), strict=True)
    return torch.stack([block @ weight for block, weight in pairs], dim=1) + p["projection.bias"]


def score(p, h, gated):
    hidden = torch.tanh(h @ p["attention.V.weight"].T + p["attention.V.bias"])
    if gated:
        hidden = hidden * torch.sigmoid(h @ p["attention.U.weight"].T + p["attention.U.bias"])
    return (hidden @ p["attention.w.weight"].T)[:, 0]


def one_slide(name, p, x):
    """Outputs, attention and teacher shares of one slide, from the formulas."""
    shares = None
    if name == "shazam_abmil":
        T = project(p, x, list(TEACHERS.values()))
        M = torch.eye(len(TEACHERS), dtype=T.dtype).expand(len(x), -1, -1)
        for layer in p["qkv"]:
            q, k, v = (T @ layer).chunk(3, dim=2)
            P = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(T.shape[2]), dim=2)
            T, M = P @ v, P @ M
        h, shares = T.mean(dim=1), M.mean(dim=1)
    else:
        x = (x - p["feature_mean"]) / p["feature_scale"]
        h = (x @ p["encoder.weight"] + p["encoder.bias"]).relu()
    if name == "max":
        pooled = h.amax(dim=0)
        attention = ((h == pooled).double() / (h == pooled).sum(dim=0)).mean(dim=1)
    else:
        e = torch.zeros(len(x), dtype=x.dtype) if name == "mean" else score(p, h, name != "abmil")
        attention = torch.softmax(e, dim=0)
        pooled = attention @ h
    outputs = p["head.weight"] @ pooled + p["head.bias"]
    return outputs, attention, None if shares is None else attention @ shares


@pytest.mark.parametrize("name", ALONE)
def test_packed_slides_are_what_loops_over_slides_give(name):
    model = build(name)
    x, segments = pack()
    found = model(x, segments, len(SIZES))
    p = {key: tensor.detach().double().requires_grad_() for key, tensor in model.state_dict().items()}
    wanted = [one_slide(name, p, x[segments == s].double()) for s in range(len(SIZES))]
    outputs = torch.stack([one[0] for one in wanted])
    torch.testing.assert_close(found.outputs.double(), outputs, rtol=1e-4, atol=1e-5)
    for s, (_, attention, shares) in enumerate(wanted):
        torch.testing.assert_close(found.attention[segments == s].double(), attention, rtol=1e-4, atol=1e-6)
        if shares is not None:
            torch.testing.assert_close(found.shares[s].double(), shares, rtol=1e-4, atol=1e-6)
    assert (found.shares is None) == (name != "shazam_abmil")

    upstream = torch.randn(outputs.shape, dtype=torch.float64)
    (outputs * upstream).sum().backward()
    (found.outputs * upstream.float()).sum().backward()
    for key, parameter in model.named_parameters():
        scale = p[key].grad.abs().max()
        torch.testing.assert_close(parameter.grad.double() / scale, p[key].grad / scale, rtol=0, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", ALONE)
def test_a_slide_does_not_see_the_others_of_its_pack(name):
    model = build(name)
    x, segments = pack(shuffled=False)
    before = model(x, segments, len(SIZES)).outputs
    changed = x.clone()
    changed[segments != 3] = 100.0
    after = model(changed, segments, len(SIZES)).outputs
    torch.testing.assert_close(after[3], before[3])
    assert not torch.allclose(after[1], before[1])


@pytest.mark.parametrize("name", ALONE)
def test_places_without_patches_give_finite_gradients(name):
    model = build(name)
    x, segments = pack()
    model(x, segments, len(SIZES) + 4).outputs[: len(SIZES)].sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_shares_of_a_slide_are_the_exact_parts_of_its_pooled_feature():
    """z_s is the sum over teachers of their parts; a teacher whose tokens are all 0 leaves the others' parts."""
    model = build("shazam_abmil", depth=1)
    x, segments = pack()
    codes = model.encode(x)
    pooled, attention = model.pool(codes, segments, len(SIZES))
    tokens = model.projection(x, None, (model.feature_mean, model.feature_scale), None)
    value_map = model.qkv[0][:, 16:]
    parts = torch.einsum("p,pn,pnd->pnd", attention, codes.shares, tokens @ value_map)  # w_pi T_pi C
    by_slide = segment_sum(parts, segments, len(SIZES)).sum(dim=1)
    torch.testing.assert_close(by_slide, pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x, segments, len(SIZES)).shares.sum(dim=1), torch.ones(len(SIZES)))


def test_segment_operations_take_large_scores():
    scores = torch.tensor([1e4, 1e4 - 1, -1e4, 3e38])
    segments = torch.tensor([0, 0, 1, 2])
    assert segment_softmax(scores, segments, 3).tolist() == pytest.approx([0.7310586, 0.2689414, 1.0, 1.0])
    assert segment_max(scores, segments, 4)[3] == -torch.inf


def test_gradients_of_the_segment_softmax():
    segments = torch.tensor([0, 1, 0, 2, 1, 0])
    scores = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: segment_softmax(e, segments, 3), scores)
    assert torch.allclose(segment_softmax(scores, segments, 3)[segments == 0], F.softmax(scores[segments == 0], dim=0))


def test_standardisation_on_the_map_is_as_exact_as_on_the_features():
    """Columns far from 0, as networks give them: the error is near that of standardising the features in float32."""
    torch.manual_seed(0)
    encode = PatchEncoder(64, 16)
    mean, scale = torch.randn(64) * 50, torch.rand(64) + 0.5
    features = torch.randn(100, 64) * scale + mean
    exact = ((features.double() - mean.double()) / scale.double()) @ encode.weight.double() + encode.bias.double()
    found = encode(features, mean, scale).double()
    assert (found - exact.relu()).abs().max() < 1e-4


def test_gradients_of_linear():
    x, weight, bias = torch.randn(5, 7), torch.randn(3, 7).T, torch.randn(3)
    for wide in (x, torch.randn(5, 2)):
        W = weight[: wide.shape[1]].contiguous()
        own = [t.clone().requires_grad_() for t in (wide, W, bias)]
        plain = [t.double().requires_grad_() for t in (wide, W, bias)]
        upstream = torch.randn(5, 3)
        (linear(*own) * upstream).sum().backward()
        ((plain[0] @ plain[1] + plain[2]) * upstream.double()).sum().backward()
        for found, wanted in zip(own, plain, strict=True):
            torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-5, atol=1e-5)


def test_large_products_of_linear():
    """Large enough that another library may compute them."""
    x, weight, bias = torch.randn(600, 300), torch.randn(40, 300).T, torch.randn(40)
    own = [t.clone().requires_grad_() for t in (x, weight, bias)]
    plain = [t.double().requires_grad_() for t in (x, weight, bias)]
    linear(*own).square().sum().backward()
    (plain[0] @ plain[1] + plain[2]).square().sum().backward()
    for found, wanted in zip(own, plain, strict=True):
        scale = wanted.grad.abs().max()
        torch.testing.assert_close(found.grad.double() / scale, wanted.grad / scale, rtol=0, atol=1e-5)
