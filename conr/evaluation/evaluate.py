"""The final clusters of a set of embeddings, and their scores."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from conr.clustering.kmeans import kmeans
from conr.data.store import Store
from conr.evaluation.agreement import label_scores
from conr.evaluation.assignment import Assignment, assign
from conr.evaluation.scores import cluster_sizes, feature_std, silhouette, size_entropy
from conr.parameters import EvaluateStage
from conr.parameters.groups import Evaluate

MAP_POINTS = 2_000  # the map of the embeddings is a picture: more points hide more than they show


@dataclass(frozen=True)
class Evaluation:
    """Clusters, numbered from the largest by their size in what k-means saw.

    Attributes:
        centroids: (K, D) float32.
        sizes: (K,) int64, of all images.
        assignment: the cluster of each sample.
        scores: key → value; acc, nmi and ari only if there are labels.
    """

    centroids: NDArray[np.float32]
    sizes: NDArray[np.int64]
    assignment: Assignment
    scores: dict[str, float]

    def typical(self, cluster: int) -> list[int]:
        """The samples of a cluster, those nearest to its centroid first."""
        members = np.flatnonzero(self.assignment.clusters == cluster)
        ranked: list[int] = members[np.argsort(self.assignment.own_distance[members], kind="stable")].tolist()
        return ranked


def evaluate(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    clusters: int,
    settings: Evaluate,
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
        settings: of k-means.
        seed: seed of k-means and of the sample that the silhouette is taken on.
        clustered: which embeddings k-means sees.
        scored: which embeddings the agreement with labels and the silhouette are taken on; the other scores describe
            all embeddings, but the inertia those that k-means saw.
    """
    found = kmeans(embeddings[clustered], clusters, seed=seed, n_init=settings.n_init, max_iter=settings.max_iter)
    by_size = np.argsort(-cluster_sizes(found.assignments, clusters), kind="stable")
    assignment = assign(embeddings, found.centroids[by_size])
    sizes = cluster_sizes(assignment.clusters, clusters)
    scores = label_scores(None if labels is None else labels[scored], assignment.clusters[scored])
    width = silhouette(embeddings[scored], assignment.clusters[scored], seed)
    if width is not None:
        scores["silhouette"] = width
    scores |= {
        "size_entropy": size_entropy(sizes),
        "feature_std": feature_std(embeddings),
        "inertia": found.inertia,
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
    }
    return Evaluation(found.centroids[by_size], sizes, assignment, scores)


def evaluate_store(embeddings: NDArray[np.float32], store: Store, parameters: EvaluateStage, seed: int) -> Evaluation:
    """`evaluate` for (N, D) embeddings of the images of a store, as its protocol says."""
    clusters, settings = parameters.clusters, parameters.evaluate
    return evaluate(embeddings, store.labels, clusters, settings, seed, store.clustered, store.scored)


def embedding_map(embeddings: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A plane in which neighbors stay neighbors (t-SNE), for at most 2,000 of the samples.

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
