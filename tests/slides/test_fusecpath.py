"""FuseCPath's model against loops over slides, regions, heads and patches in float64; and trained on selections."""

import math

import numpy as np
import pytest
import torch
from cohorts import make_cohort

import shazam_fast as sf
from shazam_fast.errors import MismatchError, ShazamError
from shazam_fast.slides.bags import make_bags
from shazam_fast.slides.models import fusecpath
from shazam_fast.slides.models.packs import Packs
from shazam_fast.slides.models.regions import Room, measure_room, tabulate
from shazam_fast.slides.options import SlideConfig
from shazam_fast.slides.students import build_model

TEACHERS = {"uni": 5, "virchow2": 7}
D, H, G = 16, 8, 3
CODES = [np.array([4, 0, 0, 4, 4, 4, 0, 9, 4, 4]), np.array([1]), np.array([2, 2, 1, 1, 1, 0, 0]), np.array([0, 0])]
SIZES = [len(codes) for codes in CODES]
QUICK = {"folds": 3, "epochs": 3, "dim": 16, "device": "cpu", "model": "fusecpath"}


def build(depth=2, top_k=2):
    torch.manual_seed(1)
    built = build_model(SlideConfig(TEACHERS, "classification", ("a", "b", "c"), "fusecpath", D, depth, 0.0, top_k))
    built.feature_mean.normal_()
    built.feature_scale.uniform_(0.5, 2.0)
    for module in built.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    return built.eval()


def pack(spare=0):
    torch.manual_seed(0)
    segments = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    x = torch.randn(len(segments) + spare, sum(TEACHERS.values())) * 3
    segments = torch.cat([segments, segments.new_full((spare,), len(SIZES))])
    needed = measure_room(CODES)
    room = Room(needed.regions + spare, needed.patches + spare, needed.of_slide + spare)
    return x, segments, tabulate(CODES, len(x), len(SIZES) + bool(spare), room)


