"""Clusters of the ConAff graph of a whole data set: regularized spectral clustering in linear time and memory."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from conr.clustering.ballots import MOST, ballots_of
from conr.clustering.compactness import simplified_silhouette, sums_of_clusters
from conr.clustering.kmeans import kmeans
from conr.clustering.spectral import Affinity, leading_eigenvectors
from conr.neighbors.graph import conaff_nodes, nearest_neighbors
from conr.neighbors.settings import ConAff, check_count
from conr.observer import SILENT, Observer

ENTRIES = 64  # of a row of nodes
APPROXIMATE_FROM = 30_000  # samples whose neighbors are not searched among all
MORE = 5  # eigenvalues beyond the number of clusters: gaps show how many there could be
INITIALIZATIONS = 20  # of k-means on the eigenvectors
STARTS = 10  # initializations of k-means on the features


@dataclass(frozen=True)
class Clustering:
    """The clusters of a graph.

    Attributes:
        assignments: (N,) int64, numbered from the largest cluster; of equally large ones, that of the first sample
            comes first.
        eigenvalues: the largest eigenvalues of the graph's normalized affinity, descending: five more than clusters
            were asked for, or N where that is less. A large gap after the k-th speaks for k clusters.
        k1: the neighbors that define the reciprocal encoding.
        k2: the neighbors that a layer of propagation sums over.
        ballots: (N, 2 F + 2) float32 of F clusters, if they were asked for and there are at most 100: by these,
            `assign_by_neighbors` assigns new samples as the graph would.

    >>> found = conr.graph_clusters(numpy.eye(2).repeat([3, 5], axis=0), 2, k1=3)
    >>> found.assignments.tolist(), len(found.eigenvalues), found.k1
    ([1, 1, 1, 0, 0, 0, 0, 0], 7, 3)
    """

    assignments: NDArray[np.int64]
    eigenvalues: NDArray[np.float64]
    k1: int
    k2: int
    ballots: NDArray[np.float32] | None = None


def graph_clusters(
    features: NDArray[np.float32],
    clusters: int,
    *,
    k1: int | None = None,
    k2: int | None = None,
    regularization: float = 0.1,
    seed: int = 0,
    neighbors: NDArray[np.int64] | None = None,
    start: NDArray[np.int64] | None = None,
    ballots: bool = False,
    observer: Observer = SILENT,
) -> Clustering:
    """Cluster a data set by its graph of contextually affinitive neighbors (ConAff).

    The affinity of two samples is the inner product of their propagated nodes (Eq. 3-7 of the paper), of which each
    keeps its 64 largest entries. There is one layer of propagation, with weights of 1, along edges that lead both ways:
    others, and further layers, join small groups to large ones. Normalized spectral clustering (Ng, Jordan, Weiss, NIPS
    2001) with the regularization of Amini et al. (Annals of Statistics 2013) follows: the leading eigenvectors, rows of
    unit length, k-means. Without regularization, well separated groups fall into more components than clusters, and the
    result breaks.

    k-means on the rows is run twice: from its own initializations, and from the clusters of k-means on the features.
    Where some groups are as easily split as others are joined, the two results differ. The one with the larger
    simplified silhouette in the feature space (Hruschka, de Castro, Campello, ICDM 2004) is returned.

    Time and memory grow linearly with N; up to 30,000 samples all pairs are compared to find the nearest neighbors,
    beyond that an approximate index is searched.

    Args:
        features: (N, D); only directions count, rows are scaled to unit length.
        clusters: K, from 1 to N.
        k1: neighbors that define the reciprocal encoding, the sample itself included; by default those of
            `graph_neighbors`.
        k2: neighbors that a layer of propagation sums over; by default likewise, and at most k1.
        regularization: τ, the share of the mean degree that is spread over all pairs; at least 0.
        seed: of the eigenvectors' start and of k-means.
        neighbors: (N, ≥ k1) nearest neighbors by cosine if they are known already, as for `conaff_graph`.
        start: (N,) the clusters of k-means on the features, from 0 to K − 1, if they are known already.
        ballots: compute them.
        observer: notified of every sample, first as its neighbors are searched, then as the eigenvectors are known.

    Returns:
        At most K clusters. Samples with equal features are in the same one; so there are fewer than K if fewer than K
        samples differ.

    Raises:
        ValueError: features that are not finite or not of two dimensions, or an argument that is impossible for so
            many samples; the message names it.

    >>> groups = numpy.eye(3, 8).repeat(50, axis=0)
    >>> features = groups + 0.1 * numpy.random.default_rng(0).normal(size=groups.shape)
    >>> found = conr.graph_clusters(features, 3)
    >>> numpy.bincount(found.assignments).tolist(), len(set(found.assignments[:50].tolist()))
    ([50, 50, 50], 1)
    """
    features = _unit(features)
    count = len(features)
    check_count("clusters", clusters, count, "the number of samples")
    if not 0 <= regularization < np.inf:
        raise ValueError(f"regularization = {regularization} must be a number of at least 0")
    if start is not None and (start.shape != (count,) or start.min() < 0 or start.max() >= clusters):
        raise ValueError(f"start must be {count} clusters from 0 to {clusters - 1}")
    ruled_k1, ruled_k2 = graph_neighbors(count, clusters)
    k1 = ruled_k1 if k1 is None else k1
    k2 = min(ruled_k2, k1) if k2 is None else k2
    with observer.task("graph", 2 * count):
        ranking, nodes, place = _nodes(features, ConAff(k1, k2, alpha=0, layers=1), neighbors, observer)
        with Affinity(nodes, regularization) as affinity:
            values, vectors = leading_eigenvectors(affinity, min(clusters + MORE, count), seed)
        observer.step_done(count)
    vectors = vectors[place, :clusters]
    rows = normalize(vectors).astype(np.float32)
    found, table = _ranked(_clusters_of_rows(features, rows, seed, start)), None
    if ballots and found.max() < MOST:
        scaled = affinity.scale[place, None] * vectors
        table = ballots_of(features, ranking, k2, nodes[place][:, place], scaled, rows, found)
    return Clustering(found, values, k1, k2, table)


def graph_neighbors(count: int, clusters: int) -> tuple[int, int]:
    """k1 and k2 of a graph of so many samples and clusters: k1 = N / 6K, from 5 to 10, and k2 = k1 / 3.

    Neighborhoods larger than the smallest group join it to others. It is assumed to have at least a quarter of the
    average size, N / 4K (as the smallest of ten groups whose sizes fall geometrically by a factor of ten), and k1 is at
    most two thirds of that; only below 30 samples a cluster it is more, as fewer than 5 neighbors do not hold a group
    together. Above 10, results on digits and CIFAR-10 get no better and the time grows; k2 from 2 to 5 are as good.

    >>> from conr.clustering.graph import graph_neighbors
    >>> graph_neighbors(1797, 10), graph_neighbors(60_000, 10), graph_neighbors(400, 10)
    ((10, 3), (10, 3), (7, 2))
    """
    k1 = min(max(round(count / (6 * clusters)), 5), 10, count)
    return k1, max(k1 // 3, 1)


def _nodes(
    features: NDArray[np.float32], settings: ConAff, neighbors: NDArray[np.int64] | None, observer: Observer
) -> tuple[NDArray[np.int64], sparse.csr_matrix, NDArray[np.int64]]:
    """The (N, k1) neighbors of all samples; the nodes, unit rows in an order of their own; where in it a sample is."""
    settings.check(len(features), "the number of samples")
    approximate = len(features) > APPROXIMATE_FROM
    ranking = nearest_neighbors(features, settings.k1, neighbors=neighbors, approximate=approximate, observer=observer)
    nodes, order = conaff_nodes(features, settings, neighbors=ranking, reciprocal=True, entries=ENTRIES)
    return ranking, normalize(nodes, copy=False), np.argsort(order)


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of unit length; a row of zeros stays one."""
    features = np.asarray(features)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features must have shape (N, D) with at least one sample, got {features.shape}")
    if not np.isfinite(features).all():
        bad = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise ValueError(f"features must be finite, and those of sample {bad} are not")
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))[:, None]
    unit = np.empty(features.shape, np.float32)
    np.divide(features, np.where(lengths > 0, lengths, 1), out=unit, casting="same_kind")
    return unit + np.float32(0)  # one kind of zero


