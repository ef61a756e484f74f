"""The step in nine or ten kernels against the definition: losses, parameters and moments after steps of AdamW."""

import pytest
import torch
from compiled import skip_float64_products
from shazam_fast.kernels import launch, reference
from shazam_fast.kernels.step import fused
from shazam_fast.kernels.step.parts import Batch, Parameters, Settings, Source, Trained
from torch.nn import functional as F

LAM, DELTA, DECAY, RATE, VOTES = 0.75, 2.0, 0.125, 2.0**-7, 2.0


class Case:
    """A bare student's parameters, a split and what its steps are made of."""

    def __init__(self, device, dtype=torch.float64, B=5, dims=(7, 3), D=16, K=2, C=3, missing=True, **options):
        skip_float64_products(device, dtype)
        g = torch.Generator().manual_seed(0)
        N, width, rows = len(dims), sum(dims), B + 3

        def randn(*shape, scale=1.0):
            return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(device, dtype)

        self.dims, self.B, self.options = list(dims), B, options
        self.features = (2 + randn(rows, width)).half()
        self.standard = 2 + randn(width), 0.5 + randn(width).abs()
        values = [
            randn(width, D, scale=width**-0.5), randn(N, D), randn(K, D, 3 * D, scale=D**-0.5),
            randn(D, D, scale=D**-0.5), randn(D), 1 + randn(D, scale=0.3), randn(D), randn(C, D, scale=D**-0.5),
            randn(C),
        ]  # fmt: skip
        values += [randn(N, D, C, scale=D**-0.5), randn(N, C)] if options.get("votes") else []
        self.values = [value.requires_grad_() for value in values]
        self.order = torch.randperm(rows, generator=g).to(device)
        self.labels = torch.randint(C, (rows,), generator=g).to(device)
        self.present = None
        if missing:
            self.present = torch.rand(rows, N, generator=g) < 0.6
            self.present[torch.arange(rows), torch.randint(N, (rows,), generator=g)] = True
            self.present = self.present.to(device)
        self.offsets = randn(C) if options.get("balance") else None
        self.class_weights = randn(C).abs() if options.get("balance") else None
        self.rates = (RATE * torch.rand(4, generator=g)).to(device) if options.get("rates") else None
        self.mixtures = torch.tensor([0.75, 0.375, 0.5, 1.0], device=device) if options.get("mixed") else None
        self.kept = (torch.rand(3, width, generator=g) < 0.5).to(device) if options.get("columns") else None
        self.optimizer = torch.optim.AdamW(self.values, lr=RATE, weight_decay=DECAY)
        self.losses = torch.zeros(4, 2 + (3 if options.get("votes") else 2) * N, device=device, dtype=dtype)

    def plain_step(self, step, start, size):
        """By autograd and PyTorch's optimizer."""
        weight, bias, qkv, first, first_bias, gain, shift, last, last_bias, *votes = self.values
        rows = self.order[start : start + size]
        present = None if self.present is None else self.present[rows]
        mean, scale = self.standard
        if self.kept is not None:
            scale = torch.where(self.kept[step % len(self.kept)], 0.5 * scale, torch.inf)
        tokens = reference.project(
            self.features, rows, reference.TokenMaps(weight, bias, self.dims, (mean, scale)), present
        )
        if self.mixtures is not None:
            tokens = self.mixtures[step] * tokens + (1 - self.mixtures[step]) * tokens.flip(0)
        fused, _ = reference.bare_stack(tokens, qkv, present)
        hidden = F.layer_norm(F.linear(fused, first, first_bias).relu(), gain.shape, gain, shift)
        logits = F.linear(hidden, last, last_bias)
        cross_entropy = self.cross_entropies(logits, rows, step).mean()
        targets = tokens.detach() if self.options.get("detached") else tokens
        huber = self.options.get("huber", "norm")
        distilled, *terms = reference.distillation_loss(fused, targets, LAM, DELTA, huber, present)
        total = cross_entropy + distilled
        if votes:
            each = [
                self.cross_entropies(tokens[:, n] @ votes[0][n] + votes[1][n], rows, step) for n in range(len(bias))
            ]
            heads = torch.stack(each)
            terms.append((heads if present is None else torch.where(present.T, heads, 0.0)).mean(dim=1))
            total = total + VOTES * terms[-1].mean()
        self.optimizer.zero_grad()
        total.backward()
        if self.rates is not None:
            self.optimizer.param_groups[0]["lr"] = float(self.rates[step])
        self.optimizer.step()
        self.losses[step] = torch.cat([total[None], cross_entropy[None], *terms]).detach()

    def cross_entropies(self, logits, rows, step):
        """Of every patch [B]."""
        logits = logits if self.offsets is None else logits + self.offsets
        own, other = (
            F.cross_entropy(logits, labels, self.class_weights, reduction="none")
            for labels in (self.labels[rows], self.labels[rows].flip(0))
        )
        return own if self.mixtures is None else self.mixtures[step] * own + (1 - self.mixtures[step]) * other

    def fused_steps(self, sizes, precision="ieee", resident=True):
        """All steps by the kernels, on copies; losses, parameters and moments."""
        device, like = self.losses.device, self.losses
        trained = [
            Trained(v.detach().clone(), torch.zeros((), device=device), torch.zeros_like(v), torch.zeros_like(v))
            for v in self.values
        ]
        settings = Settings(
            torch.tensor([RATE, DECAY, 0.9, 0.999], dtype=torch.float64, device=device), LAM, DELTA,
            self.options.get("huber", "norm") == "norm", not self.options.get("detached"), self.offsets,
            self.class_weights, VOTES, 0.5, precision,
        )  # fmt: skip
        step = fused.FusedStep(Parameters(*trained), settings)
        batch = Batch(self.features, resident, self.order, torch.zeros_like(self.order[:1]), self.labels)
        source = Source(
            batch, self.dims, self.standard, self.present, self.rates, self.kept, self.mixtures,
            None if self.rates is None else torch.zeros((), device=device), torch.zeros_like(self.order[:1]),
            torch.zeros_like(like),
        )  # fmt: skip
        start = 0
        for size in sizes:
            if not resident:
                batch = batch._replace(features=self.features[self.order[start : start + size]])
            step(size, source._replace(batch=batch))
            start += size
        assert source.step.item() == len(sizes)
        assert batch.cursor.item() == start
        assert all(t.step.item() == len(sizes) for t in trained)
        return [source.losses, *(t.value for t in trained), *(t.mean for t in trained), *(t.square for t in trained)]

    def plain_steps(self, sizes):
        """The same by the definition."""
        start = 0
        for step, size in enumerate(sizes):
            self.plain_step(step, start, size)
            start += size
        state = [self.optimizer.state[v] for v in self.values]
        moments = [s[name] for name in ("exp_avg", "exp_avg_sq") for s in state]
        return [self.losses, *(v.detach() for v in self.values), *moments]


CASES = [
    {},
    {"columns": True, "mixed": True, "votes": True, "balance": True, "rates": True, "B": 7, "C": 9},
    {"votes": True, "detached": True, "huber": "elementwise", "K": 1},
    {"mixed": True, "missing": False, "C": 2, "wide": True, "K": 1},
    {"B": 1, "dims": (5,), "C": 2, "missing": False, "K": 1},
    {"dims": (4, 33, 6), "D": 32, "K": 1},
]


@pytest.mark.parametrize("options", CASES, ids=lambda options: " ".join(map(str, options)) or "plain")
def test_steps_are_those_of_the_definition(options, device, monkeypatch):
    monkeypatch.setattr(launch, "PART_COLUMNS", 32)  # a teacher of 33 columns has two parts
    monkeypatch.setattr(fused, "WIDE", 1 if "wide" in options else 1024)
    case = Case(device, **options)
    sizes = [case.B, 3]  # the last batch is short, or longer than the other
    for found, wanted in zip(case.fused_steps(sizes), case.plain_steps(sizes), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
