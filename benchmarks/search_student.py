"""Students side by side in plain PyTorch, parameters stacked on a leading axis, for `search_recipe`.

The bare and the residual student of `shazam_fast.Student` with a linear head on each teacher's token.
"""

import math

import torch
from torch.nn import functional as F


class Students:
    """S students. `values` holds the parameters by name, each [S, ...]."""

    def __init__(self, S, dims, C, D, K, block, generator=None, values=None):
        self.dims, self.C, self.D, self.K, self.block = dims, C, D, K, block
        self.values = values or self._draw(S, generator)

    def parameters(self):
        return list(self.values.values())

    def put(self, tensors):
        """Replace all parameters by the given ones, if any are given."""
        for parameter, tensor in zip(self.parameters(), tensors, strict=False):
            parameter.data.copy_(tensor)

    def alone(self, s):
        """One of the students."""
        values = {name: value[s : s + 1].detach() for name, value in self.values.items()}
        return Students(1, self.dims, self.C, self.D, self.K, self.block, values=values)

    def both_logits(self, x):
        """Of the only student, by its head and the mean of its teachers': features [n, W] -> [2, n, C]."""
        tokens = self.tokens(x[None])
        votes = self.teacher_logits(tokens).mean(dim=2)
        return torch.cat([self.head(self.fuse(tokens, None)[0]), votes])

    def tokens(self, x):
        """Standardised features [S, B, W] -> tokens [S, B, N, D]."""
        v = self.values
        parts = [part @ v[f"map {i}"] for i, part in enumerate(x.split(self.dims, dim=2))]
        tokens = torch.stack(parts, dim=1) + v["bias"][:, :, None]  # [S, N, B, D]
        if self.block == "residual":
            hidden = self._norm(tokens, "first").relu()
            tokens = self._norm(hidden @ v["second"] + v["second bias"][:, :, None], "second norm").relu()
        return tokens.transpose(1, 2)

    def fuse(self, tokens, present):
        """Tokens [S, B, N, D], present bool [S, B, N] or None -> fused [S, B, D], teacher shares [S, B, N]."""
        v, (S, B, N, D) = self.values, tokens.shape
        there = tokens.new_ones(S, B, N) if present is None else present.to(tokens.dtype)
        shares = torch.eye(N).expand(S, B, N, N)
        for k in range(self.K):
            qkv = tokens.reshape(S, B * N, D) @ v[f"qkv {k}"]
            if self.block == "residual":
                qkv = qkv + v[f"qkv bias {k}"][:, None]
            query, key, value = qkv.view(S, B, N, 3 * D).chunk(3, dim=3)
            scores = query @ key.transpose(2, 3) / math.sqrt(D)
            if present is not None:
                scores = scores.masked_fill(~present[:, :, None], -math.inf)
            P = scores.softmax(dim=3)
            attended = P @ value
            shares = P @ shares
            if self.block == "residual":
                out = attended.reshape(S, B * N, D) @ v[f"out {k}"] + v[f"out bias {k}"][:, None]
                normed = F.layer_norm(tokens + out.view(S, B, N, D), [D])
                tokens = normed * v[f"gain {k}"][:, None, None] + v[f"shift {k}"][:, None, None]
            else:
                tokens = attended
        weight = there / there.sum(dim=2, keepdim=True)  # [S, B, N]
        return (tokens * weight[..., None]).sum(dim=2), (shares * weight[..., None]).sum(dim=2).detach()

    def head(self, fused):
        """Fused [S, B, D] -> logits [S, B, C]."""
        v = self.values
        hidden = F.layer_norm((fused @ v["head 1"] + v["head bias 1"][:, None]).relu(), [self.D])
        hidden = hidden * v["head gain"][:, None] + v["head shift"][:, None]
        return hidden @ v["head 2"] + v["head bias 2"][:, None]

    def teacher_logits(self, tokens):
        """Logits by each teacher's token alone, [S, B, N, C]."""
        return (tokens.transpose(1, 2) @ self.values["single"] + self.values["single bias"][:, :, None]).transpose(1, 2)

    def _norm(self, x, name):
        """LayerNorm of every teacher's own gain and shift: x [S, N, B, D]."""
        gain, shift = self.values[f"{name} gain"], self.values[f"{name} shift"]
        return F.layer_norm(x, [self.D]) * gain[:, :, None] + shift[:, :, None]

    def _draw(self, S, generator):
        N, D, C = len(self.dims), self.D, self.C
        drawn = {f"map {i}": ((dim, D), dim) for i, dim in enumerate(self.dims)}
        drawn |= {"bias": ((N, D), max(self.dims))}
        drawn |= {f"qkv {k}": ((D, 3 * D), D) for k in range(self.K)}
        drawn |= {"head 1": ((D, D), D), "head bias 1": ((D,), D), "head 2": ((D, C), D), "head bias 2": ((C,), D)}
        drawn |= {"single": ((N, D, C), D), "single bias": ((N, C), D)}
        norms = [("head", (D,))]
        if self.block == "residual":
            drawn |= {"second": ((N, D, D), D), "second bias": ((N, D), D)}
            norms += [("first", (N, D)), ("second norm", (N, D))]
            for k in range(self.K):
                drawn |= {f"qkv bias {k}": ((3 * D,), D), f"out {k}": ((D, D), D), f"out bias {k}": ((D,), D)}
        values = {}
        for name, (shape, inputs) in drawn.items():
            bound = 1 / math.sqrt(inputs)
            values[name] = torch.empty(S, *shape).uniform_(-bound, bound, generator=generator)
        for name, shape in norms:
            values |= {f"{name} gain": torch.ones(S, *shape), f"{name} shift": torch.zeros(S, *shape)}
        if self.block == "residual":
            for k in range(self.K):
                values |= {f"gain {k}": torch.ones(S, D), f"shift {k}": torch.zeros(S, D)}
        return {name: value.requires_grad_() for name, value in values.items()}