def norm(x, p, name):
    x = x - x.mean(dim=-1, keepdim=True)
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def attend(x, p, name, top_k):
    """Self-attention of tokens [n, D], head by head and query by query; the position term as a convolution."""
    q, k, v = (x @ p[f"{name}.qkv.weight"].T + p[f"{name}.qkv.bias"]).split(D, dim=1)
    heads = []
    for h in range(H):
        own = slice(h * D // H, (h + 1) * D // H)
        e = q[:, own] @ k[:, own].T / math.sqrt(D // H)
        if f"{name}.position" in p:
            w = p[f"{name}.position"][h]
            e = e + torch.stack([
                sum(w[s + 7] * e[i + s] for s in range(-7, 8) if 0 <= i + s < len(e)) for i in range(len(e))
            ])  # fmt: skip
        rows = []
        for i in range(len(e)):
            kept = e[i].argsort(descending=True)[:top_k]
            rows.append(torch.softmax(e[i, kept], dim=0) @ v[kept, own])
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=1) @ p[f"{name}.out.weight"].T + p[f"{name}.out.bias"]


def one_slide(p, x, codes, depth, top_k):
    """Outputs and attention of one slide, from the formulas."""
    x = (x - p["feature_mean"]) / p["feature_scale"]
    tokens = (x @ p["encoder.weight"] + p["encoder.bias"]).relu()
    regions = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    Z = [tokens[members] for members in regions]
    for layer in range(depth):
        Z = [attend(norm(z, p, f"local.{layer}.norm"), p, f"local.{layer}.attention", top_k) + z for z in Z]
    normed = [norm(z, p, "across.norm") for z in Z]
    logits = [z @ p["across.phi.weight"].T for z in normed]
    summaries = torch.stack([e.softmax(dim=0).T @ z for e, z in zip(logits, normed, strict=True)])  # [C, G, D]
    mixed = torch.stack([attend(summaries[:, g], p, "across.attention", top_k) for g in range(G)], dim=1)
    values = torch.zeros_like(tokens)
    for members, z, e, r in zip(regions, Z, logits, mixed, strict=True):
        spread = e.amax(dim=0) - e.amin(dim=0)
        minmax = torch.zeros_like(e) if len(e) == 1 else (e - e.amin(dim=0)) / spread
        values[members] = norm(z + (minmax * e.softmax(dim=1)) @ r, p, "norm")
    hidden = torch.tanh(values @ p["attention.V.weight"].T + p["attention.V.bias"])
    attention = torch.softmax((hidden @ p["attention.w.weight"].T)[:, 0], dim=0)
    return p["head.weight"] @ (attention @ values) + p["head.bias"], attention


@pytest.mark.parametrize(("depth", "top_k"), [(1, 8), (2, 2), (2, 3)])
@pytest.mark.parametrize("spare", [0, 3])
def test_packed_slides_are_what_the_formulas_give(depth, top_k, spare):
    model = build(depth, top_k).double()  # float64: the k-th largest logit must be the same one
    x, segments, regions = pack(spare)
    found = model(x.double(), segments, len(SIZES) + bool(spare), regions)
    p = {key: tensor.detach().clone().requires_grad_() for key, tensor in model.state_dict().items()}
    blocks = x[: sum(SIZES)].double().split(SIZES)
    wanted = [one_slide(p, own, codes, depth, top_k) for own, codes in zip(blocks, CODES, strict=True)]
    outputs = torch.stack([one[0] for one in wanted])
    torch.testing.assert_close(found.outputs[: len(SIZES)], outputs, rtol=1e-9, atol=1e-9)
    for s, (_, attention) in enumerate(wanted):
        torch.testing.assert_close(found.attention[segments == s], attention, rtol=1e-9, atol=1e-9)

    upstream = torch.randn_like(outputs)
    (outputs * upstream).sum().backward()
    (found.outputs[: len(SIZES)] * upstream).sum().backward()
    for key, parameter in model.named_parameters():
        scale = p[key].grad.abs().max()
        torch.testing.assert_close(parameter.grad / scale, p[key].grad / scale, rtol=0, atol=1e-8, msg=key)


def test_float32_is_near_float64():
    model = build(top_k=8)
    x, segments, regions = pack()
    found = model(x, segments, len(SIZES), regions).outputs
    wanted = build(top_k=8).double()(x.double(), segments, len(SIZES), regions).outputs
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", [range(10), range(11, 18)])
def test_a_slide_does_not_see_the_others_of_its_pack(part):
    model = build()
    x, segments, regions = pack()
    before = model(x, segments, len(SIZES), regions).outputs
    changed = x.clone()
    changed[list(part)] += 5.0
    after = model(changed, segments, len(SIZES), regions).outputs
    own = int(segments[part[0]])
    others = [s for s in range(len(SIZES)) if s != own]
    torch.testing.assert_close(after[others], before[others])
    assert not torch.allclose(after[own], before[own])


def test_regions_exchange_through_their_summaries_alone():
    """Without the cross-region layer's output a change in one region leaves the values of the slide's others."""
    model = build()
    x, _, regions = pack()
    changed = x.clone()
    changed[7] += 5.0  # the only patch of region 9
    both = [model.mix(model.encode(features), regions).values[:7] for features in (x, changed)]
    assert not torch.allclose(*both)
    torch.nn.init.zeros_(model.across.attention.out.weight)
    both = [model.mix(model.encode(features), regions).values[:7] for features in (x, changed)]
    torch.testing.assert_close(*both)


def test_regions_after_one_another_give_what_all_at_once_give(monkeypatch):
    model = build()
    x, segments, regions = pack()
    wanted = model(x, segments, len(SIZES), regions).outputs
    monkeypatch.setattr(fusecpath, "LOGITS", 1)
    with torch.no_grad():
        torch.testing.assert_close(model(x, segments, len(SIZES), regions).outputs, wanted)


def test_patches_of_equal_features_give_finite_gradients():
    """Equal logits make the spread of minmax 0."""
    model = build()
    x, segments, regions = pack(spare=2)
    model(torch.zeros_like(x), segments, len(SIZES) + 1, regions).outputs[: len(SIZES)].sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_packs_have_tables_of_one_size(tmp_path):
    archive, _, _ = make_cohort(tmp_path / "a", slides=20, sizes=(3, 90), per_patient=2)
    chosen = sf.slides.select(archive, clusters=6, per_cluster=4, bags=3)
    patients = {name: f"p{i // 2}" for i, name in enumerate(archive.slides)}
    for by in ("slide", "patient"):
        bags = make_bags(archive, by, patients, chosen)
        packs = Packs(bags, np.arange(len(bags)), 4, 30, regions=True)
        shapes, seen = set(), []
        for pack in packs.epoch(np.random.default_rng(0), 1):
            patches, slides = pack.regions
            shapes.add((*pack.features.shape, *patches.shape, *slides.shape))
            assert sorted(patches[patches < len(pack.segments)].tolist()) == list(range(len(pack.rows)))
            for line, place in enumerate(slides[:-1]):
                members = patches[place[place < len(patches)]]
                members = members[members < len(pack.segments)]
                assert (pack.segments[members] == line).all()
                seen += [pack.bags[line]] * bool(len(members))
            for members in patches:
                rows = pack.rows[members[members < len(pack.segments)].numpy()]
                names = {archive.slides[slide] for slide in archive.slide_index[rows]}
                assert len(names) <= 1  # a region is of one slide, of patients with several too
                clusters = {
                    int(code)
                    for name in names
                    for own, codes in zip(chosen.rows[name], chosen.clusters[name], strict=True)
                    for code in codes[np.isin(own, rows)]
                }
                assert len(clusters) <= 1
        assert len(shapes) == 1
        assert sorted(seen) == list(range(len(bags)))


def test_training_on_clusters_of_a_selection(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=24, sizes=(3, 90))
    sf.slides.select(archive, tmp_path / "chosen", clusters=6, per_cluster=4, bags=3)
    with pytest.raises(MismatchError, match=r"'fusecpath' reads selected patches with their clusters: select"):
        sf.slides.train(archive, labels, **QUICK)
    result = sf.slides.train(archive, labels, selection=tmp_path / "chosen", out=tmp_path / "run", top_k=3, **QUICK)
    assert result.student.config.top_k == 3
    again = sf.slides.load(tmp_path / "run")
    with pytest.raises(MismatchError, match="select them first"):
        sf.slides.score(again, archive, device="cpu")
    scores = sf.slides.score(again, archive, selection=tmp_path / "chosen", device="cpu")
    table = scores.patches.to_pandas()
    assert np.allclose(table.groupby("slide", observed=True).attention.sum(), 1, atol=1e-5)
    chosen = {"selection": tmp_path / "chosen", "allow_trained_slides": True, "device": "cpu"}
    metrics = sf.slides.evaluate(again, archive, labels, **chosen)
    assert metrics.n_slides == 24
    with pytest.raises(ShazamError, match="dim: a multiple of 8 expected for fusecpath"):
        sf.slides.train(archive, labels, selection=tmp_path / "chosen", **(QUICK | {"dim": 12}))


def test_the_planted_signal_is_found(tmp_path):
    archive, labels, _ = make_cohort(tmp_path / "a", slides=60, sizes=(30, 60), telling=0.1, strength=10.0)
    chosen = sf.slides.select(archive, clusters=6, per_cluster=4, bags=3)
    result = sf.slides.train(archive, labels, selection=chosen, **(QUICK | {"epochs": 12, "dim": 32}))
    assert result.metrics.values["auroc"].value > 0.8  # mean pooling: about 0.6
