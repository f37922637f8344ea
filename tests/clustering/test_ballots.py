"""New samples by the ballots of a graph: against dense float64 matrices and loops, and better than votes."""

import numpy as np
import pytest
from conaff_oracle import slow_affinity
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conr.clustering import graph as module
from conr.clustering.graph import Clustering, graph_clusters
from conr.clustering.votes import Voters, assign_by_neighbors
from conr.evaluation.agreement import Agreement
from conr.neighbors.graph import conaff_nodes
from conr.neighbors.settings import ConAff

Floats = NDArray[np.float32]
K1, K2 = 6, 3


def overlapping(count: int, clusters: int, seed: int = 0, noise: float = 0.6, dimension: int = 8) -> Floats:
    """Unit vectors in groups that overlap."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(clusters, dimension))[random.integers(0, clusters, count)]
    rows += noise * random.normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def slow_ballots(features: Floats, found: Clustering, regularization: float) -> NDArray[np.float64]:
    """B = Hᵀ D^-½ V M, R B and the reaches, from dense float64 matrices."""
    samples, exact = len(features), features.astype(np.float64)
    similarity = exact @ exact.T
    np.fill_diagonal(similarity, 2)
    ranking = np.argsort(-similarity, axis=1)[:, :K1]
    encoding = np.zeros((samples, samples))
    for i in range(samples):
        for j in ranking[i]:
            encoding[i, j] += 0.5
            encoding[j, i] += 0.5
    nodes = np.zeros_like(encoding)
    for i in range(samples):
        linked = [j for j in ranking[i, :K2] if i in ranking[j, :K2]]
        nodes[i] = sum(encoding[j] for j in linked)
        nodes[i] /= np.linalg.norm(nodes[i])
    affinity = nodes @ nodes.T
    np.testing.assert_allclose(affinity, slow_affinity(features.tolist(), K1, K2, 0, 1, True, True, True), atol=1e-6)
    np.fill_diagonal(affinity, 0)
    affinity += regularization * affinity.sum() / samples**2
    scale = affinity.sum(1) ** -0.5
    clusters = found.assignments.max() + 1
    vectors = np.linalg.eigh(scale[:, None] * affinity * scale)[1][:, -clusters:]
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    means = np.stack([rows[found.assignments == cluster].mean(0) for cluster in range(clusters)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    ballots = nodes.T @ (scale[:, None] * vectors) @ means.T
    np.fill_diagonal(similarity, 1)
    reach = [similarity[np.arange(samples), ranking[:, rank - 1]] for rank in (K1, K2)]
    return np.column_stack([ballots / abs(ballots).max(), encoding @ ballots / abs(ballots).max(), *reach])


@pytest.mark.parametrize("regularization", [0.1, 1.0])
@pytest.mark.parametrize("clusters", [2, 4])
def test_ballots_are_those_of_dense_matrices(clusters: int, regularization: float) -> None:
    features = overlapping(90, clusters)
    found = graph_clusters(features, clusters, k1=K1, k2=K2, regularization=regularization, ballots=True)
    assert found.ballots is not None
    assert found.ballots.dtype == np.float32
    np.testing.assert_allclose(found.ballots, slow_ballots(features, found, regularization), atol=1e-4)


def slow_rule(sample: Floats, stored: Floats, clusters: NDArray[np.int64], ballots: Floats) -> int:
    """The rule of assignment, in float64 loops."""
    similarity = [sum(float(a) * float(b) for a, b in zip(sample, other, strict=True)) for other in stored]
    nearest = sorted(range(len(stored)), key=lambda j: (-similarity[j], j))[:10]
    if similarity[nearest[0]] >= 1 - 1e-6:
        return int(clusters[nearest[0]])
    number = ballots.shape[1] // 2 - 1
    sums = [0.0] * number
    for rank, j in enumerate(nearest):
        for cluster in range(number):
            sums[cluster] += (1.0 if similarity[j] > ballots[j, -2] else 0.5) * float(ballots[j, cluster])
            if rank < 2 and similarity[j] > ballots[j, -1]:
                sums[cluster] += float(ballots[j, number + cluster])
    return int(np.argmax(sums))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(count=st.integers(1, 40), clusters=st.integers(1, 5), seed=st.integers(0, 100))
def test_clusters_are_those_of_the_rule_whatever_the_ballots(count: int, clusters: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    stored, new = overlapping(count, 3, seed), overlapping(12, 3, seed + 1)
    numbers = random.integers(0, clusters, count)
    ballots = random.uniform(0.5, 1, size=(count, 2 * clusters + 2)).astype(np.float32)
    samples = np.concatenate([new, stored[:3]])
    found, confidence = assign_by_neighbors(samples, stored, numbers, clusters, ballots=ballots)
    assert found.tolist() == [slow_rule(sample, stored, numbers, ballots) for sample in samples]
    assert ((confidence >= 0) & (confidence <= 1)).all()
    np.testing.assert_array_equal(assign_by_neighbors(stored, stored, numbers, clusters, ballots=ballots)[0], numbers)
    near, _ = Voters(stored, numbers, clusters, ballots=ballots, approximate=True).assign(samples)
    np.testing.assert_array_equal(near, found)  # of so few all are compared


def test_left_out_samples_agree_more_often_with_a_clustering_that_saw_them_than_by_votes() -> None:
    by_ballots, by_votes = [], []
    for seed in range(3):
        features = overlapping(2000, 6, seed, noise=1.2, dimension=16)
        whole = graph_clusters(features, 6).assignments
        held_out = np.random.default_rng(seed).permutation(2000) < 200
        stored = features[~held_out]
        part = graph_clusters(stored, 6, ballots=True)
        for agreements, ballots in ((by_ballots, part.ballots), (by_votes, None)):
            found, _ = assign_by_neighbors(features[held_out], stored, part.assignments, 6, ballots=ballots)
            agreements.append(Agreement(whole[held_out], found).accuracy)
    assert np.mean(by_ballots) > 0.95
    assert np.mean(by_ballots) > np.mean(by_votes) + 0.01


def test_a_sample_s_own_node_leads_to_its_own_cluster() -> None:
    features = overlapping(400, 4, noise=0.3)
    found = graph_clusters(features, 4, k1=K1, k2=K2, ballots=True)
    nodes, order = conaff_nodes(features, ConAff(K1, K2, alpha=0, layers=1), reciprocal=True)
    place = np.argsort(order)
    assert found.ballots is not None
    sums = nodes[place][:, place] @ found.ballots[:, :4]
    assert (sums.argmax(1) == found.assignments).mean() > 0.98


def test_many_clusters_have_no_ballots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    features = overlapping(60, 4)
    assert graph_clusters(features, 3, ballots=True).ballots is not None
    assert graph_clusters(features, 4, ballots=True).ballots is None
    assert graph_clusters(features, 3).ballots is None


@pytest.mark.parametrize("count", [1, 2, 20, 600])
def test_ballots_of_equal_and_of_few_samples_are_finite(count: int) -> None:
    for features in (np.zeros((count, 5), np.float32), np.ones((count, 5), np.float32), overlapping(count, 2)):
        found = graph_clusters(features, min(count, 3), ballots=True)
        assert found.ballots is not None
        assert np.isfinite(found.ballots).all()


def test_ballots_change_no_cluster() -> None:
    features = overlapping(500, 5)
    with_ballots, without = (graph_clusters(features, 5, ballots=ballots) for ballots in (True, False))
    np.testing.assert_array_equal(with_ballots.assignments, without.assignments)


@pytest.mark.parametrize("shape", [(3, 6), (4, 2), (4, 12)])
def test_ballots_of_another_shape_are_refused(shape: tuple[int, int]) -> None:
    rows, clusters = np.eye(4, dtype=np.float32), np.arange(4)
    with pytest.raises(ValueError, match=r"^ballots must have shape \(4, ≤ 10\)"):
        assign_by_neighbors(rows, rows, clusters, 4, ballots=np.zeros(shape, np.float32))
