"""Fusion networks: how several teachers' features become one, and the loop that fits all of them alike.

Every network projects each teacher's standardised feature to a token of width D and ends in the same head as the
student (Linear, ReLU, LayerNorm, Linear), so that they differ in the fusion alone.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .fold import PARTS, Fold
from .probes import standardised, validation_score

STATE = 16  # width of the state that Mamba carries from teacher to teacher


@dataclass(frozen=True)
class Budget:
    """What every network is given: passes over the training split, patience, AdamW's settings, batch size, width D."""

    epochs: int = 100
    patience: int = 20
    lr: float = 1e-3
    weight_decay: float = 1e-3
    batch_size: int = 64
    dim: int = 128


DEFAULT_BUDGET = Budget()


class Sum(nn.Module):
    """Tokens added up: [B, N, D] -> [B, D]."""

    def __init__(self, N: int, D: int) -> None:
        super().__init__()
        self.width = D

    def forward(self, tokens: Tensor) -> Tensor:
        """Sum over the teachers."""
        return tokens.sum(dim=1)


class Concat(nn.Module):
    """Tokens side by side: [B, N, D] -> [B, N * D]."""

    def __init__(self, N: int, D: int) -> None:
        super().__init__()
        self.width = N * D

    def forward(self, tokens: Tensor) -> Tensor:
        """All teachers' tokens in one vector."""
        return tokens.flatten(1)


class MixtureOfExperts(nn.Module):
    """A gate weighs the tokens: g = softmax(MLP(all tokens)), sum_i g_i T_i. [B, N, D] -> [B, D].

    The authors' script normalises each gated token, LN(g_i T_i), which the gate cannot change but for the epsilon; here
    the gate acts after the norm, as a mixture of experts is meant.
    """

    def __init__(self, N: int, D: int) -> None:
        super().__init__()
        self.width = D
        self.norm = nn.LayerNorm(D)
        self.gate = nn.Sequential(nn.Linear(N * D, D), nn.GELU(), nn.Linear(D, N))

    def forward(self, tokens: Tensor) -> Tensor:
        """Gated mean of the tokens."""
        gate = self.gate(tokens.flatten(1)).softmax(dim=1)  # [B, N]
        return torch.einsum("bn,bnd->bd", gate, self.norm(tokens))


class Mamba(nn.Module):
    """A selective state space over the sequence of teachers (Gu and Dao, arXiv 2312.00752), written plainly.

    h_i = exp(delta_i A) h_{i-1} + delta_i B_i x_i, y_i = C_i h_i + x_i, gated; the mean of y over the teachers.
    """

    def __init__(self, N: int, D: int) -> None:
        super().__init__()
        self.width = D
        self.norm = nn.LayerNorm(D)
        self.enter, self.leave = nn.Linear(D, 2 * D), nn.Linear(D, D)
        self.select = nn.Linear(D, 2 * STATE + 1)
        self.delta_bias = nn.Parameter(torch.zeros(D))
        self.log_decay = nn.Parameter(torch.arange(1, STATE + 1).float().log().repeat(D, 1))  # [D, STATE]

    def forward(self, tokens: Tensor) -> Tensor:
        """Scan over the teachers and mean. [B, N, D] -> [B, D]."""
        x, gate = self.enter(self.norm(tokens)).chunk(2, dim=-1)  # [B, N, D] each
        B, C, delta = self.select(x).split([STATE, STATE, 1], dim=-1)
        delta = F.softplus(delta + self.delta_bias)  # [B, N, D]
        decay = torch.exp(-delta[..., None] * self.log_decay.exp())  # [B, N, D, STATE]
        driven = (delta * x)[..., None] * B[:, :, None]
        h, outputs = torch.zeros_like(driven[:, 0]), []
        for i in range(tokens.shape[1]):
            h = decay[:, i] * h + driven[:, i]
            outputs.append((h * C[:, i, None]).sum(dim=-1))  # [B, D]
        scanned = torch.stack(outputs, dim=1) + x
        fused: Tensor = (tokens + self.leave(scanned * F.silu(gate))).mean(dim=1)
        return fused


class FusionNetwork(nn.Module):
    """Projection of each teacher, a fusion, a head. Features [B, sum of dims] -> logits [B, C]."""

    def __init__(self, dims: Sequence[int], n_classes: int, D: int, fusion: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.dims = list(dims)
        self.maps = nn.ModuleList(nn.Linear(dim, D) for dim in dims)
        self.fusion = fusion(len(dims), D)
        width = int(self.fusion.width)  # type: ignore[arg-type]
        self.head = nn.Sequential(nn.Linear(width, D), nn.ReLU(), nn.LayerNorm(D), nn.Linear(D, n_classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of standardised features."""
        parts = zip(self.maps, features.split(self.dims, dim=1), strict=True)
        logits: Tensor = self.head(self.fusion(torch.stack([map_(x) for map_, x in parts], dim=1)))
        return logits


@dataclass(frozen=True)
class FittedNetwork:
    """A trained network, the standardised features {part: [n, sum of dims]} that it reads, and its score on val."""

    network: FusionNetwork
    x: Mapping[str, Tensor]
    score: float

    @torch.no_grad()
    def predict(self, part: str) -> NDArray[np.float64]:
        """Probabilities [n, C] of a part."""
        return np.asarray(self.network(self.x[part]).double().softmax(dim=1).numpy())


def fit_network(
    fold: Fold,
    teachers: Sequence[str],
    fusion: Callable[[int, int], nn.Module],
    budget: Budget,
    seed: int | None = None,
) -> FittedNetwork:
    """Train a network on the fold and choose its epoch on val.

    Args:
        fold: what to fit on and predict.
        teachers: whose features it reads.
        fusion: makes the fusion of N tokens of width D.
        budget: what every network is given.
        seed: of the parameters and the order of patches; the fold's by default.
    """
    x = {part: _standardised(fold, teachers, part) for part in PARTS}
    y = torch.from_numpy(fold.labels("train"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold.seed if seed is None else seed)
        dims = [fold.archive.teachers[name] for name in teachers]
        network = FusionNetwork(dims, fold.n_classes, budget.dim, fusion)
        best, score = _train(network, x, y, fold.labels("val"), budget)
    network.load_state_dict(best)
    return FittedNetwork(network, x, score)


def _standardised(fold: Fold, teachers: Sequence[str], part: str) -> Tensor:
    """Standardised features [n, sum of dims]; those of all teachers are kept for the next network."""
    if tuple(teachers) != fold.teachers:
        return torch.cat([_standardised(fold, fold.teachers, part)[:, fold.archive.columns_of(t)] for t in teachers], 1)
    found: Tensor = fold.shared.get(
        ("tensors", part), lambda: torch.from_numpy(standardised(fold, teachers, parts=(part,))[part]).float()
    )
    return found


def _train(
    network: FusionNetwork, x: Mapping[str, Tensor], y: Tensor, val_labels: NDArray[np.int64], budget: Budget
) -> tuple[dict[str, Tensor], float]:
    """The parameters of the epoch with the best validation score, and that score."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=budget.lr, weight_decay=budget.weight_decay, fused=True)
    best, best_score, stale = copy.deepcopy(network.state_dict()), -1.0, 0
    for _ in range(budget.epochs):
        for rows in torch.randperm(len(y)).split(budget.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(network(x["train"][rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            score = validation_score(network(x["val"]).double().softmax(dim=1).numpy(), val_labels)
        stale += 1
        if score > best_score:
            best, best_score, stale = copy.deepcopy(network.state_dict()), score, 0
        if stale >= budget.patience:
            break
    return best, best_score
