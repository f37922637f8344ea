"""Which cluster each embedding belongs to, and how far it is from the centroids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conr.text import no_formula

BLOCK = 2**22  # distances that are held at a time
ROWS = 128  # embeddings whose differences to a centroid are held at a time: they fit into a cache


@dataclass(frozen=True)
class Assignment:
    """The centroid of each sample's cluster, and the nearest other one.

    Attributes:
        clusters: (N,) int64.
        own_distance: (N,) float32, the distance to the cluster's centroid.
        next_cluster: (N,) int64, the nearest other centroid; −1 where there is one centroid only.
        next_distance: (N,) float32, the distance to that; infinite where there is none.
    """

    clusters: NDArray[np.int64]
    own_distance: NDArray[np.float32]
    next_cluster: NDArray[np.int64]
    next_distance: NDArray[np.float32]

    @property
    def boundary_ratio(self) -> NDArray[np.float32]:
        """(N,) float32, Eq. 11: 1 − (d_N − d_I) / max(d_I, d_N).

        0 on the centroid, 1 half-way between two; 1 if both distances are 0, and 0 where there is no other centroid. Of
        clusters that are not those of the nearest centroids it is above 1, up to 2, where another centroid is nearer.
        """
        near, far = np.minimum(self.own_distance, self.next_distance), np.maximum(self.own_distance, self.next_distance)
        share: NDArray[np.float32] = np.divide(near, far, out=np.ones_like(near), where=far > 0)
        ratio: NDArray[np.float32] = np.where(self.own_distance <= self.next_distance, share, 2 - share)
        return ratio

    def table(
        self,
        files: Sequence[str],
        labels: Sequence[str] | None = None,
        *,
        names: Mapping[int, str] | None = None,
        positions: NDArray[np.float32] | None = None,
    ) -> tuple[list[str], list[list[object]]]:
        """Columns and rows of the table of assignments: one row per sample.

        An apostrophe stands before a name or label that a spreadsheet would take for a formula
        (`conr.text.no_formula`).

        Args:
            files: the N names.
            labels: the N labels, empty where unknown; or None for no such column.
            names: those of clusters that have one; empty or None for no such column.
            positions: (N, 2) on the map; or None for no such columns.
        """
        columns: dict[str, list[object]] = {
            "file": list(map(no_formula, files)),
            "cluster": self.clusters.tolist(),
            "own_distance": _decimals(self.own_distance),
            "next_cluster": [None if number < 0 else number for number in self.next_cluster.tolist()],
            "next_distance": _decimals(self.next_distance),
            "boundary_ratio": _decimals(self.boundary_ratio),
        }
        if labels is not None:
            columns["label"] = list(map(no_formula, labels))
        if names:
            columns["name"] = [no_formula(names.get(cluster, "")) for cluster in self.clusters.tolist()]
        if positions is not None:
            columns["x"], columns["y"] = map(_decimals, positions.T)
        return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def assign(
    embeddings: NDArray[np.float32], centroids: NDArray[np.float32], clusters: NDArray[np.int64] | None = None
) -> Assignment:
    """Assign (N, D) embeddings to the nearest of (K, D) centroids, in blocks of bounded memory.

    Clusters that are known already, (N,) int64, are taken as they are: then only the distances are computed.
    """
    count = len(embeddings)
    own, next_cluster = np.empty((2, count), dtype=np.int64)
    own_distance, next_distance = np.empty((2, count), dtype=np.float32)
    size = max(BLOCK // len(centroids), 1)
    for first in range(0, count, size):
        block = slice(first, first + size)
        distances = _distances(embeddings[block], centroids)
        rows = np.arange(len(distances))
        own[block] = distances.argmin(1) if clusters is None else clusters[block]
        own_distance[block] = distances[rows, own[block]]
        distances[rows, own[block]] = np.inf
        second = distances.argmin(1)
        next_distance[block] = distances[rows, second]
        next_cluster[block] = second if len(centroids) > 1 else -1
    return Assignment(own, own_distance, next_cluster, next_distance)


def _distances(rows: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, K) Euclidean distances, from differences in float64: a row that equals a centroid has 0 to it."""
    squares, centers = np.empty((len(rows), len(centroids))), centroids.astype(np.float64)
    for first in range(0, len(rows), ROWS):
        part = rows[first : first + ROWS].astype(np.float64)
        for number, center in enumerate(centers):
            differences = part - center
            np.einsum("nd,nd->n", differences, differences, out=squares[first : first + ROWS, number])
    return np.sqrt(squares).astype(np.float32)


def _decimals(values: NDArray[np.float32]) -> list[object]:
    return [f"{value:.4f}" if np.isfinite(value) else None for value in values]
