"""The search for the preset "recommended": students trained in many ways on the same grouped splits.

    python benchmarks/search_recipe.py oscc.npz herlev.npz --log recipe_search.csv [--splits 100 101 ...]
        [--recipes NAME ...] [--every 4]

Reads archives and .npz files (`feat_<teacher>` [n, d], `labels`, `group`; rows without a label are left out). Trains
every recipe of `RECIPES`, or those named, on every split, and adds one row per recipe, set and way of reading it to the
log: means over the splits of balanced accuracy and weighted F1 on the test rows, and of both on the validation rows.
What was trained is read in several ways at no cost: after the epoch with the best validation score or after the last,
with another share of the log class priors than in training (`balance`), and with the teacher heads' mean logits in
place of a part of the head's (`votes`).

The students of all splits are trained side by side in plain PyTorch (`search_student`). `RECIPES` is the record of what
was tried, results/recipe_search.csv has the figures; fields of `Recipe` that no entry changes were not tried. There,
the first recipes were trained on every fourth column (`every`), and on other splits than `sf.compare` makes with the
same seeds, as the groups were numbered in another order (`split_order`); `votes` was read of the last recipe alone.
"""

import argparse
import csv
import itertools
import math
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from search_student import Students
from torch.nn import functional as F

import shazam_fast as sf
from shazam_fast.annotation.splits import GroupedSplit
from shazam_fast.scoring.metrics import confusion_matrix, selection_metrics, selection_score

PARTS = ("train", "val", "test")
VAL = TEST = 0.2  # shares of the rows, as in `sf.compare`
BALANCES = (0.5, 1.0, 1.5, 2.0, 3.0)
VOTES = (0.0, 0.25, 0.5, 0.75, 1.0)  # weights of the teacher heads' mean logits
RISING = 0.3  # fraction of the steps in which one-cycle raises the learning rate
READ_EVERY = 4  # epochs


@dataclass(frozen=True)
class Recipe:
    """What a training may have. `heads` weighs the mean loss of a linear head on each teacher's token."""

    block: str = "bare"
    depth: int = 2
    dim: int = 128
    lam: float = 0.0
    feature_dropout: float = 0.5
    per_patch: bool = False  # a feature-dropout mask per patch, not one per batch
    teacher_dropout: float = 0.0
    priors: float = 1.0  # times the log class priors are added to the logits in training
    heads: float = 0.3
    mixup: float = 0.0
    smoothing: float = 0.0
    epochs: int = 40
    batch_size: int = 64
    lr: float = 1e-3
    one_cycle: bool = True
    weight_decay: float = 0.01
    ema: float = 0.0  # decay per step; 0: none


START = Recipe()
HEADS = replace(START, heads=2.0, feature_dropout=0.7)
RECIPES = {
    "bare": START,
    "residual": replace(START, block="residual"),
    "bare no heads": replace(START, heads=0.0),
    "bare heads 2": replace(START, heads=2.0),
    "bare lam .05": replace(START, lam=0.05),
    "bare dropout .8": replace(START, feature_dropout=0.8),
    "heads": HEADS,
    "heads 5": replace(HEADS, heads=5.0),
    "heads teacher dropout .3": replace(HEADS, teacher_dropout=0.3),
    "heads lr .003": replace(HEADS, lr=3e-3),
    "lr .0001": replace(START, heads=2.0, lr=1e-4),
    "10 epochs, lr .0003": replace(START, heads=2.0, lr=3e-4, epochs=10),
    "priors 2": replace(START, heads=2.0, priors=2.0),
    "priors 2, mixup .4": replace(START, heads=2.0, priors=2.0, mixup=0.4),
    "priors 2, dropout .8": replace(START, heads=2.0, priors=2.0, feature_dropout=0.8),
    "mixup .4": replace(START, heads=2.0, mixup=0.4),
    "priors 3": replace(START, heads=2.0, priors=3.0),
}


@dataclass(frozen=True)
class Patches:
    """One split by part: standardised features [n, W], labels int64 [n]; dims {teacher: d}."""

    features: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    dims: dict[str, int]
    n_classes: int

    @property
    def log_priors(self):
        """Of the training rows, [C]."""
        return (torch.bincount(self.labels["train"], minlength=self.n_classes) / len(self.labels["train"])).log()


def read(path, every=1):
    """Of every so-many-th column: features [n, W], labels [n], groups [n], slides [n], dims of the labelled rows."""
    if path.suffix == ".npz":
        content = np.load(path)
        labels = content["labels"].astype(np.int64)
        rows = np.flatnonzero(labels >= 0)
        parts = {str(name): content[f"feat_{name}"][rows, ::every].astype(np.float32) for name in content["teachers"]}
        groups, slides = content["group"][rows], None
    else:
        archive = sf.open(path)
        labels, rows = archive.labels, np.flatnonzero(archive.labels >= 0)
        parts = {name: archive.gather(rows)[:, archive.columns_of(name)][:, ::every] for name in archive.teachers}
        groups, slides = archive.group_index[rows], archive.slide_index[rows]
    dims = {name: x.shape[1] for name, x in parts.items()}
    return np.concatenate(list(parts.values()), axis=1), labels[rows], groups, slides, dims


