"""What selecting patches of a slide costs, by their number: teachers of 768, 2,560 and 1,536 columns, 50 clusters.

    python benchmarks/slides_selection.py > benchmarks/results/slides_selection.csv

Features are made block by block, so reading them is left out. Seconds are of the processor, on one thread: "project"
for the random projection of the views, "cluster" for what follows. `memory_mb` is what the process grew by at most.
"""

import argparse
import csv
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from shazam_fast.slides.selecting.clustering import Views, cluster, project_rows
from shazam_fast.slides.selecting.spectral import cluster_spectral

TEACHERS = {"conch_v15": 768, "virchow2": 2560, "gigapath": 1536}
COLUMNS = sum(TEACHERS.values())
BLOCK, CLUSTERS = 5000, 50
PATCHES = (1000, 5000, 15_000, 50_000, 100_000, 200_000)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cost(method, patches):
    """Seconds of both parts, megabytes, and the number of clusters found."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, COLUMNS), dtype=np.float32)
    block = rng.standard_normal((min(BLOCK, patches), COLUMNS), dtype=np.float32)
    block += 0.5 * centres[rng.integers(0, 60, len(block))]
    views, before, started = Views(TEACHERS, 0), peak(), time.process_time()
    points = project_rows(views, (block * (1 + 0.01 * i) for i in range(patches // len(block))), patches)
    projected = time.process_time()
    found = cluster(points, CLUSTERS, 0) if method == "kmeans" else cluster_spectral(points, views.widths, CLUSTERS, 0)
    return projected - started, time.process_time() - projected, peak() - before, len(np.unique(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=2, metavar=("METHOD", "PATCHES"), help="one case, in a process of its own")
    case = parser.parse_args().case
    log = csv.writer(sys.stdout, lineterminator="\n")
    if case is not None:
        torch.set_num_threads(1)
        method, patches = case[0], int(case[1])
        project, clustering, memory, clusters = cost(method, patches)
        per_patch = 1e6 * (project + clustering) / patches
        log.writerow([method, patches, *(f"{x:.2f}" for x in (project, clustering, per_patch, memory)), clusters])
        return
    log.writerow(["method", "patches", "project_s", "cluster_s", "us_per_patch", "memory_mb", "clusters"])
    for method in ("kmeans", "spectral"):
        for patches in PATCHES:
            sys.stdout.flush()
            subprocess.run([sys.executable, __file__, "--case", method, str(patches)], check=True)


if __name__ == "__main__":
    main()
