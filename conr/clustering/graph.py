"""Clusters of the ConAff graph of a whole data set: regularized spectral clustering in linear time and memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Embedding:
    """The samples in the leading eigenvectors of a graph.

    Attributes:
        variant: how its nodes were made.
        nodes: (N, N), unit rows, in an order of their own.
        place: (N,) where in it each sample is.
        values: the largest eigenvalues.
        scaled: (N, K) eigenvectors over the roots of the degrees, in the samples' order.
        rows: (N, K) of the eigenvectors, of unit length, likewise.
    """

    variant: ConAff
    nodes: sparse.csr_matrix
    place: NDArray[np.int64]
    values: NDArray[np.float64]
    scaled: NDArray[np.float64]
    rows: NDArray[np.float32]


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

    Where some groups are as easily split as others are joined, small changes decide. So there are several results: with
    several k2, and for each from two runs of k-means on the rows, from its own initializations and from the clusters of
    k-means on the features. The one with the largest simplified silhouette in the feature space (Hruschka, de Castro,
    Campello, ICDM 2004) is returned.

    Time and memory grow linearly with N; up to 30,000 samples all pairs are compared to find the nearest neighbors,
    beyond that lists of similar samples are searched.

    Args:
        features: (N, D); only directions count, rows are scaled to unit length.
        clusters: K, from 1 to N.
        k1: neighbors that define the reciprocal encoding, the sample itself included; by default those of
            `graph_neighbors`.
        k2: neighbors that a layer of propagation sums over; by default several, likewise, and at most k1.
        regularization: τ, the share of the mean degree that is spread over all pairs; at least 0.
        seed: of the eigenvectors' start and of k-means.
        neighbors: (N, ≥ k1) nearest neighbors by cosine if they are known already, as for `conaff_graph`.
        start: (N,) the clusters of k-means on the features, from 0 to K − 1, if they are known already.
        ballots: compute them.
        observer: notified of every sample as its neighbors are searched, then as the eigenvectors of each k2 are known.

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
    variants = _variants(count, clusters, k1, k2)
    first, distinct = _distinct(features)
    if clusters >= len(first):
        variants, start = variants[:1], None  # each sample that differs is a cluster
    else:
        start = _start(features, clusters, seed, start)
    with observer.task("graph", count * (1 + len(variants))):
        ranking = nearest_neighbors(
            features, variants[0].k1, neighbors=neighbors, approximate=count > APPROXIMATE_FROM, observer=observer
        )
        graphs = (_embed(features, variant, ranking, clusters, regularization, seed) for variant in variants)
        graph, found = _most_compact(features, graphs, seed, start, (first, distinct), observer)
    table = _ballots(features, ranking, graph, found) if ballots and found.max() < MOST else None
    return Clustering(found, graph.values, graph.variant.k1, graph.variant.k2, table)


def _most_compact(
    features: NDArray[np.float32],
    graphs: Iterable[_Embedding],
    seed: int,
    start: NDArray[np.int64] | None,
    different: tuple[NDArray[np.int64], NDArray[np.int64]],
    observer: Observer,
) -> tuple[_Embedding, NDArray[np.int64]]:
    """The graph and its clusters, numbered by size, with the largest simplified silhouette; the first of equal ones.

    Without clusters to start from, each of the samples that differ (as `_distinct` returns them) is a cluster.
    """
    best, most = None, -np.inf
    first, distinct = different
    for graph in graphs:
        for found in [distinct] if start is None else _clusters_of_rows(graph.rows, seed, start):
            assignments = found[first[distinct]]
            silhouette = simplified_silhouette(features, assignments)
            if silhouette > most:
                best, most = (graph, _ranked(assignments)), silhouette
        observer.step_done(len(features))
    assert best is not None
    return best


def _variants(count: int, clusters: int, k1: int | None, k2: int | None) -> list[ConAff]:
    """The graphs to try."""
    ruled_k1, ruled_k2 = graph_neighbors(count, clusters)
    k1 = ruled_k1 if k1 is None else k1
    tried = sorted({min(each, k1) for each in ruled_k2}) if k2 is None else [k2]
    variants = [ConAff(k1, each, alpha=0, layers=1) for each in tried]
    for variant in variants:
        variant.check(count, "the number of samples")
    return variants


def _start(
    features: NDArray[np.float32], clusters: int, seed: int, given: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """The clusters of k-means on the features."""
    if given is None:
        return kmeans(features, clusters, seed=seed, n_init=STARTS).assignments
    if given.shape != (len(features),) or given.min() < 0 or given.max() >= clusters:
        raise ValueError(f"start must be {len(features)} clusters from 0 to {clusters - 1}")
    return given


def _embed(
    features: NDArray[np.float32],
    variant: ConAff,
    ranking: NDArray[np.int64],
    clusters: int,
    regularization: float,
    seed: int,
) -> _Embedding:
    nodes, order = conaff_nodes(features, variant, neighbors=ranking, reciprocal=True, entries=ENTRIES)
    nodes, place = normalize(nodes, copy=False), np.argsort(order)
    with Affinity(nodes, regularization) as affinity:
        values, vectors = leading_eigenvectors(affinity, min(clusters + MORE, len(features)), seed)
    vectors = vectors[place, :clusters]
    rows = normalize(vectors).astype(np.float32)
    return _Embedding(variant, nodes, place, values, affinity.scale[place, None] * vectors, rows)


def _ballots(
    features: NDArray[np.float32], ranking: NDArray[np.int64], graph: _Embedding, found: NDArray[np.int64]
) -> NDArray[np.float32]:
    nodes = graph.nodes[graph.place][:, graph.place]
    return ballots_of(features, ranking, graph.variant.k2, nodes, graph.scaled, graph.rows, found)


def graph_neighbors(count: int, clusters: int) -> tuple[int, tuple[int, ...]]:
    """k1, and the k2 to try, of a graph of so many samples and clusters.

    k1 = N / 6K, from 5 to 10, and k2 is a fifth, a third and a half of that.

    Neighborhoods larger than the smallest group join it to others. It is assumed to have at least a quarter of the
    average size, N / 4K (as the smallest of ten groups whose sizes fall geometrically by a factor of ten), and k1 is at
    most two thirds of that; only below 30 samples a cluster it is more, as fewer than 5 neighbors do not hold a group
    together. Above 10, results on digits and CIFAR-10 get no better and the time grows; k2 from 2 to 5 are equally good
    in the mean, and each fails where others do not (docs/lab/graph.md).

    >>> from conr.clustering.graph import graph_neighbors
    >>> graph_neighbors(1797, 10), graph_neighbors(60_000, 10), graph_neighbors(400, 10)
    ((10, (2, 3, 5)), (10, (2, 3, 5)), (7, (1, 2, 3)))
    """
    k1 = min(max(round(count / (6 * clusters)), 5), 10, count)
    return k1, tuple(sorted({max(k1 // part, 1) for part in (5, 3, 2)}))


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


def _distinct(features: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One of each of the samples that differ, and for every sample which of these it equals."""
    as_bytes = np.ascontiguousarray(features).view(np.dtype((np.void, features.itemsize * features.shape[1])))
    _, first, distinct = np.unique(as_bytes.ravel(), return_index=True, return_inverse=True)
    return first, distinct


def _clusters_of_rows(rows: NDArray[np.float32], seed: int, start: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """k-means of the eigenvectors' rows: from its own initializations, and from given clusters if none is empty."""
    clusters = rows.shape[1]
    yield kmeans(rows, clusters, seed=seed, n_init=INITIALIZATIONS, spherical=False).assignments
    sizes = np.bincount(start, minlength=clusters)
    if sizes.all():
        means = (sums_of_clusters(rows, start) / sizes[:, None]).astype(np.float32)
        yield kmeans(rows, clusters, seed=seed, start=means, spherical=False).assignments


def _ranked(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same clusters, numbered by size."""
    _, starts, numbers, sizes = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    ranks = np.empty(len(sizes), dtype=np.int64)
    ranks[np.lexsort((starts, -sizes))] = np.arange(len(sizes))
    ranked: NDArray[np.int64] = ranks[numbers]
    return ranked
