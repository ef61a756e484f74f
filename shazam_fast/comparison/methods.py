"""The fusion methods that `shazam_fast.compare` knows, by name: each fits on one fold and predicts val and test."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from ..errors import ShazamError
from ..scoring.score import score
from ..training.train import train
from . import networks, products
from .fold import Fold
from .networks import DEFAULT_BUDGET, Budget, fit_network
from .probes import Array, Probe, fit_probe, validation_score

Predictions = Mapping[str, Array]  # {"val", "test"} -> probabilities [n, C]


@dataclass(frozen=True)
class Bench:
    """A fold with what several methods share: the probes of single teachers, fitted once.

    `options` go to `sf.train` in the methods that train a student.
    """

    fold: Fold
    budget: Budget = DEFAULT_BUDGET
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def probes(self) -> dict[str, Probe]:
        """One logistic regression per teacher."""
        return products.single_probes(self.fold, balanced=False)

    @cached_property
    def balanced_probes(self) -> dict[str, Probe]:
        """The same with balanced class weights."""
        return products.single_probes(self.fold, balanced=True)

    def all_probes(self, balanced: bool) -> dict[str, Probe]:
        """Probes with or without balanced class weights."""
        return self.balanced_probes if balanced else self.probes


def _best_single(bench: Bench, balanced: bool) -> Predictions:
    probes = bench.all_probes(balanced)
    return max(probes.values(), key=lambda probe: probe.score).probabilities


def _best_network(bench: Bench) -> Predictions:
    found = [fit_network(bench.fold, [name], networks.Sum, bench.budget) for name in bench.fold.teachers]
    return max(found, key=lambda p: validation_score(p["val"], bench.fold.labels("val")))


def _concatenation(bench: Bench, balanced: bool, scaled: bool) -> Predictions:
    return fit_probe(bench.fold, bench.fold.teachers, balanced=balanced, scaled=scaled).probabilities


def _mean(bench: Bench) -> Predictions:
    probes = bench.balanced_probes.values()
    return {part: np.mean([p.probabilities[part] for p in probes], axis=0) for part in ("val", "test")}


def _product(bench: Bench) -> Predictions:
    probes = bench.balanced_probes.values()
    return {part: products.log_product([p.probabilities[part] for p in probes]) for part in ("val", "test")}


def _network(bench: Bench, fusion: Callable[[int, int], Any]) -> Predictions:
    return fit_network(bench.fold, bench.fold.teachers, fusion, bench.budget)


def _student(bench: Bench, **options: Any) -> Predictions:
    fold = bench.fold
    result = train(fold.archive, seed=fold.seed, **{**options, **bench.options})
    return {
        part: score(result.student, fold.archive, split=part).probabilities.astype(np.float64)
        for part in ("val", "test")
    }


METHODS: Mapping[str, Callable[[Bench], Predictions]] = {
    "best_single": partial(_best_single, balanced=False),
    "best_single_balanced": partial(_best_single, balanced=True),
    "best_single_mlp": _best_network,
    "lr_concat": partial(_concatenation, balanced=False, scaled=False),
    "lr_concat_balanced": partial(_concatenation, balanced=True, scaled=False),
    "lr_concat_scaled": partial(_concatenation, balanced=False, scaled=True),
    "lr_concat_scaled_balanced": partial(_concatenation, balanced=True, scaled=True),
    "mean_probability": _mean,
    "logit_product": _product,
    "logit_product_gated": lambda bench: products.gated_product(bench.fold, bench.balanced_probes),
    "stacking": lambda bench: products.stacked(bench.fold, bench.probes),
    "knn": lambda bench: products.nearest_neighbours(bench.fold),
    "sum": partial(_network, fusion=networks.Sum),
    "concat_mlp": partial(_network, fusion=networks.Concat),
    "moe": partial(_network, fusion=networks.MixtureOfExperts),
    "mamba": partial(_network, fusion=networks.Mamba),
    "shazam_no_distillation": partial(_student, lam=0.0),
    "shazam": partial(_student, preset="huncrc"),
    "shazam_authors_script": partial(_student, preset="authors_script"),
}
SINGLE_TEACHER = "best_single_balanced"  # the reference that answers "does fusing help?"
CONCATENATION = "lr_concat_balanced"  # the reference that answers "does the student help?"


def require_methods(names: tuple[str, ...]) -> None:
    """Raise ShazamError for a name that is no method, or one that is given twice."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or len(set(names)) != len(names):
        raise ShazamError(f"methods: different names among {', '.join(METHODS)} expected, found {', '.join(names)}")
