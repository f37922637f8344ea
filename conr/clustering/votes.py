"""Clusters of new samples, by the votes of their nearest neighbors among those whose clusters are known."""

from dataclasses import dataclass
from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

from conr.neighbors.lists import Lists
from conr.observer import SILENT, Observer

NEIGHBORS = 10  # that vote, at most
LINKED = 2  # of these, whose reciprocal encodings may count, too
SAME = 1 - 1e-6  # cosine from which a stored sample is taken for the new one: float32 rounds to about 1e-7
NEAREST = 1e-3  # added to the distance 1 − s: closer neighbors do not count for more and more
ROWS = 4096  # samples of one step


def assign_by_neighbors(
    embeddings: NDArray[np.float32],
    stored: NDArray[np.float32],
    clusters: NDArray[np.int64],
    count: int,
    *,
    neighbors: int = NEIGHBORS,
    ballots: NDArray[np.float32] | None = None,
    observer: Observer = SILENT,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Assign samples to the clusters of their nearest neighbors among stored samples.

    The rule, for a unit vector x and the unit vectors s_1 … s_N with clusters c_1 … c_N:

    1. MatMul: similarities x · s_j. TopK: those of the n = min(neighbors, N) nearest, σ_1 ≥ … ≥ σ_n, with clusters
       κ_1 … κ_n; of equal similarities the lower index first.
    2. Weights w_i = 1 / (1.001 − min(σ_i, 1)). One-hot sum: votes v_c = Σ_i w_i [κ_i = c] / Σ_i w_i.
    3. If σ_1 ≥ 1 − 1e-6 the sample is a stored one, and its cluster is κ_1; else it is the c of the largest v_c, of
       equal ones the lowest. The confidence is v of that cluster.

    With the ballots of a graph (`Clustering.ballots`; of stored sample j b_j, b'_j, ρ_j and ρ'_j) the largest
    Σ_i ½ (1 + [σ_i > ρ_i]) b_i + Σ_{i ≤ 2} [σ_i > ρ'_i] b'_i takes the place of the largest v_c: the new sample's row
    in the eigenvectors of the graph, compared with the mean directions of the clusters. On CIFAR-10 this agrees with a
    clustering that saw the samples four to five points more often than votes do (docs/lab/graph.md).

    Args:
        embeddings: (M, D) float32 unit vectors.
        stored: (N, D) float32 unit vectors.
        clusters: (N,) int64, the cluster of each stored sample, from 0 to count − 1.
        count: how many clusters there are.
        neighbors: that vote; of fewer stored samples all.
        ballots: (N, 2 F + 2) float32, of the graph's F ≤ count clusters; None for votes alone.
        observer: notified of every sample.

    Returns:
        (M,) int64 clusters and (M,) float32 confidences, from 0 to 1 (from 1 / count without ballots).

    Raises:
        ValueError: shapes that do not fit, nothing stored, a cluster out of range, features that are not finite.

    >>> stored, clusters = numpy.eye(4, dtype="float32"), numpy.array([0, 0, 1, 1])
    >>> found, confidence = conr.assign_by_neighbors(stored[2:3], stored, clusters, 2, neighbors=2)
    >>> found.tolist(), confidence.round(2).tolist()
    ([1], [1.0])
    """
    voters = Voters(stored, clusters, count, neighbors=neighbors, ballots=ballots)
    assigned, confidence = np.empty(len(embeddings), np.int64), np.empty(len(embeddings), np.float32)
    with observer.task("assign", len(embeddings)):
        for first in range(0, len(embeddings), ROWS):
            rows = slice(first, first + ROWS)
            assigned[rows], confidence[rows] = voters.assign(embeddings[rows])
            observer.step_done(len(assigned[rows]))
    return assigned, confidence


class Voters:
    """Stored samples that vote for the clusters of new ones, by the rule of `assign_by_neighbors`.

    Args:
        stored, clusters, count, neighbors, ballots: as there.
        approximate: find neighbors in lists of similar samples: some percent are missed, and the time of a sample
            hardly grows with the number of stored ones.

    Raises:
        ValueError: as there.
    """

    def __init__(
        self,
        stored: NDArray[np.float32],
        clusters: NDArray[np.int64],
        count: int,
        *,
        neighbors: int = NEIGHBORS,
        ballots: NDArray[np.float32] | None = None,
        approximate: bool = False,
    ) -> None:
        _check(stored, clusters, count, neighbors, ballots)
        self.clusters, self.count, self.number = clusters, count, min(neighbors, len(stored))
        self.ballots = None if ballots is None else Ballots.of(ballots)
        stored = np.ascontiguousarray(stored, np.float32)
        self.dimension = stored.shape[1]
        self._index = Lists(stored) if approximate else _flat(stored)

    def assign(self, embeddings: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(M,) clusters of (M, D) embeddings, and confidences; in memory that grows with M · count."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension:
            raise ValueError(f"embeddings must have shape (M, {self.dimension}), got {embeddings.shape}")
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings must be finite")
        scores, found = self._index.search(np.ascontiguousarray(embeddings, np.float32), self.number)
        order = np.lexsort((found, -scores), axis=1)
        scores, found = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
        voters = self.clusters[found]
        votes = np.zeros((len(scores), self.count), np.float32)
        weights = 1 / (1 + np.float32(NEAREST) - scores.clip(max=1))
        np.add.at(votes, (np.arange(len(scores))[:, None], voters), weights)
        votes /= votes.sum(1, keepdims=True)
        counted = votes if self.ballots is None else self.ballots.count(scores, found)
        assigned = np.where(scores[:, 0] >= SAME, voters[:, 0], counted.argmax(1))
        return assigned, np.take_along_axis(votes, assigned[:, None], 1)[:, 0]


@dataclass(frozen=True)
class Ballots:
    """The parts of the (N, 2 F + 2) ballots of N stored samples and F clusters.

    Attributes:
        own: (N, F) the ballots of the samples.
        relayed: (N, F) those of their reciprocal encodings.
        reach: (N,) the similarity from which a new sample is among the k1 nearest of a stored one.
        linking: (N,) the same for the k2 nearest.
    """

    own: NDArray[np.float32]
    relayed: NDArray[np.float32]
    reach: NDArray[np.float32]
    linking: NDArray[np.float32]

    @classmethod
    def of(cls, table: NDArray[np.float32]) -> Self:
        """The parts of a table."""
        clusters = table.shape[1] // 2 - 1
        return cls(table[:, :clusters], table[:, clusters:-2], table[:, -2], table[:, -1])

    def count(self, scores: NDArray[np.float32], found: NDArray[np.int64]) -> NDArray[np.float32]:
        """(M, F) sums for new samples, from (M, n) similarities to the nearest stored ones, descending; −1 is none."""
        sums = np.zeros((len(found), self.own.shape[1]), np.float32)
        for rank, (similarity, sample) in enumerate(zip(scores.T, found.T, strict=True)):
            known = sample >= 0
            weights = (known * (1 + (similarity > self.reach[sample])) / 2).astype(np.float32)
            sums += weights[:, None] * self.own[sample]
            if rank < LINKED:
                linked = known & (similarity > self.linking[sample])
                sums[linked] += self.relayed[sample[linked]]
        return sums


def _flat(stored: NDArray[np.float32]) -> faiss.IndexFlatIP:
    index = faiss.IndexFlatIP(stored.shape[1])
    index.add(stored)
    return index


def _check(
    stored: NDArray[np.float32],
    clusters: NDArray[np.int64],
    count: int,
    neighbors: int,
    ballots: NDArray[np.float32] | None,
) -> None:
    if stored.ndim != 2 or not len(stored):
        raise ValueError(f"stored must have shape (N, D) with at least one sample, got {stored.shape}")
    if clusters.shape != (len(stored),):
        raise ValueError(f"clusters must have shape ({len(stored)},), got {clusters.shape}")
    if clusters.min() < 0 or clusters.max() >= count:
        raise ValueError(f"clusters must lie between 0 and {count - 1}, got {clusters.min()} to {clusters.max()}")
    if ballots is not None and (len(ballots) != len(stored) or not 4 <= ballots.shape[1] <= 2 * count + 2):
        raise ValueError(f"ballots must have shape ({len(stored)}, ≤ {2 * count + 2}), got {ballots.shape}")
    if neighbors < 1:
        raise ValueError(f"neighbors = {neighbors} must be at least 1")
    if not np.isfinite(stored).all():
        raise ValueError("stored must be finite")
