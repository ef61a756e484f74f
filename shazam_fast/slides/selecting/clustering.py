"""Clustering of one slide's patches by all teachers at once: multi-view k-means.

With x_i^v the feature of patch i by teacher (view) v, the assignment z and the centres c minimise

    sum_i sum_v |x_i^v - c_{z_i}^v|^2 / s_v,    s_v = mean_i |x_i^v - mean x^v|^2

so all views share one assignment and weigh the same, whatever their widths and scales. Distances are computed after a
random projection of each view to WIDTH columns, which keeps them within a few percent on average (Johnson and
Lindenstrauss, 1984; for k-means: Boutsidis et al., NeurIPS 2010). FuseCPath (arXiv 2510.27237, eq. 2) uses multi-view
spectral clustering in this place, whose cost is cubic in the patches; this is linear.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WIDTH = 64  # columns of a view after projection
FIT_ROWS = 20_000  # patches by which centres are found; more patches are only assigned to them
STARTS = 4  # of which the one with the smallest sum of squared distances is kept
START_ROUNDS = 10  # of Lloyd's algorithm from each start, at most
ROUNDS = 50  # of Lloyd's algorithm, at most
BLOCK = 8192  # patches whose distances are computed at once


class Views:
    """Random projections of the teachers' features.

    Args:
        teachers: name -> dim; views in this order, side by side in the features.
        seed: of the projections, the same for all slides.

    >>> views = Views({"uni": 1024, "small": 8}, seed=0)
    >>> views.project(torch.ones(3, 1032)).shape
    torch.Size([3, 72])
    """

    def __init__(self, teachers: Mapping[str, int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._dims = list(teachers.values())
        self._maps = [
            torch.randn(dim, WIDTH, generator=generator) / math.sqrt(WIDTH) if dim > WIDTH else None
            for dim in self._dims
        ]
        self.widths = [min(dim, WIDTH) for dim in self._dims]

    def project(self, features: Tensor) -> Tensor:
        """Features [n, sum of dims] -> projected [n, sum of widths]."""
        blocks = features.split(self._dims, dim=1)
        return torch.cat([b if m is None else b @ m for b, m in zip(blocks, self._maps, strict=True)], dim=1)

    def balance(self, projected: Tensor) -> Tensor:
        """Centre the views, and scale each to a mean squared norm of 1 (a constant view stays 0). In place."""
        for view in projected.split(self.widths, dim=1):
            view.sub_(view.mean(dim=0))
            view.div_(view.square().sum(dim=1).mean().sqrt().clamp_min(torch.finfo(view.dtype).tiny))
        return projected


def cluster(points: Tensor, count: int, seed: int) -> NDArray[np.int64]:
    """k-means of points: greedy k-means++ in the principal components, then Lloyd's algorithm; the best of some starts.

    Args:
        points: float32 [n, width], from `Views.balance`.
        count: number of clusters; n if there are fewer points.
        seed: of the first centres, and of the points that centres are found by where there are more than FIT_ROWS.

    Returns the cluster of each point, int64 [n]. A cluster may be empty where points are equal.

    >>> points = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> found = cluster(points, 2, seed=0)
    >>> (found == found[0]).tolist()
    [True, True, False, False]
    """
    if len(points) <= count:
        return np.arange(len(points))
    generator = torch.Generator().manual_seed(seed)
    known = points
    if len(points) > FIT_ROWS:
        known = points[torch.randperm(len(points), generator=generator)[:FIT_ROWS].sort().values]
    reduced = principal(known, count)
    tries = [_lloyd(reduced, _first_centres(reduced, count, generator), START_ROUNDS) for _ in range(STARTS)]
    assigned, _ = min(tries, key=lambda one: one[1])
    empty = known.new_zeros(count, known.shape[1])
    assigned, _ = _lloyd(known, _means(known, assigned, empty), ROUNDS)
    return assign(points, _means(known, assigned, empty))[0].numpy()


def principal(points: Tensor, count: int) -> Tensor:
    """The first `count` principal components of centred points [n, width], where there are more columns.

    Columns without a cluster's signal, such as those of a teacher that sees no difference, would hide it from the draw
    of first centres.
    """
    if points.shape[1] <= count:
        return points
    _, directions = torch.linalg.eigh((points.T @ points).double())  # ascending
    components: Tensor = points @ directions[:, -count:].float()
    return components


def _lloyd(points: Tensor, centres: Tensor, rounds: int) -> tuple[Tensor, float]:
    """The cluster of each point, int64 [n], after `rounds` or when no point moves, and the sum of squared distances."""
    assigned, distances = assign(points, centres)
    for _ in range(rounds):
        centres = _means(points, assigned, centres)
        moved, distances = assign(points, centres)
        moved = _refill(moved, distances, len(centres))
        if torch.equal(moved, assigned):
            break
        assigned = moved
    return assigned, float(distances.double().sum())


def assign(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point, int64 [n], and its squared distance [n]."""
    nearest, distances = [], []
    for block in points.split(BLOCK):
        smallest = torch.addmm(centres.square().sum(dim=1), block, centres.T, alpha=-2).min(dim=1)
        nearest.append(smallest.indices)
        distances.append((smallest.values + block.square().sum(dim=1)).clamp_min(0))
    return torch.cat(nearest), torch.cat(distances)


