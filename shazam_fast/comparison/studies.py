"""Named studies: the same methods under other settings, teachers or amounts of labels, on the same splits.

A study is a comparison whose "methods" are settings:

- "depth": a student with 1, 3, 5 and 7 attention layers (Table 2 of the paper). Reference: depth 5, the paper's.
- "lambda": a student with several weights of the distillation losses (Table 3). Reference: lambda 0, no distillation.
- "leave-one-out": all teachers, and all but each one. Reference: all teachers.
- "subsets": the best 1, 2, ... teachers. On every split they are added one by one, each time the one with which the
  logit product of balanced single-teacher probes does best on val; the method (by default that product) is then fitted
  with them and judged on test. Reference: all teachers.
- "learning-curve": training on a fraction of the groups (patients, slides or patches). Reference: the first method, at
  each fraction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..archive.archive import FeatureArchive
from ..errors import MismatchError
from ..runtime.checks import require_choice
from .fold import Fold
from .methods import CONCATENATION, METHODS, SINGLE_TEACHER, Bench, Fitted, Method
from .probes import validation_score
from .products import log_product

DEPTHS = (1, 3, 5, 7)
LAMBDAS = (0.0, 0.01, 0.05, 0.1, 0.5, 1.0)
FRACTIONS = (0.125, 0.25, 0.5, 1.0)  # of the training groups
STUDENTS = tuple(name for name in METHODS if name.startswith("shazam"))

View = Callable[[Bench], Bench]
References = dict[str, tuple[str, ...]]


def unchanged(bench: Bench) -> Bench:
    """The bench as it is."""
    return bench


@dataclass(frozen=True)
class Task:
    """A method, and the bench that it is fitted with, made of that of the split; tasks of one `key` share it."""

    method: Method
    view: View = unchanged
    key: str = ""


Tasks = dict[str, Task]


def compared_methods(names: Sequence[str]) -> tuple[Tasks, References]:
    """The tasks of a comparison of methods, and its references."""
    return {name: Task(METHODS[name]) for name in names}, {r: tuple(names) for r in (SINGLE_TEACHER, CONCATENATION)}


def _depth(archive: FeatureArchive, methods: Sequence[str]) -> tuple[Tasks, References]:
    return _options("depth", "depth", DEPTHS, 5, methods)


def _lambda(archive: FeatureArchive, methods: Sequence[str]) -> tuple[Tasks, References]:
    return _options("lambda", "lam", LAMBDAS, 0.0, methods)


def _options(
    word: str, option: str, values: Sequence[float], usual: float, methods: Sequence[str]
) -> tuple[Tasks, References]:
    """Students with several values of an option of `TrainConfig`."""
    if others := [name for name in methods if name not in STUDENTS]:
        raise MismatchError(f"study {word!r}: students expected ({', '.join(STUDENTS)}), found {', '.join(others)}")

    def set_option(bench: Bench, value: float) -> Bench:
        return replace(bench, options={**bench.options, option: value})

    tasks: Tasks = {}
    references: References = {}
    for name in methods:
        labels = {value: _label(f"{word} {value:g}", name, methods) for value in values}
        tasks |= {
            labels[value]: Task(METHODS[name], partial(set_option, value=value), labels[value]) for value in values
        }
        references[labels[usual]] = tuple(labels.values())
    return tasks, references


def _leave_one_out(archive: FeatureArchive, methods: Sequence[str]) -> tuple[Tasks, References]:
    teachers = _several_teachers(archive, "leave-one-out")
    sets = {
        "all teachers": teachers,
        **{f"without {name}": tuple(t for t in teachers if t != name) for name in teachers},
    }
    tasks: Tasks = {}
    references: References = {}
    for name in methods:
        labels = {words: _label(words, name, methods) for words in sets}
        for words, label in labels.items():
            tasks[label] = Task(METHODS[name], partial(Bench.choosing, teachers=sets[words]), words)
        references[labels["all teachers"]] = tuple(labels.values())
    return tasks, references


def _subsets(archive: FeatureArchive, methods: Sequence[str]) -> tuple[Tasks, References]:
    N = len(_several_teachers(archive, "subsets"))
    tasks: Tasks = {}
    references: References = {}
    for name in methods:
        labels = [_label(f"{size} of {N} teachers", name, methods) for size in range(1, N + 1)]
        for size, label in enumerate(labels, start=1):
            tasks[label] = Task(replace(METHODS[name], fit=partial(_fit_best, METHODS[name], size)))
        references[labels[-1]] = tuple(labels)
    return tasks, references


def _fit_best(method: Method, size: int, bench: Bench) -> Fitted:
    return method.fit(bench.choosing(forward_selection(bench)[:size]))


def forward_selection(bench: Bench) -> tuple[str, ...]:
    """All teachers in the order in which they are added: each time the one that does best on val with those before.

    Predictions are the logit product of balanced single-teacher probes, which are fitted once for all sets.
    """

    def choose() -> tuple[str, ...]:
        probes, labels = bench.probes(balanced=True), bench.fold.labels("val")
        p = {name: probe.probabilities["val"] for name, probe in probes.items()}
        chosen: tuple[str, ...] = ()
        while len(chosen) < len(p):
            scores = {
                name: validation_score(log_product([p[t] for t in (*chosen, name)]), labels)
                for name in p
                if name not in chosen
            }
            chosen = (*chosen, max(scores, key=lambda name: scores[name]))
        return chosen

    order: tuple[str, ...] = bench.fold.shared.get(("forward selection", bench.teachers), choose)
    return order


def _learning_curve(archive: FeatureArchive, methods: Sequence[str]) -> tuple[Tasks, References]:
    tasks: Tasks = {}
    references: References = {}
    for fraction in FRACTIONS:
        words = f"{100 * fraction:g}% of the training groups"
        labels = [_label(words, name, methods) for name in methods]
        for name, label in zip(methods, labels, strict=True):
            tasks[label] = Task(METHODS[name], partial(fewer_groups, fraction=fraction), words)
        references[labels[0]] = tuple(labels)
    return tasks, references


def fewer_groups(bench: Bench, fraction: float) -> Bench:
    """The bench with a fraction of the training groups, chosen by the split's seed.

    Smaller sets lie within larger ones. Every class keeps a group, so that a small fraction may hold a little more than
    was asked for.
    """
    if fraction >= 1:
        return bench
    fold = bench.fold
    rows, labels = fold.archive.split("train"), fold.labels("train")
    order = order_groups(fold.groups("train"), labels, fold.seed)
    groups = np.unique(fold.groups("train"))
    most = max(round(fraction * len(groups)), count_needed(order, fold.groups("train"), labels))
    splits = fold.archive.splits.copy()
    splits[rows[~np.isin(fold.groups("train"), order[:most])]] = 255  # none
    return replace(bench, fold=Fold(fold.archive.with_splits(splits), fold.seed))


def order_groups(groups: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The distinct groups in a random order that begins with one group of each class."""
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    first: list[int] = []
    for label in np.unique(labels):
        having = set(groups[labels == label].tolist())
        if not having & set(first):
            first.append(next(group for group in order.tolist() if group in having))
    return np.array([*first, *(group for group in order.tolist() if group not in first)], dtype=np.int64)