def split(table, seed):
    """The table in a split that `sf.compare` makes with this seed."""
    features, labels, groups, slides, dims = table
    codes = GroupedSplit(VAL, TEST, seed).assign(labels, groups, slides)
    x = {part: torch.from_numpy(features[codes == code]) for code, part in enumerate(PARTS)}
    y = {part: torch.from_numpy(labels[codes == code]) for code, part in enumerate(PARTS)}
    scale, mean = torch.std_mean(x["train"], dim=0, correction=0)
    scale = torch.where(scale > 1e-6 * mean.abs(), scale, 1.0)
    return Patches({part: (v - mean) / scale for part, v in x.items()}, y, dims, int(labels.max()) + 1)


class Trainer:
    """Students of one recipe side by side, one per split."""

    def __init__(self, recipe, splits, seed):
        self.recipe, self.splits = recipe, splits
        self.random = torch.Generator().manual_seed(seed)
        dims, C = list(splits[0].dims.values()), splits[0].n_classes
        self.students = Students(len(splits), dims, C, recipe.dim, recipe.depth, recipe.block, self.random)
        self.priors = torch.stack([patches.log_priors for patches in splits])[:, None]  # [S, 1, C]
        trained = self.students.parameters()
        self.optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        self.epoch_steps = min(len(patches.labels["train"]) for patches in splits) // recipe.batch_size
        self.average = [p.detach().clone() for p in trained] if recipe.ema else []
        self.step = 0

    def epoch(self):
        """One pass over the training rows, without what does not fill a batch."""
        sizes = [len(patches.labels["train"]) for patches in self.splits]
        orders = [torch.randperm(n, generator=self.random) for n in sizes]
        B = self.recipe.batch_size
        for start in range(0, self.epoch_steps * B, B):
            pairs = [(patches, order[start : start + B]) for patches, order in zip(self.splits, orders, strict=True)]
            x = torch.stack([patches.features["train"][rows] for patches, rows in pairs])  # [S, B, W]
            labels = torch.stack([patches.labels["train"][rows] for patches, rows in pairs])  # [S, B]
            self.optimizer.param_groups[0]["lr"] = self.recipe.lr * self._rate()
            self.optimizer.zero_grad()
            self._loss(x, labels).sum().backward()
            self.optimizer.step()
            self.step += 1
            if self.recipe.ema:
                decay = min(self.recipe.ema, self.step / (self.step + 10))
                torch._foreach_lerp_(self.average, [p.detach() for p in self.students.parameters()], 1 - decay)

    @torch.no_grad()
    def logits(self, part):
        """Logits of the head and mean of the teachers' [2, n, C] of every student on its own split's part.

        With averaged parameters where there are such.
        """
        own = [p.detach().clone() for p in self.students.parameters()] if self.recipe.ema else []
        self.students.put(self.average)
        found = [self.students.alone(s).both_logits(patches.features[part]) for s, patches in enumerate(self.splits)]
        self.students.put(own)
        return found

    def _rate(self):
        done = self.step / (self.recipe.epochs * self.epoch_steps)
        if not self.recipe.one_cycle:
            return 1.0
        if done < RISING:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * done / RISING)) / 2
        return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (done - RISING) / (1 - RISING))) / 2

    def _loss(self, x, labels):
        """Loss of every student, [S]."""
        recipe = self.recipe
        x = self._drop_features(x)
        share, other = 1.0, labels
        if recipe.mixup:
            share = float(np.random.default_rng([self.step, 7]).beta(recipe.mixup, recipe.mixup))
            x, other = share * x + (1 - share) * x.flip(1), labels.flip(1)
        present = self._drop_teachers(x.shape[:2])
        tokens = self.students.tokens(x)  # [S, B, N, D]
        fused, _ = self.students.fuse(tokens, present)
        loss = self._cross_entropy(self.students.head(fused), labels, other, share).mean(dim=1)
        if recipe.lam:
            loss = loss + recipe.lam * _distillation(fused, tokens, present)
        if recipe.heads:
            single = self.students.teacher_logits(tokens).flatten(1, 2)  # [S, B*N, C]
            N = tokens.shape[2]
            repeated = [y.repeat_interleave(N, dim=1) for y in (labels, other)]
            each = self._cross_entropy(single, *repeated, share)
            loss = loss + recipe.heads * (each if present is None else each * present.flatten(1)).mean(dim=1)
        return loss

    def _cross_entropy(self, logits, labels, other, share):
        logits = (logits + self.recipe.priors * self.priors).transpose(1, 2)  # [S, C, n]
        options = {"reduction": "none", "label_smoothing": self.recipe.smoothing}
        first = F.cross_entropy(logits, labels, **options)
        return first if share == 1.0 else share * first + (1 - share) * F.cross_entropy(logits, other, **options)

    def _drop_features(self, x):
        p = self.recipe.feature_dropout
        if not p:
            return x
        shape = x.shape if self.recipe.per_patch else (len(x), 1, x.shape[2])
        return x * ((torch.rand(shape, generator=self.random) >= p) / (1 - p))

    def _drop_teachers(self, shape):
        p = self.recipe.teacher_dropout
        if not p:
            return None
        draw = torch.rand(*shape, len(self.splits[0].dims), generator=self.random)
        return (draw >= p) | (draw == draw.amax(dim=2, keepdim=True))


