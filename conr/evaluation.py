"""The final clusters of a set of embeddings, and everything that is said about them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from conr.boundary import boundary_ratio
from conr.clustering import distances_to, kmeans
from conr.metrics import balance, cluster_sizes, feature_spread, label_scores, silhouette

MAP_POINTS = 2_000  # the map of the embeddings is a picture: more points hide more than they show


@dataclass(frozen=True)
class Placement:
    """Where samples lie among the centroids.

    Attributes:
        assignments: (N,) int64, the nearest centroid.
        own_distance: (N,) float32, the distance to it.
        next_cluster: (N,) int64, the second nearest centroid.
        next_distance: (N,) float32, the distance to that.
        boundary_ratio: (N,) float32, Eq. 11: near 0 in the middle of a cluster, near 1 between two.
    """

    assignments: NDArray[np.int64]
    own_distance: NDArray[np.float32]
    next_cluster: NDArray[np.int64]
    next_distance: NDArray[np.float32]
    boundary_ratio: NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """Clusters, numbered by size from the largest.

    Attributes:
        centroids: (K, D) float32.
        sizes: (K,) int64, falling.
        placement: where each sample lies.
        scores: name → value; acc, nmi and ari only if there are labels.
    """

    centroids: NDArray[np.float32]
    sizes: NDArray[np.int64]
    placement: Placement
    scores: dict[str, float]


def place(embeddings: NDArray[np.float32], centroids: NDArray[np.float32]) -> Placement:
    """Assign (N, D) embeddings to the nearest of (K, D) centroids, K ≥ 2."""
    distances = distances_to(embeddings, centroids)
    order = np.argpartition(distances, 1, axis=1)[:, :2]
    nearest, second = order[:, 0], order[:, 1]
    rows = np.arange(len(embeddings))
    ratio = boundary_ratio(torch.from_numpy(embeddings), torch.from_numpy(nearest), torch.from_numpy(centroids))
    return Placement(nearest, distances[rows, nearest], second, distances[rows, second], ratio.numpy())


def evaluate(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    clusters: int,
    *,
    restarts: int,
    iterations: int,
    seed: int,
    clustered: slice = slice(None),
    scored: slice = slice(None),
) -> Evaluation:
    """Cluster unit vectors with k-means and score the result. Labels are read after the clusters are settled.

    Every embedding is assigned to its nearest centroid, whether k-means saw it or not.

    Args:
        embeddings: (N, D) float32 unit vectors.
        labels: (N,) int64, −1 where unknown; or None.
        clusters: K ≥ 2.
        restarts: restarts of k-means; the one with the lowest inertia counts.
        iterations: largest number of iterations of a restart.
        seed: seed of k-means and of the sample that the silhouette is taken on.
        clustered: which embeddings k-means sees.
        scored: which embeddings the agreement with labels and the silhouette are taken on; balance, spread and sizes
            describe all embeddings, the inertia those that k-means saw.
    """
    found = kmeans(embeddings[clustered], clusters, seed=seed, restarts=restarts, iterations=iterations)
    by_size = np.argsort(-cluster_sizes(found.assignments, clusters), kind="stable")
    placement = place(embeddings, found.centroids[by_size])
    sizes = cluster_sizes(placement.assignments, clusters)
    assignments = placement.assignments[scored]
    scores = label_scores(None if labels is None else labels[scored], assignments)
    width = silhouette(embeddings[scored], assignments, seed)
    if width is not None:
        scores["silhouette"] = width
    scores |= {
        "balance": balance(sizes),
        "spread": feature_spread(embeddings),
        "inertia": found.inertia,
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
    }
    return Evaluation(found.centroids[by_size], sizes, placement, scores)


def embedding_map(embeddings: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A plane in which neighbours stay neighbours (t-SNE), for at most 2,000 of the samples.

    Returns:
        (M, 2) positions, and the (M,) indices of the samples.
    """
    count = len(embeddings)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:MAP_POINTS])
    sample = embeddings[chosen]
    if len(sample) < 10:
        return PCA(2).fit_transform(sample).astype(np.float32), chosen
    perplexity = min(30, (len(sample) - 1) / 3)
    plane = TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=seed).fit_transform(sample)
    return plane.astype(np.float32), chosen
