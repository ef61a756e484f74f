"""The fusion methods that `shazam_fast.compare` knows, by name: each fits on one fold and predicts its other parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..archive.archive import FeatureArchive
from ..archive.opening import choose_of
from ..errors import MismatchError, ShazamError
from ..images.table import ImageTable
from ..scoring.score import score
from ..training.train import train
from . import networks, products
from .fold import Fold
from .networks import DEFAULT_BUDGET, Budget, FittedNetwork, fit_network
from .probes import Array, Probe, fit_probe, validation_score
from .products import Predict


@dataclass(frozen=True)
class Fitted:
    """A fitted method: its predictions of "val" and "test", and the teachers that it reads."""

    predict: Predict
    teachers: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """What a method is fitted with.

    Args:
        fold: the split, with what several methods share.
        teachers: the teachers to use.
        seed: of everything random in the method.
        budget: of every network.
        options: fields of `TrainConfig` for every student, by name; they replace the method's own.
        images: the images that the features were made of, None where they are not given.
        finetuning: options of `shazam_fast.finetune`.
    """

    fold: Fold
    teachers: tuple[str, ...]
    seed: int
    budget: Budget = DEFAULT_BUDGET
    options: Mapping[str, Any] = field(default_factory=dict)
    images: ImageTable | None = None
    finetuning: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, fold: Fold, **fields: Any) -> "Bench":
        """A bench with all teachers and the seed of a fold."""
        return cls(fold, fold.teachers, fold.seed, **fields)

    @property
    def archive(self) -> FeatureArchive:
        """The fold's archive with the chosen teachers alone."""
        archive = self.fold.archive
        return archive if self.teachers == self.fold.teachers else choose_of(archive, self.teachers)

    def choosing(self, teachers: Sequence[str]) -> "Bench":
        """The same with other teachers."""
        return replace(self, teachers=tuple(teachers))

    def probes(self, balanced: bool) -> dict[str, Probe]:
        """One logistic regression per teacher, with or without balanced class weights."""
        return {
            name: self.fold.shared.get(
                ("probe", name, balanced), partial(fit_probe, self.fold, [name], balanced=balanced)
            )
            for name in self.teachers
        }

    def out_of_fold(self, balanced: bool) -> list[Array]:
        """Predictions [n, C] for train of probes that did not see the patch's group, one per teacher."""
        return [
            self.fold.shared.get(
                ("out of fold", name, balanced, self.seed),
                partial(products.out_of_fold, self.fold, name, probe.C, balanced, self.seed),
            )
            for name, probe in self.probes(balanced).items()
        ]


@dataclass(frozen=True)
class Method:
    """How a method is fitted, whether that is random, and what it needs beside features ("images" or "levels")."""

    fit: Callable[[Bench], Fitted]
    random: bool = False
    needs: str = ""


def _best_single(bench: Bench, balanced: bool) -> Fitted:
    best = max(bench.probes(balanced).values(), key=lambda probe: probe.score)
    return Fitted(best.predict, best.teachers)


def _best_network(bench: Bench) -> Fitted:
    fitted: dict[str, FittedNetwork] = {
        name: fit_network(bench.fold, [name], networks.Sum, bench.budget, bench.seed) for name in bench.teachers
    }
    best = max(fitted, key=lambda name: fitted[name].score)
    return Fitted(fitted[best].predict, (best,))


def _concatenation(bench: Bench, balanced: bool, scaled: bool) -> Fitted:
    return Fitted(fit_probe(bench.fold, bench.teachers, balanced=balanced, scaled=scaled).predict, bench.teachers)


def _combined(bench: Bench, combine: Callable[[Sequence[Array]], Array]) -> Fitted:
    probes = bench.probes(balanced=True).values()
    return Fitted(lambda part: combine([probe.predict(part) for probe in probes]), bench.teachers)


def _mean(probabilities: Sequence[Array]) -> Array:
    return np.asarray(np.mean(probabilities, axis=0))


def _gated(bench: Bench) -> Fitted:
    inner = bench.out_of_fold(balanced=True)
    return Fitted(products.gated_product(bench.fold, bench.probes(balanced=True), inner), bench.teachers)


def _stacked(bench: Bench) -> Fitted:
    inner = bench.out_of_fold(balanced=False)
    return Fitted(products.stacked(bench.fold, bench.probes(balanced=False), inner), bench.teachers)


