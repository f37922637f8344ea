"""Clusters of the ConAff graph: against dense float64 matrices, on digits, and where input is unusual."""

import numpy as np
import pytest
from conaff_oracle import slow_affinity
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from recorder import Recorder
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import ArpackNoConvergence
from sklearn.datasets import load_digits

from conr.clustering import graph as module
from conr.clustering import spectral
from conr.clustering.graph import Clustering, graph_clusters, graph_neighbors
from conr.clustering.kmeans import Clustering as Result
from conr.clustering.kmeans import kmeans
from conr.clustering.spectral import Affinity, leading_eigenvectors
from conr.evaluation.agreement import Agreement
from conr.neighbors.graph import conaff_nodes, largest_entries
from conr.neighbors.settings import ConAff

Features = NDArray[np.float32]
Matrix = NDArray[np.float64]

LONG_TAIL = [174, 135, 104, 80, 62, 48, 37, 29, 22, 17]  # images of the digits in a random order


def unit(features: NDArray[np.floating]) -> Features:
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def groups(sizes: list[int], noise: float = 0.2, seed: int = 0) -> tuple[Features, NDArray[np.int64]]:
    """Unit vectors around orthogonal ones, in mixed order, and the group of each."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = np.eye(len(sizes), 16)[labels] + noise * random.normal(size=(len(labels), 16))
    return unit(features), labels


def same(first: NDArray[np.int64], second: NDArray[np.int64]) -> bool:
    """Whether two clusterings differ in nothing but numbers."""
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


def slow_matrix(affinity: list[list[float]], regularization: float) -> Matrix:
    """D^-½ (A + τ d̄/N 1 1ᵀ) D^-½, A without its diagonal, entry by entry."""
    everyone = range(len(affinity))
    weights = [[affinity[i][j] if i != j else 0.0 for j in everyone] for i in everyone]
    degrees = [sum(row) for row in weights]
    mean = sum(degrees) / len(degrees)
    weights = [[weight + regularization * mean / len(degrees) for weight in row] for row in weights]
    degrees = [sum(row) for row in weights]
    return np.array([[weights[i][j] / (degrees[i] * degrees[j]) ** 0.5 for j in everyone] for i in everyone])


def nodes_of(features: Features, how: ConAff, entries: int | None = None, *, reciprocal: bool = False) -> csr_matrix:
    """H in the order of the samples."""
    nodes, order = conaff_nodes(features, how, entries=entries, reciprocal=reciprocal)
    back = np.argsort(order)
    return nodes[back][:, back]


@pytest.mark.parametrize("regularization", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("how", [ConAff(4, 1), ConAff(5, 2), ConAff(8, 3), ConAff(8, 4, alpha=0, layers=1)])
@pytest.mark.parametrize("reciprocal", [False, True])
def test_the_affinity_is_that_of_loops_over_the_equations(how: ConAff, regularization: float, reciprocal: bool) -> None:
    features, _ = groups([12, 9, 5], 0.4)
    slow = slow_affinity(
        features.tolist(), how.k1, how.k2, how.alpha, how.layers, how.symmetrize, how.normalize, reciprocal
    )
    with Affinity(nodes_of(features, how, reciprocal=reciprocal), regularization) as affinity:
        found = affinity @ np.eye(len(features))
    np.testing.assert_allclose(found, slow_matrix(slow, regularization), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dense", [0, 512])
def test_eigenvectors_span_what_those_of_the_dense_matrix_span(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "DENSE", dense)
    features, _ = groups([40, 30, 20, 10], 0.5)
    with Affinity(nodes_of(features, ConAff(8, 3)), 0.1) as affinity:
        matrix = affinity @ np.eye(100)
        values, vectors = leading_eigenvectors(affinity, 4, seed=0)
    expected, exact = np.linalg.eigh(matrix)
    assert expected[-4] - expected[-5] > 0.01  # the four are a space of their own
    np.testing.assert_allclose(values, expected[::-1][:4], atol=1e-4)
    np.testing.assert_allclose(vectors @ vectors.T, exact[:, -4:] @ exact[:, -4:].T, atol=1e-3)


def test_where_lanczos_does_not_converge_iterating_a_block_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = groups([300, 200, 150])
    expected = graph_clusters(features, 3)

    def fails(*_: object, **__: object) -> None:
        raise ArpackNoConvergence("no convergence", np.empty(0), np.empty((0, 0)))

    monkeypatch.setattr(spectral, "eigsh", fails)
    found = graph_clusters(features, 3)
    assert same(found.assignments, labels)
    np.testing.assert_allclose(found.eigenvalues[:3], expected.eigenvalues[:3], atol=1e-4)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(seed=st.integers(0, 10_000), entries=st.integers(1, 8), levels=st.integers(1, 5))
def test_the_largest_entries_of_each_row_are_kept(seed: int, entries: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    dense = random.integers(0, levels + 1, size=(9, 12)) / np.float32(levels)
    found = largest_entries(csr_matrix(dense), entries).toarray()
    for row, kept in zip(dense, found, strict=True):
        assert set(np.flatnonzero(kept)) <= set(np.flatnonzero(row))
        np.testing.assert_array_equal(kept[kept > 0], row[kept > 0])
        np.testing.assert_array_equal(np.sort(kept)[::-1][:entries], np.sort(row)[::-1][:entries])
        assert (kept > 0).sum() == min(entries, (row > 0).sum())


def test_rows_with_bounded_entries_approach_those_with_all() -> None:
    features, _ = groups([80, 60, 40], 0.5)
    how = ConAff(8, 3)
    everything = nodes_of(features, how).toarray()
    assert (everything > 0).sum(1).max() > 40
    apart = [np.abs(nodes_of(features, how, entries).toarray() - everything).max() for entries in (10, 40, 180)]
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] == 0
    assert np.diff(nodes_of(features, how, 10).indptr).max() == 10


@pytest.mark.parametrize("sizes", [[60, 60, 60], [300, 40, 20]])
def test_groups_are_found_and_numbered_from_the_largest(sizes: list[int]) -> None:
    features, labels = groups(sizes)
    found = graph_clusters(features, 3)
    assert same(found.assignments, labels)
    assert found.assignments.dtype == np.int64
    assert np.bincount(found.assignments).tolist() == sorted(sizes, reverse=True)
    assert (np.diff(found.eigenvalues) <= 0).all()
    assert found.eigenvalues.dtype == np.float64
    assert len(found.eigenvalues) == 8
    assert found.eigenvalues[0] == pytest.approx(1)


def test_digits_are_clustered_better_than_by_k_means() -> None:
    digits = load_digits()
    found = graph_clusters(digits.data, 10)
    assert Agreement(digits.target, found.assignments).accuracy > 0.87  # k-means: 0.79


@pytest.mark.parametrize("draw", range(3))
def test_small_groups_among_large_ones_are_found_better_than_by_k_means(draw: int) -> None:
    digits = load_digits()
    random = np.random.default_rng(draw)
    order = random.permutation(np.arange(10))
    kept = np.concatenate(
        [
            random.permutation(np.flatnonzero(digits.target == digit))[:size]
            for digit, size in zip(order, LONG_TAIL, strict=True)
        ]
    )
    features, labels = digits.data[kept], digits.target[kept]
    by_graph = Agreement(labels, graph_clusters(features, 10).assignments)
    by_kmeans = Agreement(labels, kmeans(unit(features), 10, seed=0, n_init=20).assignments)
    assert by_graph.accuracy > by_kmeans.accuracy + 0.03


@pytest.mark.parametrize("compact_first", [False, True])
def test_of_two_results_the_one_with_compact_clusters_is_returned(
    compact_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = groups([40, 30, 20])
    split = np.where(labels == 0, np.arange(90) % 2, 2)  # one group in two, the others joined
    results = [labels, split] if compact_first else [split, labels]
    starts: list[bool] = []

    def found(rows: Features, clusters: int, *, start: Matrix | None = None, **_: object) -> Result:
        starts.append(start is not None)
        return Result(np.zeros((clusters, rows.shape[1]), np.float32), results[len(starts) - 1], 0.0)

    monkeypatch.setattr(module, "kmeans", found)
    assert same(graph_clusters(features, 3, k2=2, start=labels).assignments, labels)
    assert starts == [False, True]


@pytest.mark.parametrize("compact", range(3))
def test_of_several_k2_that_with_compact_clusters_is_returned(compact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = groups([100, 80, 60])
    tried: list[int] = []

    def found(rows: Features, clusters: int, **_: object) -> Result:
        right = len(tried) // 2 == compact  # each k2 has two runs
        tried.append(clusters)
        found = labels if right else np.random.default_rng(0).permutation(labels)
        return Result(np.zeros((clusters, rows.shape[1]), np.float32), found, 0.0)

    ruled = graph_neighbors(240, 3)[1]
    alone = graph_clusters(features, 3, k2=ruled[compact])
    monkeypatch.setattr(module, "kmeans", found)
    chosen = graph_clusters(features, 3, start=labels)
    assert len(tried) == 2 * len(ruled)
    assert chosen.k2 == alone.k2 == ruled[compact]
    assert same(chosen.assignments, labels)
    np.testing.assert_array_equal(chosen.eigenvalues, alone.eigenvalues)


def test_clusters_to_start_from_may_lack_some() -> None:
    features, labels = groups([40, 30, 20])
    assert same(graph_clusters(features, 3, start=np.zeros(90, dtype=np.int64)).assignments, labels)


@pytest.mark.parametrize("clusters", [1, 2, 10, 100])
@pytest.mark.parametrize("count", [1, 2, 20, 744, 60_000])
def test_neighborhoods_hold_no_more_than_the_smallest_expected_group(count: int, clusters: int) -> None:
    k1, k2 = graph_neighbors(count, clusters)
    assert 1 <= min(k2) <= max(k2) <= k1 <= min(count, 10)
    assert k1 <= max(count / (4 * clusters), 5)


@settings(derandomize=True, deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000), power=st.integers(-20, 20), clusters=st.integers(1, 4))
def test_order_and_scale_of_the_samples_do_not_matter(seed: int, power: int, clusters: int) -> None:
    features, _ = groups([40, 30, 20, 10], seed=seed)
    order = np.random.default_rng(seed).permutation(100)
    found = graph_clusters(features, clusters)
    scaled = graph_clusters(features * np.float32(2) ** power, clusters)
    np.testing.assert_array_equal(scaled.assignments, found.assignments)
    np.testing.assert_allclose(scaled.eigenvalues, found.eigenvalues, atol=1e-9)
    permuted = graph_clusters(features[order], clusters)
    np.testing.assert_allclose(permuted.eigenvalues, found.eigenvalues, atol=1e-5)
    if clusters in (1, 4):  # two or three clusters may join the four groups in several ways
        assert same(permuted.assignments, found.assignments[order])


def test_the_same_seed_gives_the_same_clusters() -> None:
    features = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    first, second = (graph_clusters(features, 7, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.assignments, second.assignments)
    np.testing.assert_array_equal(first.eigenvalues, second.eigenvalues)


def test_given_neighbors_replace_the_search() -> None:
    features, _ = groups([60, 50])
    ranking = np.argsort(-features @ features.T, axis=1)[:, :10]
    found = graph_clusters(features, 2, k1=10, neighbors=ranking)
    assert same(found.assignments, graph_clusters(features, 2, k1=10).assignments)
    with pytest.raises(ValueError, match=r"^neighbors"):
        graph_clusters(features, 2, k1=11, neighbors=ranking)


def test_many_samples_are_searched_in_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = groups([400, 300, 200], noise=0.1)
    monkeypatch.setattr(module, "APPROXIMATE_FROM", 100)
    monkeypatch.setattr("conr.neighbors.graph.exact_neighbors", None)  # would be called
    assert same(graph_clusters(features, 3).assignments, labels)


@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (2, 1), (2, 2), (3, 2), (20, 1), (20, 2), (20, 19), (20, 20)])
def test_few_samples_are_clustered(count: int, clusters: int) -> None:
    features = np.random.default_rng(0).normal(size=(count, 4))
    found = graph_clusters(features, clusters)
    assert len(set(found.assignments.tolist())) == clusters
    assert np.isfinite(found.eigenvalues).all()
    assert len(found.eigenvalues) == min(clusters + 5, count)


@pytest.mark.parametrize("count", [1, 2, 20, 600])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_samples_are_one_cluster(count: int, value: float) -> None:
    found = graph_clusters(np.full((count, 5), value), min(count, 3))
    assert found.assignments.tolist() == [0] * count
    assert np.isfinite(found.eigenvalues).all()


def test_where_fewer_samples_differ_than_clusters_are_wanted_each_is_one() -> None:
    features = np.eye(4).repeat([5, 30, 20, 7], axis=0)
    found = graph_clusters(features, 9)
    assert found.assignments.tolist() == [3] * 5 + [0] * 30 + [1] * 20 + [2] * 7


def test_copies_of_a_sample_are_in_its_cluster() -> None:
    features = np.random.default_rng(0).normal(size=(60, 5)).repeat(15, axis=0)
    found = graph_clusters(features, 8).assignments.reshape(60, 15)
    assert (found == found[:, :1]).all()
    assert len(set(found[:, 0].tolist())) == 8


@pytest.mark.parametrize("count", [120, 900])
def test_a_graph_that_falls_into_more_parts_than_clusters_is_not_broken(count: int) -> None:
    # Each of four groups is two that share no neighbors.
    features, labels = groups([count // 8] * 8, noise=0.01)
    joined = unit(features + 0.7 * features[:, np.arange(16) ^ 1])
    found = graph_clusters(joined, 4, k1=5, k2=2)
    assert np.bincount(found.assignments).min() >= count // 8
    for half in range(8):
        assert len(set(found.assignments[labels == half].tolist())) == 1


def test_the_observer_is_notified_of_every_sample_for_its_neighbors_and_each_k2() -> None:
    features, recorder = groups([60, 50])[0], Recorder()
    graph_clusters(features, 2, observer=recorder)
    assert recorder.tasks == [("graph", 440, 0)]
    assert sum(amount for amount, _ in recorder.steps) == 440


@pytest.mark.parametrize(
    ("features", "arguments", "message"),
    [
        (np.eye(5), {"clusters": 6}, r"^clusters = 6 .*\(5\)$"),
        (np.eye(5), {"clusters": 0}, r"^clusters = 0 .*\(5\)$"),
        (np.eye(5), {"clusters": 2, "k1": 6}, r"^k1 = 6 .*\(5\)$"),
        (np.eye(5), {"clusters": 2, "k1": 3, "k2": 4}, r"^k2 = 4 .*k1 \(3\)$"),
        (np.eye(5), {"clusters": 2, "regularization": -0.1}, "^regularization = -0.1 "),
        (np.eye(5), {"clusters": 2, "regularization": np.nan}, "^regularization = nan "),
        (np.eye(5), {"clusters": 2, "start": np.zeros(4, int)}, "^start must be 5 clusters from 0 to 1$"),
        (np.eye(5), {"clusters": 2, "start": np.arange(5)}, "^start must be 5 clusters from 0 to 1$"),
        (np.eye(5), {"clusters": 2, "start": -np.ones(5, int)}, "^start must be 5 clusters from 0 to 1$"),
        (np.diag([1, np.nan, 1]), {"clusters": 2}, "^features .* sample 1 "),
        (np.diag([1, 1, np.inf]), {"clusters": 2}, "^features .* sample 2 "),
        (np.ones(5), {"clusters": 2}, r"^features .* got \(5,\)"),
        (np.ones((0, 5)), {"clusters": 1}, r"^features .* got \(0, 5\)"),
    ],
)
def test_impossible_arguments_are_named(features: Matrix, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph_clusters(features, **arguments)  # type: ignore[arg-type]


def test_the_classes_are_public() -> None:
    import conr
    import conr.clustering

    assert conr.clustering.graph_clusters is conr.graph_clusters is graph_clusters
    assert conr.clustering.Clustering is conr.Clustering is Clustering
