"""All models of whole slides on slides with planted signal: each teacher alone, all side by side, and fused.

    python benchmarks/slides_planted.py > benchmarks/results/slides_planted.csv

"rare patches": a slide is of class "b" when a few of its patches are of a rare type, which shows in the features of one
of three teachers alone (`tests/cohorts.py`). `strength` is how far the rare type lies from the others, in columns whose
standard deviation within a type is 0.5 and over all types about 1.1. "hazard": the fraction of such patches decides how
early patients die; "truth" is the C-index of the planted hazard itself. "sites": the features show the hospital alone,
most of whose slides are of one class; folds are dealt with and without regard to hospitals.

One line per model and metric: the value, its 95% interval by bootstrap over patients, and the difference of the fused
model "shazam_abmil" to it, paired, with intervals that hold together for all models of a task.
"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from cohorts import SEEING, TEACHERS, make_cohort, make_hazard, make_sites

import shazam_fast as sf
from shazam_fast.scoring.intervals import simultaneous_intervals
from shazam_fast.slides.cohort.pairs import c_index
from shazam_fast.slides.cohort.targets import SurvivalTargets

FUSED = "shazam_abmil"
SIDE_BY_SIDE = ("mean", "max", "abmil", "gated_abmil")
OPTIONS = {"folds": 3, "epochs": 40, "patience": 40, "dim": 32, "device": "cpu"}
STRENGTHS = (4.0,)
SLIDES = 120


def train_all(archive, targets, **options):
    """{(model, teachers): its training}, all on the same folds."""
    found = {}
    for model in (FUSED, *SIDE_BY_SIDE):
        found[model, "all"] = sf.slides.train(archive, targets, model=model, **OPTIONS, **options)
    selection = sf.slides.select(archive)
    found["fusecpath", "all"] = sf.slides.train(
        archive, targets, model="fusecpath", selection=selection, **OPTIONS, **options
    )
    for teacher in TEACHERS:
        alone = sf.open(archive.path, teachers=[teacher])
        found["gated_abmil", teacher] = sf.slides.train(alone, targets, model="gated_abmil", **OPTIONS, **options)
    return found


def rows(task, strength, trainings, metrics):
    """Lines of the table."""
    fused = trainings[FUSED, "all"]
    for metric in metrics:
        draws = {key: one.drawn.values[metric] for key, one in trainings.items()}
        gains = simultaneous_intervals({k: draws[FUSED, "all"] - v for k, v in draws.items() if k[0] != FUSED})
        for (model, teachers), one in trainings.items():
            numbers = [*vars(one.metrics.values[metric]).values()]
            numbers += [*vars(gains[model, teachers]).values()] if (model, teachers) in gains else []
            sees = "" if teachers == "all" else " (sees it)" if teachers == SEEING else " (blind)"
            yield [task, strength, metric, model, teachers + sees, *(f"{number:.3f}" for number in numbers)]
        yield [task, strength, metric, "constant", "none", f"{fused.metrics.constant[metric]:.3f}"]


def rare_patches(folder):
    for strength in STRENGTHS:
        archive, labels, _ = make_cohort(folder / f"rare-{strength}", slides=SLIDES, sizes=(40, 80), strength=strength)
        yield from rows("rare patches", strength, train_all(archive, labels), ["auroc"])


def hazard(folder):
    archive, table, truth = make_hazard(folder / "hazard", slides=SLIDES, log_ratio=3.5)
    targets = sf.slides.Survival(pd.DataFrame(table), "months", "dead", observed=1)
    known = SurvivalTargets(np.array(table["months"]), np.array(table["dead"], dtype=bool))
    none = np.zeros(SLIDES, dtype=np.int64)
    best = c_index(np.array(list(truth.values())), none, known, np.ones((1, SLIDES)))[0]
    yield ["hazard", 6.0, "c_index", "truth", "none", f"{best:.3f}"]
    yield from rows("hazard", 6.0, train_all(archive, targets, loss="cox"), ["c_index"])


def sites(folder):
    archive, table = make_sites(folder / "sites")
    for task, column in (("sites in all folds", None), ("each site in one fold", "site")):
        options = {**OPTIONS, "sites": column}
        found = {
            (model, "all"): sf.slides.train(archive, pd.DataFrame(table), model=model, **options)
            for model in (FUSED, *SIDE_BY_SIDE)
        }
        yield from rows(task, 4.0, found, ["auroc"])


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    log = csv.writer(sys.stdout, lineterminator="\n")
    spread = ["fused_minus_it", "fused_minus_it_low", "fused_minus_it_high"]
    log.writerow(["task", "strength", "metric", "model", "teachers", "value", "low", "high", *spread])
    with tempfile.TemporaryDirectory() as folder:
        for task in (rare_patches, hazard, sites):
            for row in task(Path(folder)):
                log.writerow(row)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
