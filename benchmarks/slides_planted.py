"""All models of whole slides on slides with planted signal: each teacher alone, all side by side, and fused.

    python benchmarks/slides_planted.py > benchmarks/results/slides_planted.csv

"2 rare patches": a slide is of class "b" when two of its patches are of a rare type, which shows in the features of one
of three teachers alone (`tests/cohorts.py`). `strength` is how far the rare type lies from the others, in columns whose
standard deviation within a type is 0.5 and over all types about 1.1; the mean of a slide moves by strength * 2 / number
of patches, so of a strong type it tells as well. Three cohorts of 120 slides each, with types, folds and initial values
of their own; a metric is its mean over the cohorts. "hazard": the fraction of such patches decides how early patients
die; "truth" is the C-index of the planted hazard itself. "sites": the features show the hospital alone, most of whose
slides are of one class; folds are dealt with and without regard to hospitals.

"real patches": bags of real images, seen by three real networks, where the file of features given with --patches is
there: a bag is of class "b" when 6 of its 55 to 59 cells are of the last class of the file (carcinoma in situ)
among cells of the others. Training, validation and test share no cell and no slide of origin; the bags of one fold are
drawn from the same cells, so the intervals, over bags, are too narrow.

The planted features have few columns, so AdamW needs a larger learning rate than for real teachers: a step changes a
token by about the learning rate times the number of columns. LR was chosen on cohorts that are not in this table, one
for all models; real features have the default.

One line per model and metric: the value, its 95% interval by bootstrap over patients, and the difference of the fused
model "shazam_abmil" to it, paired, with intervals that hold together for all models of a task.
"""

import argparse
import csv
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from cohorts import SEEING, TEACHERS, make_cohort, make_hazard, make_sites

import shazam_fast as sf
from shazam_fast.scoring.intervals import interval, simultaneous_intervals
from shazam_fast.slides.cohort.pairs import c_index
from shazam_fast.slides.cohort.targets import SurvivalTargets

FUSED = "shazam_abmil"
SIDE_BY_SIDE = ("mean", "max", "abmil", "gated_abmil")
LR = 1e-2
OPTIONS = {"folds": 3, "epochs": 60, "dim": 32, "lr": LR, "device": "cpu"}
RARE = ((4.0, (40, 80)), (6.0, (40, 80)), (10.0, (40, 80)))  # strength, patches per slide
COHORTS = (0, 1, 2)  # their seeds
SLIDES = 120
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "herlev.npz"
REAL_TEACHERS = ("gleason_mobilenet", "mobilenet_v1", "resnet50")
REAL_OPTIONS = {**OPTIONS, "lr": 1e-3, "folds": "fold"}  # the default rate
TELLING = 6  # cells of about 57


def train_all(archive, targets, **options):
    """{(model, teachers): its training}, all on the same folds."""
    options = {**OPTIONS, **options}
    found = {}
    for model in (FUSED, *SIDE_BY_SIDE):
        found[model, "all"] = sf.slides.train(archive, targets, model=model, **options)
    return found


def train_others(archive, targets, **options):
    """The same of FuseCPath on selected patches, and of each teacher alone."""
    options = {**OPTIONS, **options}
    selection = sf.slides.select(archive)
    found = {("fusecpath", "all"): sf.slides.train(archive, targets, model="fusecpath", selection=selection, **options)}
    for teacher in TEACHERS:
        alone = sf.open(archive.path, teachers=[teacher])
        found["gated_abmil", teacher] = sf.slides.train(alone, targets, model="gated_abmil", **options)
    return found


def rows(task, strength, cohorts, metric):
    """Lines of the table, of the trainings on one cohort or several."""
    draws = {key: np.mean([one[key].drawn.values[metric] for one in cohorts], axis=0) for key in cohorts[0]}
    gains = simultaneous_intervals({key: draws[FUSED, "all"] - own for key, own in draws.items() if key[0] != FUSED})
    for (model, teachers), own in draws.items():
        numbers = [*vars(interval(own)).values()]
        numbers += [*vars(gains[model, teachers]).values()] if (model, teachers) in gains else []
        sees = "" if teachers == "all" else " (sees it)" if teachers == SEEING else " (blind)"
        yield [task, strength, metric, model, teachers + sees, *(f"{number:.3f}" for number in numbers)]
    yield [task, strength, metric, "constant", "none", "0.500"]


