"""Slides whose patches come chunk by chunk, against all of them at once; what is held of a large slide."""

import numpy as np
import pytest
import torch

from shazam_fast.slides.models import pooling
from shazam_fast.slides.models.pooling import PatchCodes, Slides
from shazam_fast.slides.models.streaming import Collected
from shazam_fast.slides.options import MODELS, OF_CLUSTERS, OF_SLIDE_TEACHERS, SlideConfig
from shazam_fast.slides.students import build_model

TEACHERS = {"uni": 5, "virchow2": 7, "gigapath": 3}


def build(model):
    return build_model(SlideConfig(TEACHERS, "classification", ("a", "b"), model, dim=8)).eval()


def codes_of(sizes, scale, generator):
    segments = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    n = len(segments)
    shares = torch.rand(n, 3, generator=generator).softmax(dim=1)
    scores = scale * torch.randn(n, generator=generator)
    return PatchCodes(torch.randn(n, 8, generator=generator), scores, shares), segments


@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_chunks_give_what_the_whole_gives(scale):
    """Scores that rise and fall from chunk to chunk by more than exp can hold; chunks that cut slides anywhere."""
    generator = torch.Generator().manual_seed(0)
    codes, segments = codes_of([1, 40, 3, 60, 7], scale, generator)
    model, slides = build("gated_abmil"), Slides(segments, 5)
    wanted = model.read(codes, slides)
    for cuts in ([1, 2, 50, 51, 90], [60], []):
        collected = Collected(model, slides)
        for part in np.split(np.arange(len(segments)), cuts):
            collected.add(PatchCodes(*(column[part] for column in codes)))
        for name, found in collected.read()._asdict().items():
            expected = getattr(wanted, name)
            assert (found is None) == (expected is None), name
            assert found is None or torch.allclose(found, expected, atol=1e-5), name


def test_weighted_sums_of_few_and_of_many_slides(monkeypatch):
    torch.manual_seed(0)
    weights, values = torch.rand(50, requires_grad=True), torch.randn(50, 4, requires_grad=True)
    segments, upstream = torch.randint(0, 7, (50,)), torch.randn(7, 4)  # in any order
    found = []
    for few in (7, 6):
        monkeypatch.setattr(pooling, "FEW_SLIDES", few)
        sums = pooling.segment_weighted_sum(weights, values, segments, 7)
        found.append((sums, *torch.autograd.grad(sums, (weights, values), upstream)))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))
    assert torch.allclose(found[0][0][3], (weights[:, None] * values)[segments == 3].sum(dim=0), atol=1e-5)


@pytest.mark.parametrize("model", [name for name in MODELS if name not in (*OF_CLUSTERS, *OF_SLIDE_TEACHERS)])
def test_every_model_says_of_chunks_what_it_says_of_all(model):
    """Whatever a model's own way to pool: chunks go the way that fits it."""
    torch.manual_seed(0)
    built, x, segments = build(model), torch.randn(70, sum(TEACHERS.values())) * 3, torch.arange(70) // 25
    collected = Collected(built, Slides(segments, 3))
    with torch.no_grad():
        for chunk in x.split(9):
            collected.add(built.encode(chunk))
        wanted, found = built(x, segments, 3), collected.read()
    for name in ("outputs", "attention"):
        assert torch.allclose(getattr(found, name), getattr(wanted, name), atol=1e-5), name


@pytest.mark.parametrize(("model", "numbers"), [("mean", 1), ("gated_abmil", 1), ("shazam_abmil", 1 + len(TEACHERS))])
def test_of_a_patch_only_its_score_and_shares_are_held(model, numbers):
    built, n = build(model), 3000
    collected = Collected(built, Slides(torch.zeros(n, dtype=torch.int64), 1))
    with torch.no_grad():
        for chunk in torch.randn(n, sum(TEACHERS.values())).split(100):
            collected.add(built.encode(chunk))
    held = {id(tensor): tensor for codes in collected._chunks for tensor in codes if tensor is not None}
    assert sum(tensor.untyped_storage().nbytes() for tensor in held.values()) == 4 * numbers * n
