"""Do teacher shares mean something? What withholding a teacher changes, by its share, for recipes of the search.

    python benchmarks/recipe_shares.py oscc.npz herlev.npz --recipes NAME ... --log recipe_shares.csv

Trains bare recipes of `search_recipe` on the search's splits, as they are and with a teacher of pure noise added. The
influence of a teacher on a test patch is by how much the probability of the predicted class changes when the teacher is
withheld. One row per recipe and set, means over test patches and splits:
    largest, smallest   influence of the teacher with the patch's largest and smallest share
    larger              fraction of patches on which the first exceeds the second
    correlation         rank correlation of the teachers' mean shares and mean influences
    noise, least, mean  influence of the noise teacher, the least and the mean of the others
    noise_share         its mean share (1 / teachers: no different from the others)
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from search_recipe import RECIPES, read, split, train

NOISE_DIM = 1024
COLUMNS = ("largest", "smallest", "larger", "correlation", "noise", "least", "mean", "noise_share")


@torch.no_grad()
def influences(students, x):
    """Shares and influences [n, N] of every teacher on every patch of standardised features [n, W], for one student."""
    tokens = students.tokens(x[None])
    fused, shares = students.fuse(tokens, None)
    probability, predicted = students.head(fused)[0].softmax(dim=1).max(dim=1)
    n, N = shares.shape[1:]
    changes = []
    for teacher in range(N):
        present = torch.ones(1, n, N, dtype=torch.bool)
        present[:, :, teacher] = False
        without = students.head(students.fuse(tokens, present)[0])[0].softmax(dim=1)
        changes.append((probability - without[torch.arange(n), predicted]).abs())
    return shares[0].numpy(), torch.stack(changes, dim=1).numpy()


def with_noise(table, seed):
    """The table with a last teacher of standard normal noise."""
    features, labels, groups, slides, dims = table
    noise = np.random.default_rng(seed).standard_normal((len(features), NOISE_DIM), dtype=np.float32)
    return np.concatenate([features, noise], axis=1), labels, groups, slides, {**dims, "noise": NOISE_DIM}


def measure(recipe, table, seeds):
    """The figures of every split."""
    plain = [split(table, seed) for seed in seeds]
    noisy = [split(with_noise(table, seed), seed) for seed in seeds]
    students, with_one_more = (train(recipe, splits, 0)[1].students for splits in (plain, noisy))
    found = []
    for s, patches in enumerate(plain):
        shares, changes = influences(students.alone(s), patches.features["test"])
        rows = np.arange(len(shares))
        largest, smallest = changes[rows, shares.argmax(axis=1)], changes[rows, shares.argmin(axis=1)]
        correlation = spearmanr(shares.mean(axis=0), changes.mean(axis=0)).statistic
        noise_shares, others = influences(with_one_more.alone(s), noisy[s].features["test"])
        *others, noise = others.mean(axis=0)
        found.append((
            largest.mean(), smallest.mean(), (largest > smallest).mean(), correlation, noise, min(others),
            np.mean(others), noise_shares.mean(axis=0)[-1],
        ))  # fmt: skip
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--splits", nargs="+", type=int, default=[100, 101])
    parser.add_argument("--recipes", nargs="+", required=True)
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th column of each teacher")
    parser.add_argument("--dim", type=int, default=128, help="width of the students")
    arguments = parser.parse_args()
    fresh = not arguments.log.exists()
    with arguments.log.open("a", newline="") as file:
        log = csv.writer(file)
        if fresh:
            log.writerow(["recipe", "set", "every", "dim", "splits", *COLUMNS])
        for path in arguments.sets:
            table = read(path, arguments.every)
            for name in arguments.recipes:
                recipe = replace(RECIPES[name], dim=arguments.dim)
                found = np.mean(measure(recipe, table, arguments.splits), axis=0)
                values = [f"{value:.4f}" for value in found]
                chosen = " ".join(map(str, arguments.splits))
                log.writerow([name, path.stem, arguments.every, arguments.dim, chosen, *values])
                print(f"{name:28} {path.stem:8}", *map("=".join, zip(COLUMNS, values, strict=True)), flush=True)
                file.flush()


if __name__ == "__main__":
    main()