def count_needed(order: NDArray[np.int64], groups: NDArray[np.int64], labels: NDArray[np.int64]) -> int:
    """Number of groups, from the first of the order on, that together hold all classes."""
    seen: set[int] = set()
    for count, group in enumerate(order.tolist(), start=1):
        seen |= set(labels[groups == group].tolist())
        if len(seen) == len(np.unique(labels)):
            return count
    return len(order)


def _label(words: str, method: str, methods: Sequence[str]) -> str:
    """The name of a setting; that of its method is needed where there are several."""
    return words if len(methods) == 1 else f"{method}, {words}"


def _several_teachers(archive: FeatureArchive, study: str) -> tuple[str, ...]:
    if len(archive.teachers) < 2:
        raise MismatchError(f"{archive.path}: study {study!r} needs two teachers, found {', '.join(archive.teachers)}")
    return tuple(archive.teachers)


_Make = Callable[[FeatureArchive, Sequence[str]], tuple[Tasks, References]]
STUDIES: Mapping[str, tuple[_Make, tuple[str, ...]]] = {  # how its tasks are made; its methods by default
    "depth": (_depth, ("shazam_paper",)),
    "lambda": (_lambda, ("shazam_paper",)),
    "leave-one-out": (_leave_one_out, ("logit_product",)),
    "subsets": (_subsets, ("logit_product",)),
    "learning-curve": (_learning_curve, (SINGLE_TEACHER, CONCATENATION, "shazam")),
}


def default_methods(study: str) -> tuple[str, ...]:
    """The methods of a study where none are named. Raises ShazamError for an unknown study."""
    return STUDIES[require_choice("study", study, tuple(STUDIES))][1]


def study_tasks(study: str, archive: FeatureArchive, methods: Sequence[str]) -> tuple[Tasks, References]:
    """The settings of a study as tasks, and its references.

    Raises MismatchError when the study needs other methods, or more teachers.
    """
    return STUDIES[study][0](archive, methods)
