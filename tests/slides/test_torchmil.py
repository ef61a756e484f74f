"""torchmil's models by name: what they give, and what is said where they cannot be used."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import make_cohort, make_survival

import shazam_fast as sf
from shazam_fast.errors import ShazamError
from shazam_fast.slides.options import SlideConfig
from shazam_fast.slides.students import build_model

TEACHERS = {"uni": 5, "virchow2": 7}
NAMES = ("ABMIL", "CLAM_SB", "DSMIL", "DTFDMIL", "IIBMIL", "TransMIL", "TransformerABMIL")
SIZES = [1, 13, 2, 31]
QUICK = {"folds": 3, "epochs": 2, "dim": 8, "device": "cpu"}


def build(name, classes=("a", "b")):
    torch.manual_seed(1)
    model = build_model(SlideConfig(TEACHERS, "classification", classes, f"torchmil:{name}", dim=8))
    model.feature_mean.normal_()
    return model.eval()


def pack():
    torch.manual_seed(0)
    segments = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    segments = segments[torch.randperm(len(segments))]
    return torch.randn(len(segments), sum(TEACHERS.values())), segments


def test_without_torchmil_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmil", None)
    archive, labels, _ = make_cohort(tmp_path / "a", slides=12, sizes=(2, 4))
    with pytest.raises(ShazamError, match=r"'torchmil:TransMIL': .* pip install 'shazam_fast\[mil\]'"):
        sf.slides.train(archive, labels, model="torchmil:TransMIL", **QUICK)


class TestInstalled:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("torchmil")

    @pytest.mark.parametrize(("name", "classes"), [*((name, ("a", "b")) for name in NAMES), ("DSMIL", ("a", "b", "c"))])
    def test_each_slide_is_what_torchmil_gives_for_it_alone(self, name, classes):
        model = build(name, classes)
        x, segments = pack()
        state = torch.random.get_rng_state()
        found = model(x, segments, len(SIZES) + 1)  # with a place without patches
        assert torch.equal(torch.random.get_rng_state(), state)
        assert found.outputs.shape == (len(SIZES) + 1, len(classes))
        assert found.own_loss is None
        p = dict(model.state_dict())
        standardised = (x - p["feature_mean"]) / p["feature_scale"]
        h = (standardised @ p["encoder.weight"] + p["encoder.bias"]).relu()
        for slide in range(len(SIZES)):
            bag = h[segments == slide][None]
            masked = {} if name == "TransMIL" else {"mask": torch.ones(1, bag.shape[1], dtype=torch.bool)}
            if name != "DTFDMIL":  # which draws groups at random
                one = [m.predict(bag, **masked, return_inst_pred=False).item() for m in model.bag_models]
                wanted = torch.tensor([0.0, *one] if len(classes) == 2 else one)
                torch.testing.assert_close(found.outputs[slide], wanted, rtol=1e-4, atol=1e-5)
            assert found.attention[segments == slide].sum().item() == pytest.approx(1, abs=1e-5)
        assert torch.equal(model(x, segments, len(SIZES) + 1).outputs, found.outputs)

    @pytest.mark.parametrize("name", NAMES)
    def test_losses_of_their_own_are_added_in_training(self, name):
        model = build(name).train()
        x, segments = pack()
        labels = torch.tensor([0, 1, -1, 1])
        torch.manual_seed(3)
        found = model(x, segments, len(SIZES), labels=labels)
        (found.outputs.sum() + found.own_loss).backward()
        own = name in ("CLAM_SB", "DSMIL", "DTFDMIL", "IIBMIL")
        assert (found.own_loss.item() > 0) == own
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        if name == "DSMIL":
            h = model.encode(x).values
            wanted = 0.0
            for slide in (0, 1, 3):
                _, instances = model.bag_models[0].predict(h[segments == slide][None], return_inst_pred=True)
                sign = 1.0 if labels[slide] else -1.0
                wanted += torch.nn.functional.softplus(-sign * instances.max())
            torch.testing.assert_close(found.own_loss, wanted)

    def test_training_scoring_and_files(self, tmp_path):
        archive, labels, _ = make_cohort(tmp_path / "a", slides=18, sizes=(2, 20))
        result = sf.slides.train(archive, labels, model="torchmil:DSMIL", out=tmp_path / "run", **QUICK)
        scores = sf.slides.score(tmp_path / "run", archive, device="cpu")
        again = sf.slides.score(result.student, archive, device="cpu")
        assert np.array_equal(scores.values, again.values)
        sums = scores.patches.to_pandas().groupby("slide", observed=True).attention.sum()
        assert np.allclose(sums, 1, atol=1e-5)
        targets = sf.slides.Survival(pd.DataFrame(make_survival(labels)), "months", "dead", observed=1)
        survival = sf.slides.train(archive, targets, model="torchmil:ABMIL", **QUICK)
        assert len(survival.student.models[0].bag_models) == 4

    def test_names_that_cannot_be_used(self):
        for name, reason in (
            ("PatchGCN", "reads positions or other things beside patches"),
            ("VAEABMIL", "reads positions or other things"),
            ("Nothing", "is not in torchmil"),
        ):
            with pytest.raises(ShazamError, match=f"{name} {reason}.*one of ABMIL, CLAM_SB, DSMIL, DTFDMIL, IIBMIL"):
                build(name)
