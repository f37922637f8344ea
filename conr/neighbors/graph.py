"""Contextually affinitive neighbors among all samples of a data set, as products of sparse matrices.

It runs on the CPU, in memory that grows with the number of samples and not with its square.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import reverse_cuthill_mckee
from sklearn.preprocessing import normalize

from conr.neighbors.search import approximate_neighbors, check_neighbors, exact_neighbors, given_neighbors
from conr.neighbors.settings import ConAff, check_count
from conr.observer import SILENT, Observer

ROWS = 4096  # samples of one step of a loop over a data set
PRODUCTS = 2**22  # multiplications of one block of sparse retrieval: its affinities fill at most 50 MB


def conaff_graph(
    features: NDArray[np.float32],
    k: int,
    settings: ConAff,
    *,
    neighbors: NDArray[np.int64] | None = None,
    observer: Observer = SILENT,
) -> NDArray[np.int64]:
    """The k contextually affinitive neighbors of every sample among all samples, nearest first.

    Beside the search for the k1 nearest, which compares all pairs, the cost of a sample does not depend on N unless
    some samples are among the nearest of very many others (docs/performance.md).

    Args:
        features: (N, D) float32 unit vectors.
        k: neighbors to return, the sample itself included; 1 ≤ k ≤ N.
        settings: k1, k2 and the rest.
        neighbors: (N, ≥ k1) int64 nearest neighbors by cosine, nearest first, if they are known already: for instance
            from an approximate index, where N is too large to compare all pairs. A sample may be missing among its own.
        observer: notified of every sample, first as its neighbors are searched, then as they are retrieved.

    Returns:
        (N, k) int64. Equal affinities are ordered by index, the sample itself first.

    Raises:
        ValueError: an argument is impossible for so many samples; the message names it.

    >>> features = numpy.random.default_rng(0).normal(size=(500, 16)).astype("float32")
    >>> features /= numpy.linalg.norm(features, axis=1, keepdims=True)
    >>> conr.conaff_graph(features, 10, conr.ConAff(k1=20, k2=4)).shape
    (500, 10)
    """
    count = len(features)
    check_count("k", k, count, "the number of samples")
    settings.check(count, "the number of samples")
    with observer.task("neighbors", 2 * count):
        nodes, order = conaff_nodes(features, settings, neighbors=neighbors, observer=observer)
        columns = nodes.T.tocsr()
        retrieve = partial(_retrieve, nodes, columns, order, k, settings.self_first)
        found = np.empty((count, k), dtype=np.int64)
        blocks = list(_blocks(nodes, columns))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for block, best in zip(blocks, pool.map(retrieve, blocks), strict=True):
                found[order[block]] = best
                observer.step_done(len(best))
    return found


def conaff_nodes(
    features: NDArray[np.float32],
    settings: ConAff,
    *,
    neighbors: NDArray[np.int64] | None = None,
    reciprocal: bool = False,
    entries: int | None = None,
    observer: Observer = SILENT,
) -> tuple[sparse.csr_matrix, NDArray[np.int32]]:
    """The propagated nodes h_i of Eq. 6, the rows of a sparse (N, N) matrix H; affinities (Eq. 7) are H Hᵀ.

    Args:
        features: (N, D) float32 unit vectors.
        settings: k1, k2 and the rest.
        neighbors: as for `conaff_graph`.
        reciprocal: propagate only along edges of samples that are both among the k2 nearest of the other. Other edges
            lead from small groups into large ones.
        entries: how many entries of a row each step keeps, the largest; of equal ones the first. None keeps all.
        observer: notified of every sample as its neighbors are searched.

    Returns:
        H, and an order of the samples in which those that have neighbors in common are side by side: row and column r
        of H belong to sample order[r].

    Raises:
        ValueError: an argument is impossible for so many samples; the message names it.
    """
    count = len(features)
    settings.check(count, "the number of samples")
    features = np.ascontiguousarray(features, np.float32)
    ranking = nearest_neighbors(features, settings.k1, neighbors=neighbors, observer=observer)
    nodes = reciprocal_encoding(ranking)
    edges = _edges(features, ranking[:, : settings.k2], settings.alpha)
    if reciprocal:
        edges = edges.multiply(edges.T != 0).tocsr()
    del features, ranking
    # The order saves cache misses, above all for a large N.
    order = reverse_cuthill_mckee(nodes, symmetric_mode=True)
    nodes, edges = nodes[order][:, order], edges[order][:, order]
    if entries is not None:
        nodes = largest_entries(nodes, entries)
    for _ in range(settings.layers if settings.propagates else 0):
        nodes = _propagate(nodes, edges, settings, entries)
    return nodes, order


def nearest_neighbors(
    features: NDArray[np.float32],
    k1: int,
    *,
    neighbors: NDArray[np.int64] | None = None,
    approximate: bool = False,
    observer: Observer = SILENT,
) -> NDArray[np.int64]:
    """The (N, k1) nearest neighbors of every sample by cosine, the sample itself first.

    Args:
        features: (N, D) float32 unit vectors.
        k1: from 1 to N.
        neighbors: as for `conaff_graph`.
        approximate: search them in lists of similar samples: some percent are missed, and the cost of a sample hardly
            grows with N.
        observer: notified of every sample.

    Raises:
        ValueError: the given neighbors are none of so many samples.
    """
    if neighbors is not None:
        check_neighbors(neighbors, len(features), k1)
        parts = given_neighbors(neighbors[:, :k1], ROWS)
    else:
        parts = approximate_neighbors(features, k1) if approximate else exact_neighbors(features, k1, ROWS)
    rankings = []
    for part in parts:
        rankings.append(part)
        observer.step_done(len(part))
    return np.concatenate(rankings)


def reciprocal_encoding(ranking: NDArray[np.int64]) -> sparse.csr_matrix:
    """Eq. 3 for (N, k1) neighbors, sparse (N, N): 1 where both rank each other, 0.5 where one does."""
    count, k1 = ranking.shape
    half = np.full(ranking.size, 0.5, dtype=np.float32)
    starts = np.arange(0, ranking.size + 1, k1)
    ranked = sparse.csr_matrix((half, ranking.ravel().astype(np.int32), starts), shape=(count, count))
    return (ranked + ranked.T).tocsr()


def _edges(features: NDArray[np.float32], ranking: NDArray[np.int64], alpha: float) -> sparse.csr_matrix:
    """Eq. 5: S_ij^α for the k2 nearest of each sample, 1 for the sample itself."""
    count, k2 = ranking.shape
    similarity = np.empty((count, k2), dtype=np.float32)
    for first in range(0, count, ROWS):
        rows = slice(first, first + ROWS)
        similarity[rows] = np.einsum("nd,nkd->nk", features[rows], features[ranking[rows]])
    # A negative similarity has no real power for a fractional α: it weighs nothing then.
    weights = (similarity if float(alpha).is_integer() else similarity.clip(min=0)) ** alpha
    weights[:, 0] = 1
    starts = np.arange(0, ranking.size + 1, k2)
    return sparse.csr_matrix((weights.ravel(), ranking.ravel().astype(np.int32), starts), shape=(count, count))


def _propagate(
    nodes: sparse.csr_matrix, edges: sparse.csr_matrix, settings: ConAff, entries: int | None
) -> sparse.csr_matrix:
    """One layer of Eq. 6, of whose rows only the largest entries may be kept."""
    others = (nodes + nodes.T).tocsr() if settings.symmetrize else nodes
    if entries is None:
        nodes = edges @ others
    else:
        others = largest_entries(others, entries)
        blocks = [edges[first : first + ROWS] for first in range(0, edges.shape[0], ROWS)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            rows = list(pool.map(lambda block: largest_entries(block @ others, entries), blocks))
        nodes = sparse.vstack(rows, "csr")
    return normalize(nodes, copy=False) if settings.normalize else nodes


def largest_entries(matrix: sparse.csr_matrix, entries: int) -> sparse.csr_matrix:
    """A sparse matrix with only the largest entries of each row; of equal ones the first that are stored."""
    starts, sizes = matrix.indptr, np.diff(matrix.indptr)
    long = np.flatnonzero(sizes > entries)
    if not len(long):
        return matrix
    least = np.full(len(sizes), -np.inf, dtype=matrix.dtype)
    for row in long:
        least[row] = np.partition(matrix.data[starts[row] : starts[row + 1]], -entries)[-entries]
    rows = np.repeat(np.arange(len(sizes)), sizes)
    above, equal = matrix.data > least[rows], matrix.data == least[rows]
    room = entries - np.bincount(rows[above], minlength=len(sizes))
    before = np.append(0, equal.cumsum())  # equal ones before an entry: in its row, less those before the row
    kept = above | (equal & (before[:-1] - before[starts[:-1]][rows] < room[rows]))
    ends = np.append(0, np.bincount(rows[kept], minlength=len(sizes)).cumsum())
    return sparse.csr_matrix((matrix.data[kept], matrix.indices[kept], ends), shape=matrix.shape)


def _blocks(nodes: sparse.csr_matrix, columns: sparse.csr_matrix) -> Iterator[slice]:
    """Consecutive rows whose affinities take a bounded number of multiplications."""
    sizes = np.diff(columns.indptr)
    for start in range(0, nodes.shape[0], ROWS):
        starts = nodes.indptr[start : start + ROWS + 1]
        products = np.append(0, sizes[nodes.indices[starts[0] : starts[-1]]].cumsum(dtype=np.int64))
        work = products[starts - starts[0]]
        first = 0
        while first < len(work) - 1:
            last = max(int(np.searchsorted(work, work[first] + PRODUCTS, side="right")) - 1, first + 1)
            yield slice(start + first, start + last)
            first = last


def _retrieve(
    nodes: sparse.csr_matrix,
    columns: sparse.csr_matrix,
    order: NDArray[np.int32],
    k: int,
    self_first: bool,
    block: slice,
) -> NDArray[np.int64]:
    """Eq. 7 for a block of rows: the k samples with the largest inner product, of equal ones the lower.

    The rows and columns of the (N, N) nodes are in an order, (N,) the sample of each; columns is their transpose.
    With `self_first` the sample itself comes first even if another one scores higher.
    """
    affinities = nodes[block] @ columns
    starts, scores = affinities.indptr, affinities.data
    sizes = np.diff(starts)
    rows = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    if self_first:
        scores[affinities.indices == rows + block.start] = np.inf
    least = np.full(len(sizes), -np.inf, dtype=np.float32)
    for row in np.flatnonzero(sizes > k):
        least[row] = np.partition(scores[starts[row] : starts[row + 1]], -k)[-k]
    large = scores >= least[rows]
    rows, samples, scores = rows[large], order[affinities.indices[large]], scores[large]

    # Where too few have anything in common with a sample, the first of those with affinity 0 come next.
    short = np.flatnonzero(np.bincount(rows[scores >= 0], minlength=len(sizes)) < k)
    others = []
    for row in short:
        first = np.append(order[block][row], np.arange(min(k + sizes[row], len(order))))
        others.append(np.setdiff1d(first, order[affinities.indices[starts[row] : starts[row + 1]]]))
    rows = np.append(rows, np.repeat(short, [len(part) for part in others]))
    samples = np.concatenate([samples, *others])
    scores = np.append(scores, np.zeros(len(rows) - len(scores), dtype=np.float32))

    best = np.lexsort((samples, samples != order[block][rows], -scores, rows))
    firsts = np.searchsorted(rows[best], np.arange(len(sizes)))
    found: NDArray[np.int64] = samples[best[firsts[:, None] + np.arange(k)]].astype(np.int64)
    return found