def _neighbours(bench: Bench) -> Fitted:
    return Fitted(products.nearest_neighbours(bench.fold, bench.teachers), bench.teachers)


def _network(bench: Bench, fusion: Callable[[int, int], Any]) -> Fitted:
    return Fitted(fit_network(bench.fold, bench.teachers, fusion, bench.budget, bench.seed).predict, bench.teachers)


def _student(bench: Bench, **options: Any) -> Fitted:
    archive = bench.archive
    options = {**options, **bench.options}
    if "batch_size" in options:  # of all splits, of which some may have fewer patches for training
        options["batch_size"] = min(options["batch_size"], len(bench.fold.labels("train")))
    student = train(archive, seed=bench.seed, **options).student
    device = options.get("device")
    return Fitted(
        lambda part: score(student, archive, split=part, device=device).probabilities.astype(np.float64), bench.teachers
    )


def _finetuned(bench: Bench) -> Fitted:
    """Each teacher fine-tuned on the images; the best on val."""
    if bench.images is None:
        raise MismatchError(
            f"{bench.fold.archive.path}: fine-tuned teachers need the images of the features; give images="
        )
    from ..teachers.licences import known_as
    from .finetuning.run import finetune_fold

    options = {"seed": bench.seed, **bench.finetuning}
    names = {name: known_as(name) or name for name in bench.teachers}
    found = {name: finetune_fold(bench.fold, bench.images, own, **options) for name, own in names.items()}
    labels = bench.fold.labels("val")
    best = max(found, key=lambda name: validation_score(found[name]["val"], labels))
    return Fitted(found[best].__getitem__, (best,))


METHODS: Mapping[str, Method] = {
    "best_single": Method(partial(_best_single, balanced=False)),
    "best_single_balanced": Method(partial(_best_single, balanced=True)),
    "best_single_mlp": Method(_best_network, random=True),
    "lr_concat": Method(partial(_concatenation, balanced=False, scaled=False)),
    "lr_concat_balanced": Method(partial(_concatenation, balanced=True, scaled=False)),
    "lr_concat_scaled": Method(partial(_concatenation, balanced=False, scaled=True)),
    "lr_concat_scaled_balanced": Method(partial(_concatenation, balanced=True, scaled=True)),
    "mean_probability": Method(partial(_combined, combine=_mean)),
    "logit_product": Method(partial(_combined, combine=products.log_product)),
    "logit_product_gated": Method(_gated, random=True),
    "stacking": Method(_stacked, random=True),
    "knn": Method(_neighbours),
    "sum": Method(partial(_network, fusion=networks.Sum), random=True),
    "concat_mlp": Method(partial(_network, fusion=networks.Concat), random=True),
    "moe": Method(partial(_network, fusion=networks.MixtureOfExperts), random=True),
    "mamba": Method(partial(_network, fusion=networks.Mamba), random=True),
    "shazam_no_distillation": Method(partial(_student, preset="huncrc", lam=0.0), random=True),
    "shazam_paper": Method(partial(_student, preset="huncrc"), random=True),
    "shazam_authors_script": Method(partial(_student, preset="authors_script"), random=True),
    "shazam": Method(_student, random=True),
    "shazam_levels": Method(partial(_student, block="levels"), random=True, needs="levels"),
    "finetuned_teacher": Method(_finetuned, random=True, needs="images"),
}
SINGLE_TEACHER = "best_single_balanced"  # the reference that answers "does fusing help?"
CONCATENATION = "lr_concat_balanced"  # the reference that answers "does the student help?"
NOT_FUSED = ("best_single", "best_single_balanced", "best_single_mlp", "finetuned_teacher")


def choose_methods(names: Sequence[str] | None, archive: FeatureArchive, images: ImageTable | None) -> tuple[str, ...]:
    """The methods to compare: those named, else all for which the archive has what they need.

    Raises ShazamError for a name that is no method, or one that is given twice.
    """
    if names is None:
        has = {"": True, "images": images is not None, "levels": any(":" in name for name in archive.teachers)}
        return tuple(name for name, method in METHODS.items() if has[method.needs])
    if isinstance(names, str):
        raise ShazamError(f"methods: a list of names expected, found the text {names!r}; write [{names!r}]")
    unknown = [name for name in names if name not in METHODS]
    if unknown or len(set(names)) != len(names) or not names:
        raise ShazamError(f"methods: different names among {', '.join(METHODS)} expected, found {', '.join(names)}")
    return tuple(names)
