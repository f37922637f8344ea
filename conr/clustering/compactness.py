"""How compact clusters are, and which of two clusterings of the same samples that speaks for."""

from typing import Literal

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

LOOSER = 1.5  # mean ratio of distances from which the graph's clusters are too loose, as a multiple of that of k-means
ROWS = 4096  # samples of one step of a loop over a data set


def choose_method(
    features: NDArray[np.float32], kmeans: NDArray[np.int64], graph: NDArray[np.int64]
) -> Literal["kmeans", "graph"]:
    """Choose between the clusters of k-means and those of the graph, without labels.

    The graph's are chosen, unless they are much looser: 1 − s of the graph's is more than 1.5 times 1 − s of those of
    k-means, for the simplified silhouette s. That happens only where the clusters of k-means are compact and apart. If
    the graph then splits one and joins two others, its clusters are not. The 1.5 was read off digits (pixels, and the
    embeddings of seeds 0 and 1, whole and in 15 long-tailed draws) and then tried on others (docs/lab/graph.md).

    Args:
        features: (N, D) float32 unit vectors.
        kmeans: (N,) int64 clusters of k-means, from 0.
        graph: (N,) int64 clusters of the graph, from 0.

    Raises:
        ValueError: clusters that are not one for each sample.

    >>> features = numpy.eye(3).repeat([9, 9, 2], axis=0) + 0.01 * numpy.random.default_rng(0).normal(size=(20, 3))
    >>> features /= numpy.linalg.norm(features, axis=1, keepdims=True)
    >>> compact = numpy.arange(3).repeat([9, 9, 2])
    >>> conr.choose_method(features, compact, compact), conr.choose_method(features, compact, numpy.arange(20) // 7)
    ('graph', 'kmeans')
    """
    for name, clusters in (("kmeans", kmeans), ("graph", graph)):
        if clusters.shape != (len(features),):
            raise ValueError(f"{name} must have shape ({len(features)},), got {clusters.shape}")
    looseness = 1 - simplified_silhouette(features, graph)
    return "kmeans" if looseness > LOOSER * (1 - simplified_silhouette(features, kmeans)) else "graph"


def simplified_silhouette(features: NDArray[np.float32], clusters: NDArray[np.int64]) -> float:
    """The mean of (b − a) / max(a, b), by cosine distances a to the own centroid and b to the nearest other one.

    Hruschka, de Castro, Campello, ICDM 2004. Its cost is linear in N. Centroids are on the unit sphere.

    Args:
        features: (N, D) float32 unit vectors.
        clusters: (N,) int64, from 0; numbers that no sample has do not count.

    Returns:
        From −1 to 1; 0 for a single cluster.
    """
    present, clusters = np.unique(clusters, return_inverse=True)
    if len(present) == 1:
        return 0.0
    centroids = normalize(sums_of_clusters(features, clusters)).astype(np.float32)
    total = 0.0
    for first in range(0, len(features), ROWS):
        distances = (1 - features[first : first + ROWS] @ centroids.T).clip(min=0)
        members = np.arange(len(distances)), clusters[first : first + ROWS]
        own = distances[members]
        distances[members] = np.inf
        other = distances.min(1)
        larger = np.maximum(own, other)
        total += float(((other - own) / np.where(larger > 0, larger, 1)).sum(dtype=np.float64))
    return total / len(features)


def sums_of_clusters(rows: NDArray[np.float32], clusters: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K, D) sums of the rows of each cluster, numbered from 0 to K − 1."""
    members = sparse.csr_matrix((np.ones(len(rows)), clusters, np.arange(len(rows) + 1)))
    sums: NDArray[np.float64] = members.T @ rows
    return sums
