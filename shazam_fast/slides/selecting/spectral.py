"""Multi-view spectral clustering of one slide's patches: a graph of nearest neighbours by each teacher, joined.

For each teacher (view) v, W_v is the symmetric graph of every patch's NEIGHBOURS nearest patches by that teacher, with
D_v the sums of its rows. With l_1..l_K and U [n, K] the largest eigenvalues and their eigenvectors of

    D^-1/2 A D^-1/2,   A = sum_v D_v^-1/2 W_v D_v^-1/2,   D the sums of A's rows,

k-means clusters the patches by the rows of U diag(l)^POWER, scaled to norm 1 (Ng, Jordan and Weiss, NeurIPS 2001; the
power is that of diffusion maps, and lessens what eigenvectors within one cluster contribute).

FuseCPath (arXiv 2510.27237) takes mvlearn's MultiviewSpectralClustering, which co-trains the views (Kumar and Daume,
ICML 2011) with dense matrices, cubic in the patches. Both find what every teacher sees. Where each teacher sees a part
of the differences, as teachers do, co-training makes each view repeat the others' mistakes, and the joint graph does
not (tests/slides/test_spectral.py). The graph is sparse and its eigenvectors come from a Lanczos solver. The distances
are quadratic up to FIT_ROWS patches; beyond, the others join the cluster of their nearest patch that was clustered.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .clustering import cluster

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NEIGHBOURS = 10
POWER = 2
FIT_ROWS = 15_000  # patches that are clustered; more are assigned to them
BLOCK = 256  # patches whose distances to all are computed at once; the cache holds them
GROUP = 16  # patches of which the nearest is found first
TOLERANCE = 1e-3  # of eigenvalues, relative
DENSE_ROWS = 1000  # up to which all eigenvectors are computed at once
TINY = 1e-12

Matrix = NDArray[np.float64]


def cluster_spectral(points: Tensor, widths: Sequence[int], count: int, seed: int) -> NDArray[np.int64]:
    """Multi-view spectral clustering.

    Args:
        points: float32 [n, sum of widths], the views side by side, from `Views.balance`.
        widths: columns of each view.
        count: number K of clusters; n if there are fewer points.
        seed: of k-means, of the solver's first vector, and of the points that are clustered where there are more than
            FIT_ROWS.

    Returns the cluster of each point, int64 [n].

    >>> steps = torch.arange(40.0)[:, None] / 40
    >>> rings = torch.cat([torch.cat([steps, 0 * steps + y], dim=1) for y in (0.0, 1.0)])  # two rows of points
    >>> found = cluster_spectral(rings, [2], 2, seed=0)
    >>> len(set(found[:40])), len(set(found[40:])), len(set(found))
    (1, 1, 2)
    """
    if len(points) <= count:
        return np.arange(len(points))
    if len(points) <= FIT_ROWS:
        return _fit(points, widths, count, seed)
    generator = torch.Generator().manual_seed(seed)
    known = points[torch.randperm(len(points), generator=generator)[:FIT_ROWS].sort().values]
    closest: NDArray[np.int64] = nearest(points, known, 1)[:, 0].numpy()
    return _fit(known, widths, count, seed)[closest]


def _fit(points: Tensor, widths: Sequence[int], count: int, seed: int) -> NDArray[np.int64]:
    joint = sum(normalised(neighbour_graph(view)) for view in points.split(list(widths), dim=1))
    first = np.random.default_rng(seed).standard_normal(len(points))
    values, vectors = leading_vectors(normalised(joint), count, first)
    vectors = vectors * values.clip(0) ** POWER
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(TINY)
    return cluster(torch.from_numpy(vectors).float(), count, seed)


def nearest(points: Tensor, others: Tensor, count: int) -> Tensor:
    """The `count` nearest of `others` for each point, in any order. [n, w], [m, w] -> int64 [n, count].

    They are looked for in the `count` groups of `others` that have the smallest distances: a group with none of these
    has none of the nearest, as each of the `count` others has at least one that is nearer.
    """
    m = len(others)
    groups = math.ceil(m / GROUP)
    members = torch.arange(GROUP)[:, None] * groups  # group g has the others g, g + groups, g + 2 groups, ...
    norms = others.square().sum(dim=1)
    distances = points.new_full((min(BLOCK, len(points)), GROUP * groups), torch.inf)
    found = []
    for block in points.split(BLOCK):
        here = distances[: len(block)]
        torch.addmm(norms, block, others.T, alpha=-2, out=here[:, :m])  # less the block's own norms
        smallest = here.view(len(block), GROUP, groups).amin(dim=1)
        close = smallest.topk(min(count, groups), dim=1, largest=False, sorted=False).indices
        candidates = (close[:, None] + members).flatten(1)  # [block, GROUP * count]
        best = here.gather(1, candidates).topk(count, dim=1, largest=False, sorted=False).indices
        found.append(candidates.gather(1, best))
    return torch.cat(found)


def neighbour_graph(points: Tensor) -> "csr_matrix":
    """W [n, n]: 1 between points that are each among the other's nearest, 1/2 where one is, 0 elsewhere.

    >>> neighbour_graph(torch.arange(3.0)[:, None]).toarray().tolist()
    [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """
    from scipy.sparse import csr_matrix

    n = len(points)
    found = nearest(points, points, min(NEIGHBOURS + 1, n)).numpy()  # with the point itself
    lines = np.repeat(np.arange(n), found.shape[1])
    other = found.ravel() != lines
    graph = csr_matrix((np.ones(other.sum()), (lines[other], found.ravel()[other])), shape=(n, n))
    return (graph + graph.T) * 0.5


def normalised(graph: "csr_matrix") -> "csr_matrix":
    """D^-1/2 W D^-1/2, with D the sums of the rows."""
    from scipy.sparse import diags

    scale = diags(1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel().clip(TINY)))
    return (scale @ graph @ scale).tocsr()


def leading_vectors(matrix: "csr_matrix", count: int, first: Matrix) -> tuple[Matrix, Matrix]:
    """The `count` largest eigenvalues of a symmetric matrix, ascending, and their eigenvectors [n, count].

    Args:
        matrix: [n, n], n > count.
        count: how many.
        first: [n], where the solver begins.
    """
    from scipy.sparse.linalg import eigsh

    if matrix.shape[0] <= max(DENSE_ROWS, 3 * count):
        values, vectors = np.linalg.eigh(matrix.toarray())
        return values[-count:], vectors[:, -count:]
    # float32, which suffices for this tolerance, takes half the time.
    values, vectors = eigsh(matrix.astype(np.float32), count, which="LA", v0=first.astype(np.float32), tol=TOLERANCE)
    order = np.argsort(values)
    return values[order].astype(np.float64), vectors[:, order].astype(np.float64)
