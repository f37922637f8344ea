"""Which cluster each embedding belongs to: the one of the nearest centroid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

BLOCK = 2**22  # distances that are held at a time


@dataclass(frozen=True)
class Assignment:
    """The nearest and the second nearest centroid of each sample.

    Attributes:
        clusters: (N,) int64, the nearest centroid.
        own_distance: (N,) float32, the distance to it.
        next_cluster: (N,) int64, the second nearest centroid.
        next_distance: (N,) float32, the distance to that.
    """

    clusters: NDArray[np.int64]
    own_distance: NDArray[np.float32]
    next_cluster: NDArray[np.int64]
    next_distance: NDArray[np.float32]

    @property
    def boundary_ratio(self) -> NDArray[np.float32]:
        """(N,) float32, Eq. 11: 0 on the centroid, 1 half-way between two.

        Of a sample in its nearest cluster 1 − (d_N − d_I) / max(d_I, d_N) is d_I / d_N; 1 if both are 0.
        """
        ratio: NDArray[np.float32] = np.divide(
            self.own_distance, self.next_distance, out=np.ones_like(self.own_distance), where=self.next_distance > 0
        )
        return ratio

    def table(self, files: list[str], labels: list[str] | None = None) -> tuple[list[str], list[list[object]]]:
        """Columns and rows of the table of assignments: one row per sample.

        Args:
            files: the N names.
            labels: the N labels, empty where unknown; or None for no such column.
        """
        columns: dict[str, list[object]] = {
            "file": list(files),
            "cluster": self.clusters.tolist(),
            "own_distance": _decimals(self.own_distance),
            "next_cluster": self.next_cluster.tolist(),
            "next_distance": _decimals(self.next_distance),
            "boundary_ratio": _decimals(self.boundary_ratio),
        }
        if labels is not None:
            columns["label"] = list(labels)
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def assign(embeddings: NDArray[np.float32], centroids: NDArray[np.float32]) -> Assignment:
    """Assign (N, D) embeddings to the nearest of (K, D) centroids, K ≥ 2, in blocks of bounded memory."""
    count = len(embeddings)
    clusters, next_cluster = np.empty((2, count), dtype=np.int64)
    own_distance, next_distance = np.empty((2, count), dtype=np.float32)
    size = max(BLOCK // len(centroids), 1)
    for first in range(0, count, size):
        block = slice(first, first + size)
        distances = cdist(embeddings[block], centroids).astype(np.float32)
        nearest, second = np.argpartition(distances, 1, axis=1)[:, :2].T
        rows = np.arange(len(distances))
        clusters[block], next_cluster[block] = nearest, second
        own_distance[block], next_distance[block] = distances[rows, nearest], distances[rows, second]
    return Assignment(clusters, own_distance, next_cluster, next_distance)


def _decimals(values: NDArray[np.float32]) -> list[object]:
    return [f"{value:.4f}" for value in values]
