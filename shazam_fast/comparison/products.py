"""Fusion of single-teacher models: products of their probabilities, with or without a gate, means and stacking."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ..errors import MismatchError
from .fold import Fold
from .probes import (
    Array,
    Probe,
    fit_probe,
    logistic_regression,
    make_space,
    softmax,
    solve,
    standardised,
    validation_score,
)

INNER_FOLDS = 5  # of the training split, for out-of-fold predictions
NEIGHBOURS = (5, 10, 20, 50)  # values of k that the validation split chooses among
GATE_STEPS = 200  # of L-BFGS
GATE_PENALTY = 0.1  # weight of w^T R w
TINY = 1e-12  # probabilities are clipped to it before a logarithm

Predict = Callable[[str], Array]  # "val" or "test" -> probabilities [n, C]


def log_product(probabilities: Sequence[Array], shares: Array | None = None) -> Array:
    """Normalised product of probabilities [n, C] with exponents `shares` [n, N] (default 1/N): [n, C]."""
    logs = np.log(np.clip(np.stack(probabilities, axis=1), TINY, None))  # [n, N, C]
    return softmax(logs.mean(axis=1) if shares is None else np.einsum("nt,ntc->nc", shares, logs))


def out_of_fold(fold: Fold, teacher: str, C: float, balanced: bool, seed: int | None = None) -> Array:
    """Probabilities [n, C] of the training rows by probes that did not see their group.

    Raises MismatchError when the training split has no two groups, or no class has two patches.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    x, y = make_space(fold, [teacher]).train, fold.labels("train")
    groups = fold.groups("train")
    n_groups, most = len(np.unique(groups)), int(np.bincount(y).max())
    n_splits = min(INNER_FOLDS, n_groups, most)
    if n_splits < 2:
        raise MismatchError(
            f"{fold.archive.path}: predictions for patches that a probe did not see need two groups (patients, slides "
            f"or single patches) and two patches of a class in the training split, found {n_groups} and {most}"
        )
    found = np.zeros((len(y), fold.n_classes))
    splitter = StratifiedGroupKFold(n_splits, shuffle=True, random_state=fold.seed if seed is None else seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer patches than folds: it is as good as it gets
        pieces = list(splitter.split(x, y, groups))
    for inside, outside in pieces:
        present = np.unique(y[inside])
        if len(present) == 1:
            found[outside, present[0]] = 1.0
            continue
        model = solve(logistic_regression(C, balanced), x[inside], y[inside])
        found[np.ix_(outside, model.classes_)] = model.predict_proba(x[outside])
    return found


def gated_product(fold: Fold, probes: Mapping[str, Probe], inner: Sequence[Array]) -> Predict:
    """Logit product with a gate per patch (LogitProd, arXiv 2604.07779), fitted on out-of-fold predictions.

    Exponents are softmax(G f + b) of features f: each model's largest probability, margin and entropy, the mean
    entropy and the mutual information. G starts at zero, which is the plain product; w^T R w, with R the correlation of
    the models' errors, keeps weight from models that fail together.

    Args:
        fold: what is fitted on.
        probes: {teacher: its probe}, with balanced class weights.
        inner: their out-of-fold predictions on train, [n, C] each.
    """
    y = torch.from_numpy(fold.labels("train"))
    features, mean, scale = _gate_features(inner)
    logs = torch.from_numpy(np.log(np.clip(np.stack(inner, axis=1), TINY, None)))
    R = torch.from_numpy(error_correlation(inner, y.numpy()))
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

    def predict(part: str) -> Array:
        outer = [probe.predict(part) for probe in probes.values()]
        f, *_ = _gate_features(outer, mean, scale)
        return log_product(outer, (f @ weight + bias).softmax(dim=1).detach().numpy())

    return predict


def error_correlation(inner: Sequence[Array], y: NDArray[np.int64]) -> Array:
    """Correlation of the models' errors 1 - p(true class), [N, N]; 0 with a model whose errors are all equal."""
    errors = 1.0 - np.stack([p[np.arange(len(y)), y] for p in inner])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.corrcoef(errors)).reshape(len(inner), len(inner))


def stacked(fold: Fold, probes: Mapping[str, Probe], inner: Sequence[Array]) -> Predict:
    """Logistic regression on the log probabilities of the single-teacher probes, fitted on the out-of-fold ones."""
    model = solve(logistic_regression(0.1, balanced=True), _logs(inner), fold.labels("train"))
    return lambda part: np.asarray(model.predict_proba(_logs([probe.predict(part) for probe in probes.values()])))


def nearest_neighbours(fold: Fold, teachers: Sequence[str]) -> Predict:
    """k nearest neighbours by cosine on all teachers, each scaled by the root of its width; k is chosen on val."""
    from sklearn.neighbors import NearestNeighbors

    y = fold.labels("train")
    train = standardised(fold, teachers, True, ("train",))["train"].astype(np.float32)
    most = min(NEIGHBOURS[-1], len(y))
    index = NearestNeighbors(n_neighbors=most, metric="cosine", algorithm="brute").fit(train)

    def find(part: str) -> tuple[Array, NDArray[np.int64]]:
        return index.kneighbors(standardised(fold, teachers, True, (part,))[part].astype(np.float32))  # type: ignore[no-any-return]

    distance, near = find("val")
    scores = {
        k: validation_score(vote(distance[:, :k], y[near[:, :k]], fold.n_classes), fold.labels("val"))
        for k in sorted({min(k, most) for k in NEIGHBOURS})
    }
    best = max(scores, key=lambda k: scores[k])

    def predict(part: str) -> Array:
        distance, near = find(part)
        return vote(distance[:, :best], y[near[:, :best]], fold.n_classes)

    return predict


def vote(distance: NDArray[Any], labels: NDArray[np.int64], C: int) -> Array:
    """Probabilities [n, C] from the distances and labels [n, k] of neighbours, weighed by 1 / distance.

    A neighbour at distance 0 leaves no weight to the others.
    """
    same = distance <= 0
    with np.errstate(divide="ignore"):
        weight = np.where(same.any(axis=1, keepdims=True), same, 1.0 / distance)
    found = np.zeros((len(labels), C))
    np.add.at(found, (np.arange(len(labels))[:, None], labels), weight)
    return np.asarray(found / found.sum(axis=1, keepdims=True))


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
