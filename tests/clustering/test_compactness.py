"""How compact clusters are, and the choice between two clusterings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conr.clustering.compactness import choose_method, simplified_silhouette

Features = NDArray[np.float32]


def groups(sizes: list[int], noise: float, seed: int = 0) -> tuple[Features, NDArray[np.int64]]:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    features = np.eye(len(sizes), 16)[labels] + noise * np.random.default_rng(seed).normal(size=(len(labels), 16))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def slow_silhouette(features: list[list[float]], clusters: list[int]) -> float:
    """The mean over samples, in loops."""
    centroids = {}
    for cluster in set(clusters):
        members = [row for row, own in zip(features, clusters, strict=True) if own == cluster]
        mean = np.sum(members, axis=0)
        centroids[cluster] = mean / np.sqrt(mean @ mean)
    ratios = []
    for row, cluster in zip(features, clusters, strict=True):
        own = 1 - np.dot(row, centroids[cluster])
        other = min(1 - np.dot(row, centroid) for key, centroid in centroids.items() if key != cluster)
        ratios.append((other - own) / max(own, other))
    return sum(ratios) / len(ratios)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), clusters=st.integers(2, 6), rows=st.sampled_from([7, 4096]))
def test_the_simplified_silhouette_is_that_of_loops(seed: int, clusters: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    features, _ = groups([20, 15, 10], 0.4, seed)
    assigned = np.append(np.arange(2), random.integers(0, clusters, 43)) * 3  # some numbers belong to no sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conr.clustering.compactness.ROWS", rows)
        found = simplified_silhouette(features, assigned)
    assert found == pytest.approx(slow_silhouette(features.astype(float).tolist(), assigned.tolist()), abs=1e-5)


def test_a_single_cluster_and_equal_samples_have_a_silhouette() -> None:
    features, _ = groups([10, 5], 0.1)
    assert simplified_silhouette(features, np.zeros(15, dtype=np.int64)) == 0
    assert simplified_silhouette(np.ones((4, 1), np.float32), np.array([0, 0, 1, 1])) == 0


def test_the_clusters_of_the_graph_are_chosen_unless_they_are_much_looser() -> None:
    features, labels = groups([60, 40, 10, 10], 0.05)
    broken = np.where(labels > 1, 2, labels) + np.where((labels == 0) & (np.arange(120) % 2 == 0), 3, 0)
    assert choose_method(features, labels, labels) == "graph"
    assert choose_method(features, broken, labels) == "graph"
    assert choose_method(features, labels, broken) == "kmeans"


def test_where_clusters_are_not_compact_the_graph_is_chosen() -> None:
    random = np.random.default_rng(0)
    features, labels = groups([60, 40, 20], 1.0)
    assert choose_method(features, labels, random.integers(0, 3, 120)) == "graph"


@pytest.mark.parametrize(
    ("kmeans", "graph"), [(np.zeros(4, int), np.zeros(5, int)), (np.zeros(5, int), np.zeros(4, int))]
)
def test_clusters_of_other_samples_are_refused(kmeans: NDArray[np.int64], graph: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match=r"^(kmeans|graph) must have shape \(5,\), got \(4,\)$"):
        choose_method(np.eye(5, dtype=np.float32), kmeans, graph)