def _distillation(fused, tokens, present):
    """Cosine and Huber losses (norm, delta 1) of eqs. (5)-(7), summed over teachers, [S]."""
    target = fused[:, :, None]
    distance = (target - tokens).square().sum(dim=3).clamp_min(1e-12).sqrt()
    huber = torch.where(distance <= 1, distance.square() / 2, distance - 0.5)
    losses = 1 - F.cosine_similarity(target, tokens, dim=3) + huber  # [S, B, N]
    return (losses if present is None else losses * present).sum(dim=2).mean(dim=1)


def train(recipe, splits, seed):
    """Train one student per split. Returns logits {part: [split][epoch] [n, C]} and the trainer."""
    trainer = Trainer(recipe, splits, seed)
    found = {"val": [[] for _ in splits], "test": [[] for _ in splits]}
    for epoch in range(recipe.epochs):
        trainer.epoch()
        if (recipe.epochs - 1 - epoch) % READ_EVERY == 0:
            for part, histories in found.items():
                for history, logits in zip(histories, trainer.logits(part), strict=True):
                    history.append(logits)
    return found, trainer


def scores(logits, labels, n_classes):
    """Balanced accuracy and weighted F1 of logits [n, C]."""
    return selection_metrics(confusion_matrix(labels.numpy(), logits.argmax(dim=1).numpy(), n_classes))


def readings(recipe, patches, val, test):
    """{(selection, balance, votes): (test BA, test wF1, val BA, val wF1)} of the epochs' logits on one split."""
    y, C, found = patches.labels, patches.n_classes, {}
    for balance, votes in itertools.product(BALANCES, VOTES):
        offset = patches.log_priors * (recipe.priors - balance)

        def read(logits, part, offset=offset, votes=votes):
            return scores((1 - votes) * logits[0] + votes * logits[1] + offset, y[part], C)

        values = [read(logits, "val") for logits in val]
        best = int(np.argmax([selection_score(*value) for value in values]))
        for selection, chosen in (("best", best), ("last", len(val) - 1)):
            found[selection, balance, votes] = (*read(test[chosen], "test"), *values[chosen])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--splits", nargs="+", type=int, default=list(range(100, 106)))
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th column of each teacher")
    parser.add_argument("--dim", type=int, default=START.dim, help="width of the students")
    arguments = parser.parse_args()
    columns = ["recipe", "set", "every", "splits", "selection", "balance", "votes", "balanced_accuracy", "weighted_f1"]
    columns += ["val_balanced_accuracy", "val_weighted_f1", "seconds", *(field.name for field in fields(Recipe))]
    fresh = not arguments.log.exists()
    tables = {path.stem: read(path, arguments.every) for path in arguments.sets}
    splits = {name: [split(table, seed) for seed in arguments.splits] for name, table in tables.items()}
    with arguments.log.open("a", newline="") as file:
        log = csv.writer(file)
        if fresh:
            log.writerow(columns)
        for name in arguments.recipes:
            recipe = replace(RECIPES[name], dim=arguments.dim)
            for data, parts in splits.items():
                started = time.perf_counter()
                logits, _ = train(recipe, parts, 0)
                found = [readings(recipe, *each) for each in zip(parts, logits["val"], logits["test"], strict=True)]
                seconds = (time.perf_counter() - started) / len(parts)
                for key in found[0]:
                    means = np.mean([reading[key] for reading in found], axis=0)
                    values = [*(f"{value:.4f}" for value in means), f"{seconds:.1f}"]
                    chosen = " ".join(map(str, arguments.splits))
                    log.writerow([name, data, arguments.every, chosen, *key, *values, *asdict(recipe).values()])
                    print(f"{name:26} {data:7} {key[0]} {key[1]:4} {key[2]:4} " + " ".join(values), flush=True)
                file.flush()


if __name__ == "__main__":
    main()