def _first_centres(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few points drawn in proportion to their squared distance, the one that helps most."""
    trials = 2 + int(math.log(count))
    norms = points.square().sum(dim=1)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = (norms + norms[chosen[0]] - 2 * points @ points[chosen[0]]).clamp_min(0)
    while len(chosen) < count:
        total = nearest.double().cumsum(dim=0)
        drawn = torch.rand(trials, generator=generator, dtype=torch.float64) * total[-1]
        candidates = torch.searchsorted(total, drawn).clamp_max(len(points) - 1)
        distances = torch.addmm(norms[candidates], points, points[candidates].T, alpha=-2) + norms[:, None]
        improved = torch.minimum(nearest[:, None], distances.clamp_min(0))  # [n, trials]
        best = int(improved.sum(dim=0).argmin())
        chosen.append(int(candidates[best]))
        nearest = improved[:, best].contiguous()
    return points[chosen]


def _means(points: Tensor, assigned: Tensor, centres: Tensor) -> Tensor:
    """Means of the clusters; an empty one keeps its centre."""
    counts = torch.bincount(assigned, minlength=len(centres))[:, None]
    sums = torch.zeros_like(centres).index_add_(0, assigned, points)
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)


def _refill(assigned: Tensor, distances: Tensor, count: int) -> Tensor:
    """Give each empty cluster the point that is farthest from its centre, if it is not on it."""
    empty = (torch.bincount(assigned, minlength=count) == 0).nonzero()[:, 0]
    if not len(empty):
        return assigned
    farthest = distances.topk(len(empty))
    worth = farthest.values > 0
    assigned = assigned.clone()
    assigned[farthest.indices[worth]] = empty[worth]
    return assigned


def draw(clusters: NDArray[np.int64], per_cluster: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Some points of each cluster at random: all where it has no more.

    Args:
        clusters: int64 [n], the cluster of each point.
        per_cluster: points to draw from each.
        rng: draws them.

    Returns the points' numbers in ascending order, int64.

    >>> draw(np.array([0, 0, 0, 1]), 1, np.random.default_rng(0)).tolist()[-1]
    3
    """
    order = np.lexsort((rng.random(len(clusters)), clusters))
    ordered = clusters[order]
    first = np.searchsorted(ordered, ordered)  # where each one's cluster begins
    return np.sort(order[np.arange(len(order)) - first < per_cluster])


def project_rows(views: Views, batches: Iterator[NDArray[np.float32]], rows: int) -> Tensor:
    """Projected and balanced features of a slide, gathered batch by batch: float32 [rows, sum of widths]."""
    projected = torch.empty(rows, sum(views.widths))
    start = 0
    for features in batches:
        projected[start : start + len(features)] = views.project(torch.from_numpy(features))
        start += len(features)
    return views.balance(projected)
