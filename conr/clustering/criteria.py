"""What unlabeled features say about the number of clusters K: one curve over the candidates per criterion.

Each function has its source. `conr.clustering.choose` turns curves into a choice.
"""

from collections.abc import Sequence

import faiss
import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances, silhouette_score
from sklearn.preprocessing import normalize

from conr.clustering.kmeans import kmeans
from conr.clustering.spectral import Affinity, leading_eigenvectors
from conr.neighbors.graph import conaff_nodes
from conr.neighbors.settings import ConAff

Features = NDArray[np.float32]
Curve = NDArray[np.float64]

MOST_NEIGHBORS = 30  # of a sample in the graph whose mini-clusters are merged
PER_MINI_CLUSTER = 20  # samples of a mini-cluster, on average
MOST_MINI_CLUSTERS = 300
MERGES = 5  # times that a data set is divided into mini-clusters; the median counts
SPLITS = 2  # into random halves
REGULARIZATION = 0.1  # of the ConAff graph
TINY = 1e-9  # distances from 1 that are rounding errors
MAX_ITER = 15  # of a k-means
N_INIT = 5


def graph_eigenvalues(features: Features, number: int, seed: int) -> Curve:
    """The largest eigenvalues of the regularized affinity of the ConAff graph, descending; at most N.

    The graph is coarser than that of `graph_clusters`: parts of a group shall not look like groups. k1 is 30, below 480
    samples N / 16, but at least 5; k2 is a fifth of it, at least 2. The others of `ConAff` are its defaults.

    Args:
        features: (N, D) unit vectors.
        number: how many.
        seed: of the vector that Lanczos' iterations start from.
    """
    count = len(features)
    k1 = min(max(count // 16, 5), 30, count)
    nodes, _ = conaff_nodes(features, ConAff(k1, min(max(k1 // 5, 2), k1)))
    with Affinity(normalize(nodes), REGULARIZATION) as affinity:
        return leading_eigenvectors(affinity, min(number, count), seed)[0]


def eigenvalue_ratios(eigenvalues: Curve, candidates: Sequence[int]) -> Curve:
    """(1 − λ_(K+1)) / (1 − λ_K) of a graph's normalized affinity, (C,): large where K groups have few links between.

    1 − λ_K is 0 where the graph falls into K parts, and grows with what it costs to cut it into K. The ratio is the
    eigengap relative to that cost: where groups are well apart, the gap itself says little, because beyond K all
    eigenvalues are nearly as far from 1.

    Sources: the eigengap, von Luxburg, A Tutorial on Spectral Clustering (2007), section 8.3; ratios of eigenvalues to
    find a number of factors, Lam and Yao (Annals of Statistics 2012).

    Args:
        eigenvalues: the largest ones, descending.
        candidates: values of K; NaN where there are no K + 1 eigenvalues, and for K = 1, where 1 − λ is 0.
    """
    distances = np.append(1 - eigenvalues, np.full(max(candidates) + 1, np.nan)).clip(min=0)
    chosen = np.array(candidates)
    ratios: Curve = distances[chosen] / np.where(distances[chosen - 1] > TINY, distances[chosen - 1], np.nan)
    return ratios


def silhouettes(features: Features, candidates: Sequence[int], seed: int) -> Curve:
    """Mean silhouette of k-means clusters, (C,), from −1 to 1: how much nearer the own cluster is than the next.

    Source: Rousseeuw, Silhouettes (Journal of Computational and Applied Mathematics 1987). Distances are Euclidean,
    those of all pairs.

    Args:
        features: (N, D) unit vectors.
        candidates: values of K; NaN for K = 1 and for K = N.
        seed: of k-means.
    """
    values, distances = [], pairwise_distances(features)
    np.fill_diagonal(distances, 0)
    for clusters in candidates:
        found = kmeans(features, clusters, seed=seed, n_init=N_INIT, max_iter=MAX_ITER).assignments
        possible = 2 <= len(np.unique(found)) < len(features)
        values.append(silhouette_score(distances, found, metric="precomputed") if possible else np.nan)
    return np.array(values, dtype=np.float64)


def prediction_strengths(features: Features, candidates: Sequence[int], seed: int) -> Curve:
    """Prediction strength, (C,), from 0 to 1: do clusters of one random half predict those of the other?

    Of the pairs of samples in a k-means cluster of one half, the share that the centroids of the other half put
    together, too; of the cluster where it is least. The mean over both halves of each split.

    Source: Tibshirani and Walther, Cluster Validation by Prediction Strength (JCGS 2005).

    Args:
        features: (N, D) unit vectors.
        candidates: values of K; NaN where a half has fewer samples.
        seed: of the splits and of k-means.
    """
    count = len(features)
    values = np.full((SPLITS, 2, len(candidates)), np.nan)
    for split in range(SPLITS):
        order = np.random.default_rng([seed, split]).permutation(count)
        halves = features[order[: count // 2]], features[order[count // 2 :]]
        for column, clusters in enumerate(candidates):
            if clusters > len(halves[0]):
                continue
            found = [kmeans(half, clusters, seed=seed, n_init=N_INIT, max_iter=MAX_ITER) for half in halves]
            for own in range(2):
                predicted = (halves[own] @ found[1 - own].centroids.T).argmax(1)
                values[split, own, column] = pairs_together(found[own].assignments, predicted, clusters)
    means: Curve = values.mean((0, 1))
    return means


def pairs_together(clusters: NDArray[np.int64], predicted: NDArray[np.int64], count: int) -> float:
    """The least share, over clusters, of the pairs within a cluster that are predicted to be together.

    A cluster of one sample has no pairs and does not count.

    Args:
        clusters: (N,) from 0 to count − 1.
        predicted: (N,) likewise.
        count: of clusters.
    """
    table = np.zeros((count, count))
    np.add.at(table, (clusters, predicted), 1)
    sizes = table.sum(1)
    pairs = sizes * (sizes - 1)
    together = (table * (table - 1)).sum(1)
    return float((together[pairs > 0] / pairs[pairs > 0]).min(initial=1.0))


def merge_weights(features: Features, candidates: Sequence[int], seed: int) -> Curve:
    """How closely the two closest of K merged mini-clusters are linked, (C,), from 0 to 1.

    k-means makes many mini-clusters. The weight of two clusters is the share of the reciprocal nearest-neighbor links
    of the one with fewer that lead to the other. The pair of the largest weight is merged until one cluster remains;
    the curve is that weight while K remain, the median of five runs from other mini-clusters.

    Sources: Karypis, Han, Kumar, Chameleon (Computer 1999), which merges the parts of a nearest-neighbor graph by
    their links; reciprocal neighbors, Gowda and Krishna (Pattern Recognition 1978).

    Args:
        features: (N, D) unit vectors.
        candidates: values of K; NaN where there are fewer mini-clusters, and 0 for K = 1.
        seed: of the mini-clusters.
    """
    links = reciprocal_links(features, MOST_NEIGHBORS)
    number = min(max(len(features) // PER_MINI_CLUSTER, 2), MOST_MINI_CLUSTERS, len(features))
    curves = np.full((MERGES, max(number, *candidates) + 1), np.nan)
    for run in range(MERGES):
        parts = kmeans(features, number, seed=seed + run, max_iter=MAX_ITER).assignments
        members = sparse.csr_matrix((np.ones(len(parts)), parts, np.arange(len(parts) + 1)), (len(parts), number))
        weights = merge((members.T @ links @ members).toarray())
        curves[run, 1 : len(weights) + 1] = weights
    runs: Curve = np.median(curves, axis=0)
    return runs[list(candidates)]


def reciprocal_links(features: Features, most: int) -> sparse.csr_matrix:
    """(N, N) symmetric: 1 for two samples of which each is among the other's `most` nearest, the own one left out."""
    count = len(features)
    found = faiss.knn(features, features, min(most + 1, count), metric=faiss.METRIC_INNER_PRODUCT)[1]
    starts = np.arange(0, found.size + 1, found.shape[1])
    ranked = sparse.csr_matrix((np.ones(found.size), found.ravel(), starts), (count, count))
    ranked.setdiag(0)
    return ranked.multiply(ranked.T).tocsr()


def merge(links: Curve) -> Curve:
    """Merge M clusters, (M, M) links between and within them, into one; (M,): the largest weight with K = 1 … M left.

    Clusters without any link are left out first, so that there may be fewer than M.
    """
    links = links[links.any(1)][:, links.any(1)].copy()
    weights = [0.0]
    sums = links.sum(1)
    shares = links / np.minimum(sums[:, None], sums)
    np.fill_diagonal(shares, -1)
    for _ in range(len(links) - 1):
        first, second = np.unravel_index(shares.argmax(), shares.shape)
        weights.append(float(shares[first, second]))
        links[first] += links[second]
        links[:, first] += links[:, second]
        sums[first] += sums[second]
        sums[second] = np.inf
        links[second] = links[:, second] = 0
        shares[second] = shares[:, second] = -1
        shares[first] = shares[:, first] = np.where(np.isfinite(sums), links[first] / np.minimum(sums[first], sums), -1)
        shares[first, first] = -1
    return np.array([weights[0], *weights[:0:-1]])
