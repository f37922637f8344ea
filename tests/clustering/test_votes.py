"""Clusters of new samples by the votes of their neighbors."""

import numpy as np
import pytest
from numpy.typing import NDArray
from recorder import Recorder
from sklearn.datasets import load_digits

from conr.clustering import votes as module
from conr.clustering.graph import graph_clusters
from conr.clustering.votes import assign_by_neighbors
from conr.evaluation.agreement import Agreement

Features = NDArray[np.float32]


def unit(features: NDArray[np.floating]) -> Features:
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def slow(sample: list[float], stored: list[list[float]], clusters: list[int], count: int, n: int) -> tuple[int, float]:
    """The rule, in loops."""
    similarity = [sum(a * b for a, b in zip(sample, other, strict=True)) for other in stored]
    nearest = sorted(range(len(stored)), key=lambda j: (-similarity[j], j))[:n]
    votes = [0.0] * count
    for j in nearest:
        votes[clusters[j]] += 1 / (1.001 - min(similarity[j], 1))
    if similarity[nearest[0]] >= 1 - 1e-6:
        cluster = clusters[nearest[0]]
    else:
        cluster = max(range(count), key=lambda c: (votes[c], -c))
    return cluster, votes[cluster] / sum(votes)


@pytest.mark.parametrize("neighbors", [1, 3, 10, 200])
def test_clusters_and_confidences_are_those_of_the_rule(neighbors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 7)  # several blocks
    random = np.random.default_rng(0)
    stored, clusters = unit(random.normal(size=(60, 3))), random.integers(0, 4, 60)
    samples = np.concatenate([unit(random.normal(size=(40, 3))), stored[:5]])
    found, confidence = assign_by_neighbors(samples, stored, clusters, 4, neighbors=neighbors)
    rows = stored.astype(np.float64).tolist()
    expected = [slow(row, rows, clusters.tolist(), 4, neighbors) for row in samples.astype(np.float64).tolist()]
    assert found.tolist() == [cluster for cluster, _ in expected]
    np.testing.assert_allclose(confidence, [share for _, share in expected], atol=1e-3)
    assert found.dtype == np.int64
    assert confidence.dtype == np.float32


def test_stored_samples_get_their_own_cluster_whatever_their_neighbors_say() -> None:
    random = np.random.default_rng(0)
    stored = unit(random.normal(size=(500, 6)))
    clusters = random.integers(0, 10, 500)
    found, confidence = assign_by_neighbors(stored, stored, clusters, 10)
    np.testing.assert_array_equal(found, clusters)
    assert (confidence < 1).all()


def test_held_out_digits_get_the_clusters_of_a_clustering_that_saw_them() -> None:
    features = unit(load_digits().data)
    held_out = np.random.default_rng(0).permutation(len(features)) < len(features) // 10
    everything = graph_clusters(features, 10).assignments
    stored = features[~held_out]
    clusters = graph_clusters(stored, 10).assignments
    found, _ = assign_by_neighbors(features[held_out], stored, clusters, 10)
    assert Agreement(everything[held_out], found).accuracy >= 0.95


def test_the_observer_is_notified_of_every_sample() -> None:
    recorder = Recorder()
    assign_by_neighbors(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32), np.arange(4), 4, observer=recorder)
    assert recorder.tasks == [("assign", 4, 0)]
    assert recorder.steps == [(4, "")]


def test_no_samples_get_no_clusters() -> None:
    found, confidence = assign_by_neighbors(np.empty((0, 4), np.float32), np.eye(4, dtype=np.float32), np.arange(4), 4)
    assert found.shape == confidence.shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stored": np.empty((0, 4))}, r"^stored .*\(0, 4\)"),
        ({"embeddings": np.ones((3, 5))}, r"^embeddings .*\(M, 4\), got \(3, 5\)"),
        ({"clusters": np.arange(3)}, r"^clusters .*\(4,\), got \(3,\)"),
        ({"clusters": np.array([0, 1, 2, 4])}, "^clusters .* 0 and 3, got 0 to 4"),
        ({"clusters": np.array([0, 1, 2, -1])}, "^clusters .* 0 and 3, got -1 to 2"),
        ({"neighbors": 0}, "^neighbors = 0 "),
        ({"embeddings": np.full((3, 4), np.nan)}, "finite"),
    ],
)
def test_impossible_arguments_are_named(changes: dict[str, object], message: str) -> None:
    arguments = {"embeddings": np.eye(4), "stored": np.eye(4), "clusters": np.arange(4), "count": 4, **changes}
    with pytest.raises(ValueError, match=message):
        assign_by_neighbors(**arguments)  # type: ignore[arg-type]