def rare_patches(folder):
    for number, (strength, sizes) in enumerate(RARE):
        found = []
        for seed in COHORTS:
            archive, labels, _ = make_cohort(
                folder / f"rare-{number}-{seed}", slides=SLIDES, telling=0.01, sizes=sizes, strength=strength, seed=seed
            )
            found.append(train_all(archive, labels, seed=seed))
            if number == 0:
                found[-1] |= train_others(archive, labels, seed=seed)
        yield from rows(f"2 rare patches of {sum(sizes) // 2}", strength, found, "auroc")


def make_real(path, file, telling, cells=(55, 60), seed=0):
    """Bags of rows of a file of features `feat_<teacher>`, `labels` and `group`; half of them hold `telling` rows of
    the last class.

    Returns the archive, and the table of slide_id, label and fold.
    """
    data, rng = np.load(file), np.random.default_rng(seed)
    labels, groups = data["labels"], data["group"]
    last = labels.max()
    fold_of = np.full(len(labels), -1)
    for kind in (labels == last, (labels >= 0) & (labels != last)):
        names = rng.permutation(np.unique(groups[kind & (fold_of < 0)]))
        for number, name in enumerate(names.tolist()):
            fold_of[groups == name] = number % 3
    rows, names, table = [], [], {"slide_id": [], "label": [], "fold": []}
    for bag in range(SLIDES):
        fold, positive, n = bag % 3, bag // 3 % 2, int(rng.integers(*cells))
        common = np.flatnonzero((fold_of == fold) & (labels >= 0) & (labels != last))
        rare = np.flatnonzero((fold_of == fold) & (labels == last))
        count = telling * positive
        rows += [rng.choice(common, n - count, replace=False), rng.choice(rare, count, replace=False)]
        names += [f"bag{bag:03d}"] * n
        for column, value in zip(table, (f"bag{bag:03d}", "ab"[positive], f"fold {fold}"), strict=True):
            table[column].append(value)
    chosen = np.concatenate(rows)
    features = {name: data[f"feat_{name}"][chosen] for name in REAL_TEACHERS}
    return sf.open(sf.write_archive(path, features, slides=names)), pd.DataFrame(table)


def real_patches(folder, file):
    archive, table = make_real(folder / "real", file, TELLING)
    yield from rows(f"{TELLING} real patches of 57", "", [train_all(archive, table, **REAL_OPTIONS)], "auroc")


def hazard(folder):
    archive, table, truth = make_hazard(folder / "hazard", slides=SLIDES, log_ratio=3.5)
    targets = sf.slides.Survival(pd.DataFrame(table), "months", "dead", observed=1)
    known = SurvivalTargets(np.array(table["months"]), np.array(table["dead"], dtype=bool))
    none = np.zeros(SLIDES, dtype=np.int64)
    best = c_index(np.array(list(truth.values())), none, known, np.ones((1, SLIDES)))[0]
    yield ["hazard", 6.0, "c_index", "truth", "none", f"{best:.3f}"]
    found = train_all(archive, targets, loss="cox") | train_others(archive, targets, loss="cox")
    yield from rows("hazard", 6.0, [found], "c_index")


def sites(folder):
    archive, table = make_sites(folder / "sites")
    for task, column in (("sites in all folds", None), ("each site in one fold", "site")):
        found = train_all(archive, pd.DataFrame(table), sites=column)
        yield from rows(task, 4.0, [found], "auroc")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=Path, default=REAL, help="features of real images, an .npz file")
    file = parser.parse_args().patches
    torch.set_num_threads(1)
    log = csv.writer(sys.stdout, lineterminator="\n")
    spread = ["fused_minus_it", "fused_minus_it_low", "fused_minus_it_high"]
    log.writerow(["task", "strength", "metric", "model", "teachers", "value", "low", "high", *spread])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tasks = [rare_patches(place), hazard(place), sites(place)]
        if file.exists():
            tasks.append(real_patches(place, file))
        else:
            print(f"{file}: no such file, so there are no real patches in the table", file=sys.stderr)
        for row in itertools.chain(*tasks):
            log.writerow(row)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
