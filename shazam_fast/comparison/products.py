"""Fusion of single-teacher models: products of their probabilities, with or without a gate, means and stacking."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from .fold import Fold
from .probes import Array, Probe, fit_probe, logistic_regression, probe_features, validation_score

INNER_FOLDS = 5  # of the training split, for out-of-fold predictions
NEIGHBOURS = (5, 10, 20, 50)  # values of k that the validation split chooses among
GATE_STEPS = 200  # of L-BFGS
GATE_PENALTY = 0.1  # weight of w^T R w
TINY = 1e-12  # probabilities are clipped to it before a logarithm


def log_product(probabilities: Sequence[Array], shares: Array | None = None) -> Array:
    """Normalised product of probabilities [n, C] with exponents `shares` [n, N] (default 1/N): [n, C]."""
    logs = np.log(np.clip(np.stack(probabilities, axis=1), TINY, None))  # [n, N, C]
    logits = logs.mean(axis=1) if shares is None else np.einsum("nt,ntc->nc", shares, logs)
    logits -= logits.max(axis=1, keepdims=True)
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def out_of_fold(fold: Fold, teacher: str, C: float, balanced: bool) -> Array:
    """Probabilities [n, C] of the training rows by probes that did not see their group."""
    from sklearn.model_selection import StratifiedGroupKFold

    x, y = probe_features(fold, [teacher])["train"], fold.labels("train")
    groups = fold.groups("train")
    n_splits = min(INNER_FOLDS, len(np.unique(groups)))
    found = np.full((len(y), fold.n_classes), 1.0 / fold.n_classes)
    splitter = StratifiedGroupKFold(n_splits, shuffle=True, random_state=fold.seed)
    for inside, outside in splitter.split(x, y, groups):
        model = logistic_regression(C, balanced).fit(x[inside], y[inside])
        predicted = np.zeros((len(outside), fold.n_classes))
        predicted[:, model.classes_] = model.predict_proba(x[outside])
        found[outside] = predicted
    return found


def gated_product(fold: Fold, probes: Mapping[str, Probe]) -> dict[str, Array]:
    """Logit product with a gate per patch (LogitProd, arXiv 2604.07779), fitted on out-of-fold predictions.

    Exponents are N softmax(G f + b) / N of features f: each model's largest probability, margin and entropy, the mean
    entropy and the mutual information. G starts at zero, which is the plain product; w^T R w, with R the correlation of
    the models' errors, keeps weight from models that fail together.
    """
    inner = [out_of_fold(fold, name, probe.C, balanced=True) for name, probe in probes.items()]
    y = torch.from_numpy(fold.labels("train"))
    features, mean, scale = _gate_features(inner)
    logs = torch.from_numpy(np.log(np.clip(np.stack(inner, axis=1), TINY, None)))
    errors = 1.0 - np.stack([p[np.arange(len(y)), y.numpy()] for p in inner])
    R = torch.from_numpy(np.nan_to_num(np.corrcoef(errors)).reshape(len(inner), len(inner)))
    weight = torch.zeros(features.shape[1], len(inner), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(inner), dtype=torch.float64, requires_grad=True)
    counts = torch.bincount(y, minlength=fold.n_classes).double()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=GATE_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        shares = (features @ weight + bias).softmax(dim=1)
        logits = torch.einsum("nt,ntc->nc", shares, logs)
        penalty = torch.einsum("nt,ts,ns->n", shares, R, shares).mean() + weight.square().mean()
        loss = F.cross_entropy(logits, y, weight=counts.sum() / counts.clamp_min(1)) + GATE_PENALTY * penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    result = {}
    for part in ("val", "test"):
        outer = [probe.probabilities[part] for probe in probes.values()]
        f, *_ = _gate_features(outer, mean, scale)
        shares = (f @ weight + bias).softmax(dim=1).detach().numpy()
        result[part] = log_product(outer, shares)
    return result


def stacked(fold: Fold, probes: Mapping[str, Probe]) -> dict[str, Array]:
    """Logistic regression on the out-of-fold log probabilities of the single-teacher probes."""
    inner = [out_of_fold(fold, name, probe.C, balanced=False) for name, probe in probes.items()]
    model = logistic_regression(0.1, balanced=True).fit(_logs(inner), fold.labels("train"))
    outer = {part: [probe.probabilities[part] for probe in probes.values()] for part in ("val", "test")}
    return {part: model.predict_proba(_logs(found)) for part, found in outer.items()}


def nearest_neighbours(fold: Fold) -> dict[str, Array]:
    """k nearest neighbours by cosine on all teachers, each scaled by the root of its width; k is chosen on val."""
    from sklearn.neighbors import KNeighborsClassifier

    x, y = probe_features(fold, fold.teachers, scaled=True), fold.labels("train")
    fitted = [
        KNeighborsClassifier(min(k, len(y)), metric="cosine", weights="distance", algorithm="brute").fit(x["train"], y)
        for k in NEIGHBOURS
    ]
    best = max(fitted, key=lambda model: validation_score(model.predict_proba(x["val"]), fold.labels("val")))
    return {part: best.predict_proba(x[part]) for part in ("val", "test")}


def single_probes(fold: Fold, balanced: bool) -> dict[str, Probe]:
    """One probe per teacher."""
    return {name: fit_probe(fold, [name], balanced=balanced) for name in fold.teachers}


def _logs(probabilities: Sequence[Array]) -> Array:
    return np.log(np.clip(np.concatenate(probabilities, axis=1), TINY, None))


def _gate_features(
    probabilities: Sequence[Array], mean: NDArray[np.float64] | None = None, scale: NDArray[np.float64] | None = None
) -> tuple[torch.Tensor, NDArray[np.float64], NDArray[np.float64]]:
    """Standardised features of the gate [n, 3 N + 2], and the mean and scale that standardise them."""
    p = np.clip(np.stack(probabilities, axis=1), TINY, None)  # [n, N, C]
    ordered = np.sort(p, axis=2)
    entropy = -(p * np.log(p)).sum(axis=2)  # [n, N]
    pooled = p.mean(axis=1)
    mutual = -(pooled * np.log(pooled)).sum(axis=1) - entropy.mean(axis=1)
    columns = [ordered[:, :, -1], ordered[:, :, -1] - ordered[:, :, -2], entropy, entropy.mean(axis=1, keepdims=True)]
    f = np.concatenate([*columns, mutual[:, None]], axis=1)
    if mean is None or scale is None:
        mean, scale = f.mean(axis=0), np.maximum(f.std(axis=0), 1e-6)
    return torch.from_numpy((f - mean) / scale), mean, scale
