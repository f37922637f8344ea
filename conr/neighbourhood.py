"""Neighbours of samples: Euclidean, and contextually affinitive (ConAff, Eq. 3-7 of the paper).

ConAff calls two samples close when they have the same neighbours. Inside a batch it is a top-k, a scatter and a gather
on plain tensors: any device, no host synchronisation. Over a whole data set it is products of sparse matrices on the
CPU, in memory that grows with the number of samples and not with its square. No gradient anywhere.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import faiss
import numpy as np
import scipy.sparse as sparse
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse.csgraph import reverse_cuthill_mckee
from sklearn.preprocessing import normalize
from torch import Tensor

from conr.progress import Progress, silent

LOW_BITS = 2**32 - 1
BLOCK = 2**20  # scores that are held at a time: enough to keep a device busy, few enough to stay in a cache
SPARSE_FROM = 1024  # samples from which sparse products are faster on a CPU
ROWS = 4096  # samples of one step of a loop over a data set
PRODUCTS = 2**22  # multiplications of one block of sparse retrieval: its affinities fill at most 50 MB


@torch.no_grad()
def conaff(
    features: Tensor,
    k: int,
    k1: int,
    k2: int,
    *,
    alpha: float = 2.0,
    layers: int = 2,
    symmetrise: bool = True,
    normalise: bool = True,
) -> Tensor:
    """The k contextually affinitive neighbours of every sample of a batch (Eq. 3-7), nearest first.

    Args:
        features: (B, D) features; they are l2-normalised here, so their scale does not matter.
        k: neighbours to return, the sample itself included; 1 ≤ k ≤ B.
        k1: neighbours that define the reciprocal encoding (Eq. 3), the sample itself included; 1 ≤ k1 ≤ B.
        k2: neighbours that a layer of propagation sums over (Eq. 5), the sample itself included; 1 ≤ k2 ≤ k1.
            k2 = 1 means no propagation.
        alpha: exponent of the edge weights (α in Eq. 6).
        layers: layers of propagation (L).
        symmetrise: add the transpose before each layer, as the released code does; Eq. 6 does not show it.
        normalise: l2-normalise each row after each layer, as the released code does; Eq. 6 does not show it.

    Returns:
        (B, k) int64 indices into the batch. Equal affinities are ordered by index, the sample itself first.

    Raises:
        ValueError: an argument is impossible for this batch; the message names it.
    """
    _check_features(features)
    _check_parameters(features.shape[0], "the batch size", k, k1, k2, alpha, layers)
    if features.device.type == "cpu" and features.dtype != torch.float64 and len(features) >= SPARSE_FROM:
        found = conaff_graph(
            features.float().numpy(),
            k,
            k1,
            k2,
            alpha=alpha,
            layers=layers,
            symmetrise=symmetrise,
            normalise=normalise,
        )
        return torch.from_numpy(found)
    unit = _unit(features)
    ranking = _nearest(unit, k1, self_first=True)
    nodes = reciprocal_encoding(ranking)
    propagates = k2 > 1 and layers > 0
    if propagates:
        edges = ranking[:, :k2]
        weights = _edge_weights(unit, edges, alpha)
        for _ in range(layers):
            nodes = propagate(nodes, edges, weights, symmetrise=symmetrise, normalise=normalise)
    # Rows of unit length are closest to themselves; rounding must not let a duplicate come before.
    return _nearest(nodes, k, self_first=propagates and normalise)


def conaff_graph(
    features: NDArray[np.float32],
    k: int,
    k1: int,
    k2: int,
    *,
    alpha: float = 2.0,
    layers: int = 2,
    symmetrise: bool = True,
    normalise: bool = True,
    neighbours: NDArray[np.int64] | None = None,
    progress: Progress = silent,
) -> NDArray[np.int64]:
    """The k contextually affinitive neighbours of every sample among all samples, nearest first.

    Beside the search for the k1 nearest, which compares all pairs, the cost of a sample does not depend on N unless
    some samples are among the nearest of very many others (docs/performance.md).

    Args:
        features: (N, D) features; they are l2-normalised here.
        k, k1, k2, alpha, layers, symmetrise, normalise: as for `conr.neighbourhood.conaff`, with N for the batch size.
        neighbours: (N, ≥ k1) int64 nearest neighbours by cosine, nearest first, if they are known already: for instance
            from an approximate index, where N is too large to compare all pairs. A sample may be missing among its own.
        progress: told of every sample, first as its neighbours are searched, then as they are retrieved.

    Returns:
        (N, k) int64. Equal affinities are ordered by index, the sample itself first.

    Raises:
        ValueError: an argument is impossible for so many samples; the message names it.
    """
    count = len(features)
    _check_parameters(count, "the number of samples", k, k1, k2, alpha, layers)
    if neighbours is not None:
        _check_neighbours(neighbours, count, k1)
    unit = normalize(np.ascontiguousarray(features, np.float32))
    with progress("neighbours", 2 * count) as advance:
        rankings = []
        for part in _search(unit, k1) if neighbours is None else _given(neighbours[:, :k1]):
            rankings.append(part)
            advance(len(part))
        ranking = np.concatenate(rankings)
        nodes = _reciprocal_encoding(ranking)
        edges = _edges(unit, ranking[:, :k2], alpha)
        del unit, rankings, ranking
        # Samples that have neighbours in common now stand side by side: fewer cache misses, the more so the larger N.
        order = reverse_cuthill_mckee(nodes, symmetric_mode=True)
        nodes, edges = nodes[order][:, order], edges[order][:, order]
        propagates = k2 > 1 and layers > 0
        for _ in range(layers if propagates else 0):
            nodes = _propagate(nodes, edges, symmetrise, normalise)
        columns = nodes.T.tocsr()
        retrieve = partial(_retrieve, nodes, columns, order, k, propagates and normalise)
        found = np.empty((count, k), dtype=np.int64)
        blocks = list(_blocks(nodes, columns))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for block, best in zip(blocks, pool.map(retrieve, blocks), strict=True):
                found[order[block]] = best
                advance(len(best))
    return found


@torch.no_grad()
def euclidean(features: Tensor, k: int) -> Tensor:
    """The k nearest neighbours of every sample by Euclidean distance between l2-normalised features.

    This is the "local neighbourhood" N(x_i) of Eq. 2 that the paper compares ConAff with.

    Args:
        features: (B, D) features; they are l2-normalised here.
        k: neighbours to return, the sample itself included; 1 ≤ k ≤ B.

    Returns:
        (B, k) int64 indices into the batch, the sample itself first, equal distances ordered by index.

    Raises:
        ValueError: features are not a matrix, or k is impossible for this batch.
    """
    _check_features(features)
    _check_count("k", k, features.shape[0], "the batch size")
    return _nearest(_unit(features), k, self_first=True)


def reciprocal_encoding(ranking: Tensor) -> Tensor:
    """The reciprocal adjacency matrix A of Eq. 3: 1 where both rank each other, 0.5 where one does, else 0.

    Args:
        ranking: (B, k1) int64, the nearest neighbours of every sample, the sample itself included.

    Returns:
        (B, B) float32, symmetric; its row i is the node feature v_i of Eq. 4.
    """
    size = ranking.shape[0]
    ranked = torch.zeros(size, size, device=ranking.device).scatter_(1, ranking, 0.5)
    return ranked + ranked.T


def propagate(nodes: Tensor, edges: Tensor, weights: Tensor, *, symmetrise: bool, normalise: bool) -> Tensor:
    """One layer of message propagation (Eq. 6): every node becomes the weighted sum of its neighbours' rows.

    The node itself is the first of its own neighbours with weight 1, which is the "h_i +" term of Eq. 6.

    Args:
        nodes: (B, B) node features h^(l).
        edges: (B, k2) int64 neighbours of every node, the node itself first.
        weights: (B, k2) edge weights e_ij^α.
        symmetrise: add the transpose of the node matrix first.
        normalise: l2-normalise each row afterwards.

    Returns:
        (B, B) node features h^(l+1), in the type of the weights.
    """
    nodes = nodes.to(weights.dtype)
    if symmetrise:
        nodes = nodes + nodes.T
    # A weighted sum of k2 rows: a product with the (B, B) adjacency matrix would cost B³.
    nodes = F.embedding_bag(edges, nodes, per_sample_weights=weights, mode="sum")
    return F.normalize(nodes, dim=1) if normalise else nodes


def _unit(features: Tensor) -> Tensor:
    """Features of unit length in float32, or float64 if they are; ranks from bfloat16 would be noise."""
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=1)


def _edge_weights(unit: Tensor, edges: Tensor, alpha: float) -> Tensor:
    """(B, k2) weights S_ij^α, 1 for the sample itself.

    A negative similarity has no real power for a fractional α: it weighs nothing then.
    """
    weights = torch.einsum("bd,bkd->bk", unit, F.embedding(edges, unit))
    weights = weights.pow(alpha) if float(alpha).is_integer() else weights.clamp(min=0).pow(alpha)
    weights[:, 0] = 1.0
    return weights


def _nearest(vectors: Tensor, k: int, *, self_first: bool) -> Tensor:
    """(B, k) indices of the k largest inner products of each row with all rows, block by block.

    Ties go to the sample itself, then to the lower index. With `self_first` the sample itself comes first even if
    another one scores higher.

    `torch.topk` leaves the order of ties to the device, and reciprocal encodings are full of ties. Scores and indices
    together make keys of which no two are equal.
    """
    size = len(vectors)
    found = torch.empty(size, k, dtype=torch.int64, device=vectors.device)
    rows = max(1, BLOCK // size)
    for first in range(0, size, rows):
        scores = vectors[first : first + rows] @ vectors.T
        diagonal = scores.diagonal(offset=first)
        above = torch.full_like(diagonal, torch.inf)
        diagonal.copy_(above if self_first else torch.nextafter(diagonal, above))
        found[first : first + rows] = _largest(scores, k)
    return found


def _largest(scores: Tensor, k: int) -> Tensor:
    """(R, k) columns of the k largest scores of each row; of equal ones the lower column first."""
    if scores.dtype == torch.float64:  # does not fit into a key; only tests need it
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: the two zeros become one
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats order backwards
    # The score above, the column counted down below.
    keys = (ascending.long() << 32) + (LOW_BITS - torch.arange(scores.shape[1], device=scores.device))
    return LOW_BITS - (keys.topk(k, dim=1).values & LOW_BITS)


def _search(unit: NDArray[np.float32], k1: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of (n, k1) nearest neighbours by cosine, each sample first among its own, ties by index."""
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    for first in range(0, len(unit), ROWS):
        queries = unit[first : first + ROWS]
        scores, found = index.search(queries, min(k1 + 1, len(unit)))
        own = _insert_own(found, first)
        scores[own] = np.inf
        order = np.lexsort((found, -scores), axis=1)
        found, scores = np.take_along_axis(found, order, 1), np.take_along_axis(scores, order, 1)
        # Which of equal ones faiss finds is not defined. Where that matters, all samples are compared again.
        tied = np.flatnonzero(scores[:, k1 - 1] == scores[:, -1]) if k1 < len(unit) else np.empty(0, dtype=np.int64)
        for rows in np.array_split(tied, len(tied) * len(unit) // BLOCK + 1):
            exact = torch.from_numpy(queries[rows] @ unit.T)
            exact[np.arange(len(rows)), first + rows] = torch.inf
            found[rows, :k1] = _largest(exact, k1)
        yield found[:, :k1]


def _given(neighbours: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Blocks of given neighbours, each sample put first among its own."""
    for first in range(0, len(neighbours), ROWS):
        found = neighbours[first : first + ROWS].copy()
        own = _insert_own(found, first)
        yield np.take_along_axis(found, np.argsort(~own, axis=1, kind="stable"), 1)


def _insert_own(found: NDArray[np.int64], first: int) -> NDArray[np.bool_]:
    """Let samples that are missing among their own neighbours replace the last; returns where each one stands."""
    samples = np.arange(first, first + len(found))
    missing = (found != samples[:, None]).all(1)
    found[missing, -1] = samples[missing]
    own: NDArray[np.bool_] = found == samples[:, None]
    return own


def _reciprocal_encoding(ranking: NDArray[np.int64]) -> sparse.csr_matrix:
    """Eq. 3: 1 where both rank each other, 0.5 where one does."""
    count, k1 = ranking.shape
    half = np.full(ranking.size, 0.5, dtype=np.float32)
    starts = np.arange(0, ranking.size + 1, k1)
    ranked = sparse.csr_matrix((half, ranking.ravel().astype(np.int32), starts), shape=(count, count))
    return (ranked + ranked.T).tocsr()


def _edges(unit: NDArray[np.float32], ranking: NDArray[np.int64], alpha: float) -> sparse.csr_matrix:
    """Eq. 5: S_ij^α for the k2 nearest of each sample, 1 for the sample itself."""
    count, k2 = ranking.shape
    similarity = np.empty((count, k2), dtype=np.float32)
    for first in range(0, count, ROWS):
        rows = slice(first, first + ROWS)
        similarity[rows] = np.einsum("nd,nkd->nk", unit[rows], unit[ranking[rows]])
    # A negative similarity has no real power for a fractional α: it weighs nothing then.
    weights = (similarity if float(alpha).is_integer() else similarity.clip(min=0)) ** alpha
    weights[:, 0] = 1
    starts = np.arange(0, ranking.size + 1, k2)
    return sparse.csr_matrix((weights.ravel(), ranking.ravel().astype(np.int32), starts), shape=(count, count))


def _propagate(
    nodes: sparse.csr_matrix, edges: sparse.csr_matrix, symmetrise: bool, normalise: bool
) -> sparse.csr_matrix:
    """One layer of Eq. 6."""
    nodes = edges @ ((nodes + nodes.T).tocsr() if symmetrise else nodes)
    return normalize(nodes, copy=False) if normalise else nodes


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
    """Eq. 7 for some rows: the k samples with the largest inner product.

    Args:
        nodes: (N, N) node features, their rows and columns in order.
        columns: their transpose.
        order: (N,) the sample of each row; of equally affine samples the lower one comes first.
        k: samples to return.
        self_first: the sample itself comes first even if another one scores higher.
        block: rows.
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


def _check_features(features: Tensor) -> None:
    if features.ndim != 2 or features.shape[0] == 0:
        raise ValueError(f"features must be a (batch, dimension) matrix, got shape {tuple(features.shape)}")


def _check_neighbours(neighbours: NDArray[np.int64], count: int, k1: int) -> None:
    if neighbours.ndim != 2 or len(neighbours) != count or neighbours.shape[1] < k1:
        raise ValueError(f"neighbours must have shape ({count}, ≥ {k1}), got {neighbours.shape}")
    ordered = np.sort(neighbours[:, :k1], axis=1)
    if ordered.min() < 0 or ordered.max() >= count:  # −1: an approximate index found fewer
        raise ValueError(f"neighbours must lie between 0 and {count - 1}, got {ordered.min()} to {ordered.max()}")
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError("neighbours must name no sample twice in a row")


def _check_count(name: str, value: int, largest: int, limit: str) -> None:
    if not 1 <= value <= largest:
        raise ValueError(f"{name} = {value} must lie between 1 and {limit} ({largest})")


def _check_parameters(size: int, limit: str, k: int, k1: int, k2: int, alpha: float, layers: int) -> None:
    _check_count("k", k, size, limit)
    _check_count("k1", k1, size, limit)
    _check_count("k2", k2, k1, "k1")
    if layers < 0:
        raise ValueError(f"layers = {layers} must not be negative")
    if alpha < 0:
        raise ValueError(f"alpha = {alpha} must not be negative")
