"""The table behind the claim of the preset "recommended": every method of comparisons, and the student's differences.

    shazam-fast compare oscc.archive --out compared/oscc
    shazam-fast compare herlev.archive --out compared/herlev
    python benchmarks/recipe_claim.py compared/oscc compared/herlev > benchmarks/results/recipe_claim.csv

The splits are those of `sf.compare` with its own seed, which `search_recipe.py` did not use. Intervals are 95% by
bootstrap over groups; those of the differences hold together for all methods of a set.
"""

import argparse
import csv
import sys
from pathlib import Path

import shazam_fast as sf
from shazam_fast.scoring.intervals import Tally, bootstrap_metrics, simultaneous_intervals

STUDENT = "shazam"  # what `sf.train` trains by default
MEANS = ("accuracy", "auroc", "calibration_error")


def spread(name):
    """Names of the three columns of an interval."""
    return [name, f"{name}_low", f"{name}_high"]


def rows(path):
    """One row per method of a comparison, the best first."""
    found = sf.open_comparison(path)
    tallies = {}
    for cell in found.cells:
        tallies.setdefault(cell.method, []).append(Tally(cell.labels, cell.predicted, cell.groups))
    differences = []
    for draws in bootstrap_metrics(tallies, len(found.classes)):
        others = {name: draws[STUDENT] - values for name, values in draws.items() if name != STUDENT}
        differences.append(simultaneous_intervals(others))
    for name in sorted(found.balanced_accuracy, key=lambda name: -found.balanced_accuracy[name].value):
        intervals = [found.balanced_accuracy[name], found.weighted_f1[name]]
        numbers = [number for one in intervals for number in vars(one).values()]
        numbers += [found.mean(name, metric) for metric in MEANS]
        numbers += [number for one in differences if name in one for number in vars(one[name]).values()]
        yield [path.name, name, *(f"{number:.4f}" for number in numbers)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path, help="directories that compare wrote")
    log = csv.writer(sys.stdout, lineterminator="\n")
    columns = ["set", "method", *spread("balanced_accuracy"), *spread("weighted_f1"), *MEANS]
    log.writerow([*columns, *spread("student_minus_it"), *spread("student_minus_it_f1")])
    for path in parser.parse_args().comparisons:
        log.writerows(rows(path))


if __name__ == "__main__":
    main()
