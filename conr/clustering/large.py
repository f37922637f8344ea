"""Clusters of more vectors than memory holds: computed from a sample of bounded size, then all are assigned in blocks.

Memory depends on K and D, not on N; so does the time of a vector.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.clustering.graph import graph_clusters
from conr.clustering.kmeans import kmeans
from conr.clustering.votes import Voters
from conr.files import ArrayWriter, atomic_file
from conr.observer import SILENT, Observer
from conr.vectors import Vectors

PER_CLUSTER = 256  # vectors that k-means is trained on, as in faiss: more hardly move the centroids
NODES = 100_000  # of the graph: a cluster of one vector in a thousand still has a hundred
ROWS, SCORES = 2**15, 2**24  # vectors and scores of a block, at most

Assign = Callable[[NDArray[np.float32]], NDArray[np.int64]]


@dataclass(frozen=True)
class LargeClustering:
    """Clusters of many vectors.

    Attributes:
        sampled: (S, D) float32 vectors that they were computed from.
        assignments: (S,) int64, the clusters of these.
        centroids: (K, D) float32, their means on the unit sphere.
        sizes: (K,) int64, how many of all vectors are in each.
    """

    sampled: NDArray[np.float32]
    assignments: NDArray[np.int64]
    centroids: NDArray[np.float32]
    sizes: NDArray[np.int64]


def kmeans_large(
    vectors: Vectors,
    clusters: int,
    path: Path,
    *,
    seed: int,
    n_init: int = 1,
    per_cluster: int = PER_CLUSTER,
    observer: Observer = SILENT,
) -> LargeClustering:
    """Spherical k-means of a sample, and the nearest centroid of every vector.

    Args:
        vectors: N unit vectors.
        clusters: K.
        path: of the .npy file of N int32 clusters, −1 for a null; it appears whole.
        seed: of the sample and of the initial centroids.
        n_init: initializations of k-means.
        per_cluster: K times so many vectors are sampled, at most.
        observer: notified of every vector that is assigned.

    Raises:
        ValueError: fewer vectors than clusters.
        UserError: a file of vectors is damaged.
    """
    rows = max(min(ROWS, SCORES // clusters), 1)
    sampled = vectors.sample(per_cluster * clusters, seed, rows)
    found = kmeans(sampled, clusters, seed=seed, n_init=n_init)
    transposed = np.ascontiguousarray(found.centroids.T)
    sizes = _write(vectors, clusters, path, lambda block: (block @ transposed).argmax(1), rows, observer)
    return LargeClustering(sampled, found.assignments, found.centroids, sizes)


def graph_clusters_large(
    vectors: Vectors,
    clusters: int,
    path: Path,
    *,
    seed: int = 0,
    nodes: int = NODES,
    observer: Observer = SILENT,
) -> LargeClustering:
    """Clusters of the graph of a sample (`graph_clusters`), and of every vector by the ballots of its neighbors in it.

    The neighbors are found in lists of similar vectors of the sample. A vector of the sample keeps its cluster.

    Args:
        vectors: N unit vectors.
        clusters: K.
        path: of the .npy file of N int32 clusters, −1 for a null; it appears whole.
        seed: of the sample and of all that `graph_clusters` draws.
        nodes: vectors of the sample, at most.
        observer: notified of what `graph_clusters` does, and of every vector that is assigned.

    Raises:
        ValueError: fewer vectors than clusters.
        UserError: a file of vectors is damaged.
    """
    sampled = vectors.sample(nodes, seed, ROWS)
    found = graph_clusters(sampled, clusters, seed=seed, ballots=True, observer=observer)
    assignments = found.assignments
    voters = Voters(sampled, assignments, clusters, ballots=found.ballots, approximate=True)
    sizes = _write(vectors, clusters, path, lambda block: voters.assign(block)[0], ROWS, observer)
    sums = np.zeros((clusters, vectors.dimension))
    np.add.at(sums, assignments, sampled)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    centroids = (sums / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return LargeClustering(sampled, assignments, centroids, sizes)


def _write(
    vectors: Vectors, clusters: int, path: Path, assign: Assign, rows: int, observer: Observer
) -> NDArray[np.int64]:
    """Write the cluster of every vector; returns how many are in each."""
    sizes = np.zeros(clusters, np.int64)
    with (
        atomic_file(path) as temporary,
        temporary.open("wb") as file,
        observer.task("assign", len(vectors)),
    ):
        writer = ArrayWriter(file, (), np.int32)
        for block in vectors.blocks(rows):
            known = ~np.isnan(block[:, 0])
            found = np.full(len(block), -1, np.int32)
            found[known] = assign(block[known])
            sizes += np.bincount(found[known], minlength=clusters)
            writer.append(found)
            observer.step_done(len(block))
        writer.close()
    return sizes
