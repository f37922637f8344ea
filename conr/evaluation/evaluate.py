"""The final clusters of a set of embeddings, and their scores."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.preprocessing import normalize

from conr.clustering.graph import graph_clusters
from conr.clustering.kmeans import kmeans
from conr.clustering.votes import assign_by_neighbors
from conr.data.store import Store
from conr.evaluation.agreement import label_scores
from conr.evaluation.assignment import Assignment, assign
from conr.evaluation.scores import cluster_sizes, feature_std, silhouette, size_entropy
from conr.parameters import EvaluateStage
from conr.parameters.groups import Evaluate

NEARLY_EQUAL = 1e-3  # distance up to which unit vectors count as equal: k-means cannot tell them apart in float32


@dataclass(frozen=True)
class Evaluation:
    """Clusters, numbered from the largest by their size in what k-means saw; those that hold no image come last.

    Attributes:
        centroids: (F, D) float32, of the F ≤ K clusters that hold images.
        sizes: (K,) int64, of all images.
        assignment: the cluster of each sample, among those that hold images.
        scores: key → value; acc, nmi and ari only if there are labels.
        ballots: of a graph that saw all samples (`conr.clustering.graph.Clustering`).
    """

    centroids: NDArray[np.float32]
    sizes: NDArray[np.int64]
    assignment: Assignment
    scores: dict[str, float]
    ballots: NDArray[np.float32] | None = None

    @cached_property
    def typical(self) -> list[list[int]]:
        """The samples of each of the K clusters, those nearest to its centroid first."""
        clusters, distances = self.assignment.clusters, self.assignment.own_distance
        ranked = np.lexsort((distances, clusters))
        ends = np.searchsorted(clusters[ranked], np.arange(1, len(self.sizes)))
        return [part.tolist() for part in np.split(ranked, ends)]


def evaluate(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    clusters: int,
    settings: Evaluate,
    seed: int,
    clustered: slice = slice(None),
    scored: slice = slice(None),
    method: str = "kmeans",
    neighbors: NDArray[np.int64] | None = None,
    start: "Evaluation | None" = None,
) -> Evaluation:
    """Cluster unit vectors and score the result. Labels are read after the clusters are settled.

    Every embedding is assigned, whether the clustering saw it or not: to the nearest centroid by k-means, by its
    neighbors among those that were clustered by the graph.

    Args:
        embeddings: (N, D) float32 unit vectors.
        labels: (N,) int64, −1 where unknown; or None.
        clusters: K ≥ 2.
        settings: of the method.
        seed: seed of the clustering and of the sample that the silhouette is taken on.
        clustered: which embeddings the clustering sees.
        scored: which embeddings the agreement with labels and the silhouette are taken on; the other scores describe
            all embeddings, but the inertia those that the clustering saw.
        method: kmeans or graph.
        neighbors: (N, ≥ k1 of the graph) nearest embeddings by cosine, if all are clustered and they are known already.
        start: what k-means has found, if it is known already: the graph starts from there, too.
    """
    ballots = None
    if method == "graph":
        centroids, assignment, inertia, ballots = _by_graph(
            embeddings, clusters, settings, seed, clustered, neighbors, start
        )
    else:
        centroids, assignment, inertia = _by_kmeans(embeddings, clusters, settings, seed, clustered)
    sizes = cluster_sizes(assignment.clusters, clusters)
    scores = label_scores(None if labels is None else labels[scored], assignment.clusters[scored])
    width = silhouette(embeddings[scored], assignment.clusters[scored], seed)
    if width is not None:
        scores["silhouette"] = width
    scores |= {
        "size_entropy": size_entropy(sizes),
        "feature_std": feature_std(embeddings),
        "inertia": inertia,
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
    }
    return Evaluation(centroids, sizes, assignment, scores, ballots)


def _by_kmeans(
    embeddings: NDArray[np.float32], clusters: int, settings: Evaluate, seed: int, clustered: slice
) -> tuple[NDArray[np.float32], Assignment, float]:
    """Centroids, the largest cluster first; the nearest one of every embedding; the inertia."""
    found = kmeans(embeddings[clustered], clusters, seed=seed, n_init=settings.n_init, max_iter=settings.max_iter)
    by_size = np.argsort(-cluster_sizes(found.assignments, clusters), kind="stable")
    centroids = _different(found.centroids[by_size])
    assignment = assign(embeddings, centroids)
    sizes = cluster_sizes(assignment.clusters, clusters)
    if len(centroids) < clusters or not sizes.all():  # "could also be" an empty cluster would mean nothing
        centroids = centroids[np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]]
        assignment = assign(embeddings, centroids)
    return centroids, assignment, found.inertia


def _by_graph(
    embeddings: NDArray[np.float32],
    clusters: int,
    settings: Evaluate,
    seed: int,
    clustered: slice,
    neighbors: NDArray[np.int64] | None,
    start: Evaluation | None,
) -> tuple[NDArray[np.float32], Assignment, float, NDArray[np.float32] | None]:
    """Mean directions of the clusters, the largest first; the cluster of every embedding; the inertia; the ballots."""
    seen = embeddings[clustered]
    k1, k2 = settings.graph_k1 or None, settings.graph_k2 or None
    first = None if start is None else start.assignment.clusters[clustered]
    found = graph_clusters(seen, clusters, k1=k1, k2=k2, seed=seed, neighbors=neighbors, start=first, ballots=True)
    numbers, ballots = found.assignments, found.ballots
    if len(seen) < len(embeddings):
        numbers, _ = assign_by_neighbors(embeddings, seen, numbers, clusters, ballots=ballots)
        ballots = None  # the others have none
    present, numbers = np.unique(numbers, return_inverse=True)
    sums = np.zeros((len(present), embeddings.shape[1]))
    np.add.at(sums, numbers, embeddings)
    centroids = normalize(sums).astype(np.float32)
    order = np.argsort(-np.bincount(numbers), kind="stable")
    assignment = assign(embeddings, centroids[order], np.argsort(order)[numbers])
    inertia = np.square(assignment.own_distance[clustered], dtype=np.float64).sum()
    return centroids[order], assignment, float(inertia), ballots


def _different(centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """(K, D) centroids without those that (nearly) equal an earlier one.

    With more clusters than different images k-means leaves copies, which would share the images of one group.
    """
    different, count = np.empty_like(centroids), 0
    for centroid in centroids:
        if count == 0 or cdist(centroid[None], different[:count]).min() > NEARLY_EQUAL:
            different[count] = centroid
            count += 1
    return different[:count]


def evaluate_store(
    embeddings: NDArray[np.float32],
    store: Store,
    parameters: EvaluateStage,
    seed: int,
    method: str = "kmeans",
    neighbors: NDArray[np.int64] | None = None,
    start: Evaluation | None = None,
) -> Evaluation:
    """`evaluate` for (N, D) embeddings of the images of a store, as its protocol says."""
    clusters, settings = parameters.number, parameters.evaluate
    if neighbors is not None and (
        len(embeddings[store.clustered]) < len(embeddings) or settings.graph_k1 > neighbors.shape[1]
    ):
        neighbors = None
    return evaluate(
        embeddings, store.labels, clusters, settings, seed, store.clustered, store.scored, method, neighbors, start
    )
