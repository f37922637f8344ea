"""k-means on the unit sphere (faiss), for pseudo labels between epochs and for the final clusters."""

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist


@dataclass(frozen=True)
class Clustering:
    """The outcome of k-means.

    Attributes:
        centroids: (K, D) float32.
        assignments: (N,) int64, from 0 to K − 1.
        inertia: sum of squared distances of the samples to their centroids.
    """

    centroids: NDArray[np.float32]
    assignments: NDArray[np.int64]
    inertia: float


def kmeans(
    features: NDArray[np.float32],
    clusters: int,
    *,
    seed: int,
    restarts: int = 1,
    iterations: int = 100,
    start: NDArray[np.float32] | None = None,
    spherical: bool = True,
) -> Clustering:
    """k-means on all samples; of several restarts, the one with the lowest inertia.

    Args:
        features: (N, D) float32, l2-normalised if spherical.
        clusters: K, at most N.
        seed: seed of the initial centroids, different for every restart.
        restarts: how many k-means++ initialisations to try. Labels never choose among them.
        iterations: largest number of iterations of one restart.
        start: (K, D) centroids to start from instead; then there is one run.
        spherical: keep the centroids on the unit sphere (cosine k-means).

    Returns:
        The clustering with the lowest inertia.

    Raises:
        ValueError: more clusters than samples, or a start of another shape.
    """
    count, dimension = features.shape
    if not 1 <= clusters <= count:
        raise ValueError(f"clusters = {clusters} must lie between 1 and the number of samples ({count})")
    if start is not None and start.shape != (clusters, dimension):
        raise ValueError(f"start must have shape {(clusters, dimension)}, got {start.shape}")
    features = np.ascontiguousarray(features, dtype=np.float32)
    best: Clustering | None = None
    for restart in range(1 if start is not None else restarts):
        own_seed = int(np.random.SeedSequence([seed, restart]).generate_state(1)[0]) % 2**31
        result = _one_run(features, clusters, own_seed, iterations, start, spherical)
        if best is None or result.inertia < best.inertia:
            best = result
    assert best is not None
    return best


def distances_to(features: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Euclidean distances of (N, D) features to (K, D) centroids, (N, K)."""
    distances: NDArray[np.float32] = cdist(features, centroids).astype(np.float32)
    return distances


def _one_run(
    features: NDArray[np.float32],
    clusters: int,
    seed: int,
    iterations: int,
    start: NDArray[np.float32] | None,
    spherical: bool,
) -> Clustering:
    count, dimension = features.shape
    settings = faiss.ClusteringParameters()
    settings.niter = iterations
    settings.nredo = 1
    settings.seed = seed
    settings.spherical = spherical
    settings.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    settings.min_points_per_centroid = 1
    settings.max_points_per_centroid = count  # faiss would silently train on 256 a centroid
    settings.early_stop_threshold = 1e-6  # relative change of the objective
    settings.update_index = False
    settings.frozen_centroids = False
    settings.int_centroids = False
    settings.verbose = False
    run = faiss.Clustering(dimension, clusters, settings)
    if start is not None:
        faiss.copy_array_to_vector(np.ascontiguousarray(start, dtype=np.float32).ravel(), run.centroids)
    index = faiss.IndexFlatL2(dimension)
    run.train(features, index)
    centroids = faiss.vector_to_array(run.centroids).reshape(clusters, dimension).copy()
    index.reset()
    index.add(centroids)
    squared, assignments = index.search(features, 1)
    return Clustering(centroids, assignments[:, 0].astype(np.int64), float(squared.sum(dtype=np.float64)))