def _clusters_of_rows(
    features: NDArray[np.float32], rows: NDArray[np.float32], seed: int, start: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """k-means of the eigenvectors' rows, from two starts. Samples with equal features are in one cluster."""
    as_bytes = np.ascontiguousarray(features).view(np.dtype((np.void, features.itemsize * features.shape[1])))
    _, first, distinct = np.unique(as_bytes.ravel(), return_index=True, return_inverse=True)
    clusters = rows.shape[1]
    if clusters >= len(first):
        return distinct
    if start is None:
        start = kmeans(features, clusters, seed=seed, n_init=STARTS).assignments
    found = [kmeans(rows, clusters, seed=seed, n_init=INITIALIZATIONS, spherical=False)]
    sizes = np.bincount(start, minlength=clusters)
    if sizes.all():
        means = (sums_of_clusters(rows, start) / sizes[:, None]).astype(np.float32)
        found.append(kmeans(rows, clusters, seed=seed, start=means, spherical=False))
    candidates = [result.assignments[first[distinct]] for result in found]
    return max(candidates, key=partial(simplified_silhouette, features))


def _ranked(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same clusters, numbered by size."""
    _, starts, numbers, sizes = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    ranks = np.empty(len(sizes), dtype=np.int64)
    ranks[np.lexsort((starts, -sizes))] = np.arange(len(sizes))
    ranked: NDArray[np.int64] = ranks[numbers]
    return ranked
