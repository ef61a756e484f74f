"""Steps of training on a few random patches, by the kernels of a step and by the definition."""

import torch
from compiled import skip_float64_products
from shazam_fast.kernels import reference
from shazam_fast.kernels.step import fused
from shazam_fast.kernels.step.parts import Batch, Parameters, Settings, Source, Trained
from torch.nn import functional as F

LAM, DELTA, DECAY, RATE, VOTES = 0.75, 2.0, 0.125, 2.0**-7, 2.0


class Case:
    """A student's parameters, a split and what its steps are made of; numbers that float32 has, in any dtype."""

    def __init__(self, device, dtype=torch.float64, B=5, dims=(7, 3), D=16, K=2, C=3, missing=True, **options):
        skip_float64_products(device, dtype)
        g = torch.Generator().manual_seed(0)
        N, width, rows = len(dims), sum(dims), B + 3

        def randn(*shape, scale=1.0, start=0.0):
            return (start + scale * torch.randn(*shape, generator=g)).to(device, dtype)

        self.dims, self.B, self.options = list(dims), B, options
        self.features = randn(rows, width, start=2.0).half()
        self.standard = randn(width, start=2.0), randn(width, start=2.0, scale=0.25)
        values = [
            randn(width, D, scale=width**-0.5), randn(N, D), randn(K, D, 3 * D, scale=D**-0.5),
            randn(D, D, scale=D**-0.5), randn(D), randn(D, scale=0.3, start=1.0), randn(D), randn(C, D, scale=D**-0.5),
            randn(C),
        ]  # fmt: skip
        values += [randn(N, D, C, scale=D**-0.5), randn(N, C)] if options.get("votes") else []
        self.n_blocks = 0
        if options.get("residual"):
            blocks = [
                randn(N, D, scale=0.3, start=1.0), randn(N, D), randn(N, D, D, scale=D**-0.5), randn(N, D),
                randn(N, D, scale=0.3, start=1.0), randn(N, D), randn(K, 3 * D),
                randn(K, D, D, scale=D**-0.5), randn(K, D), randn(K, D, scale=0.3, start=1.0), randn(K, D),
            ]  # fmt: skip
            values, self.n_blocks = values + blocks, len(blocks)
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
        weight, bias, qkv, first, first_bias, gain, shift, last, last_bias, *others = self.values
        votes, blocks = others[: len(others) - self.n_blocks], others[len(others) - self.n_blocks :]
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
        if blocks:
            tokens = deepened(tokens, *blocks[:6])
            fused = reference.residual_stack(tokens, reference.ResidualMaps(qkv, *blocks[6:]), present)
        else:
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
        if blocks:  # a key bias adds the same to all scores of a row: what rounding left there would be scaled up
            key_bias = blocks[6].grad[:, len(shift) : 2 * len(shift)]
            assert key_bias.abs().max() < 1e-12
            key_bias.zero_()
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
        plain, blocks = trained[: len(trained) - self.n_blocks], trained[len(trained) - self.n_blocks :]
        step = fused.FusedStep(Parameters.collect(plain, blocks), settings)
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


def deepened(tokens, first_gain, first_shift, second, second_bias, gain, shift):
    """What a residual student makes of its projections. [B, N, D] -> [B, N, D]."""
    hidden = (F.layer_norm(tokens, gain.shape[1:]) * first_gain + first_shift).relu()
    deep = torch.einsum("bni,nij->bnj", hidden, second) + second_bias
    return (F.layer_norm(deep, gain.shape[1:]) * gain + shift).relu()
