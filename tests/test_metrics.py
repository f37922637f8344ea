"""Scores against brute force, scikit-learn and cases worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from conr import metrics

repeatable = settings(derandomize=True, deadline=None, max_examples=100)

Pairs = list[tuple[int, int]]


def columns(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    labels, clusters = np.array(pairs, dtype=np.int64).T
    return labels, clusters


def brute_force_accuracy(pairs: Pairs) -> float:
    """The best share over every way to give each cluster a label of its own, or none."""
    names = sorted({cluster for _, cluster in pairs})
    choices = sorted({label for label, _ in pairs}) + [None] * len(names)
    best = 0
    for chosen in set(itertools.permutations(choices, len(names))):
        meaning = dict(zip(names, chosen, strict=True))
        best = max(best, sum(meaning[cluster] == label for label, cluster in pairs))
    return best / len(pairs)


@repeatable
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_accuracy_equals_the_best_over_all_matchings(pairs: Pairs) -> None:
    assert metrics.clustering_accuracy(*columns(pairs)) == pytest.approx(brute_force_accuracy(pairs))


@repeatable
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30),
    names=st.permutations([-7, 0, 3, 10, 10**12]),
)
def test_names_of_clusters_do_not_matter(pairs: Pairs, names: list[int]) -> None:
    labels, clusters = columns(pairs)
    renamed = np.array(names)[clusters]
    for score in (metrics.clustering_accuracy, metrics.normalised_mutual_information, metrics.adjusted_rand_index):
        assert score(labels, renamed) == pytest.approx(score(labels, clusters))


@pytest.mark.parametrize(
    ("labels", "clusters", "expected"),
    [
        ([0, 0, 1, 1], [5, 5, 2, 2], 1.0),
        ([0, 0, 1, 1], [0, 1, 0, 1], 0.5),
        ([0, 0, 0, 0, 1, 1], [0, 0, 1, 2, 3, 3], 4 / 6),  # surplus clusters count as wrong
        ([0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0], 3 / 6),  # surplus classes do
        ([7], [3], 1.0),
    ],
)
def test_accuracy_by_hand(labels: list[int], clusters: list[int], expected: float) -> None:
    assert metrics.clustering_accuracy(np.array(labels), np.array(clusters)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "clusters", "expected"),
    [
        ([0, 0, 1, 1], [5, 5, 2, 2], 1.0),
        ([0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1, 1, 0], (5 / 6 + 1 / 2) / 2),
        ([0] * 8 + [1, 1], [0] * 8 + [0, 0], (1 + 0) / 2),  # the rare class has no cluster: ACC is 0.8
        ([0, 0, 0, 1, 1, 2], [7] * 6, (1 + 0 + 0) / 3),  # fewer clusters than classes
        ([0, 0, 0, 0, 1, 1], [0, 0, 1, 2, 3, 3], (2 / 4 + 1) / 2),  # more clusters
        ([9, 9, 9, -3], [1, 1, 4, 4], (2 / 3 + 1) / 2),  # names do not matter
        ([7], [3], 1.0),
    ],
)
def test_class_averaged_accuracy_by_hand(labels: list[int], clusters: list[int], expected: float) -> None:
    assert metrics.class_averaged_accuracy(np.array(labels), np.array(clusters)) == pytest.approx(expected)


@repeatable
@given(
    st.integers(1, 4).flatmap(
        lambda classes: st.integers(1, 5).flatmap(
            lambda size: st.lists(st.integers(0, 5), min_size=classes * size, max_size=classes * size).map(
                lambda clusters: (classes, size, clusters)
            )
        )
    )
)
def test_class_averaged_accuracy_of_classes_of_one_size_is_the_accuracy(case: tuple[int, int, list[int]]) -> None:
    classes, size, chosen = case
    labels, clusters = np.repeat(np.arange(classes), size), np.array(chosen)
    expected = metrics.clustering_accuracy(labels, clusters)
    assert metrics.class_averaged_accuracy(labels, clusters) == pytest.approx(expected)


@repeatable
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_class_averaged_accuracy_is_the_mean_recall_of_the_matched_classes(pairs: Pairs) -> None:
    labels, clusters = columns(pairs)
    own = {label: cluster for cluster, label in metrics.matching(labels, clusters).items()}
    recalls = []
    for label in {label for label, _ in pairs}:
        members = [cluster for other, cluster in pairs if other == label]
        recalls.append(sum(cluster == own.get(label) for cluster in members) / len(members))
    expected = sum(recalls) / len(recalls)
    assert metrics.class_averaged_accuracy(labels, clusters) == pytest.approx(expected)
    assert metrics.label_scores(labels, clusters)["class_acc"] == pytest.approx(expected)


@repeatable
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_matching_is_one_to_one_and_gives_the_accuracy(pairs: Pairs) -> None:
    labels, clusters = columns(pairs)
    found = metrics.matching(labels, clusters)
    assert len(set(found.values())) == len(found) == min(len(set(labels)), len(set(clusters)))
    hits = sum(found.get(cluster) == label for label, cluster in pairs)
    assert hits / len(pairs) == pytest.approx(metrics.clustering_accuracy(labels, clusters))


def test_matching_by_hand_uses_the_original_names() -> None:
    labels, clusters = np.array([4, 4, 9, 9, 9]), np.array([1, 1, 30, 30, 8])
    assert metrics.matching(labels, clusters) == {1: 4, 30: 9}


def test_contingency_counts_pairs_in_sorted_order() -> None:
    labels, clusters = np.array([9, 4, 9, 9]), np.array([2, 2, 1, 2])
    assert metrics.contingency(labels, clusters).tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize(
    ("labels", "clusters", "message"),
    [
        ([0, 1], [0, 1, 2], r"one length, got shapes \(2,\) and \(3,\)"),
        ([[0, 1]], [[0, 1]], r"one length, got shapes \(1, 2\)"),
        ([], [], "must not be empty"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [metrics.clustering_accuracy, metrics.class_averaged_accuracy, metrics.matching, metrics.contingency],
)
def test_vectors_that_do_not_fit_are_errors(
    function: object, labels: list[int], clusters: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^labels and clusters .*{message}"):
        function(np.array(labels, dtype=np.int64), np.array(clusters, dtype=np.int64))


def test_information_and_rand_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, clusters = random.integers(0, 4, 100), random.integers(0, 6, 100)
    nmi = normalized_mutual_info_score(labels, clusters, average_method="arithmetic")
    assert metrics.normalised_mutual_information(labels, clusters) == pytest.approx(nmi)
    rand = adjusted_rand_score(labels, clusters)
    assert metrics.adjusted_rand_index(labels, clusters) == pytest.approx(rand)


def test_label_scores_leave_out_unknown_labels() -> None:
    labels = np.array([0, 0, 1, 1, -1, -1])
    perfect = {"acc": 1.0, "nmi": 1.0, "ari": 1.0, "class_acc": 1.0}
    assert metrics.label_scores(labels, np.array([3, 3, 5, 5, 3, 7])) == perfect
    assert metrics.label_scores(labels, np.array([3, 3, 3, 5, 5, 5]))["acc"] == 0.75
    assert metrics.label_scores(None, np.array([0, 1])) == {}


def test_silhouette_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(300, 5)).astype(np.float32)
    clusters = random.integers(0, 3, 300)
    assert metrics.silhouette(features, clusters, seed=0) == float(silhouette_score(features, clusters))


def test_silhouette_of_one_cluster_or_of_single_samples_is_unknown() -> None:
    features = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    assert metrics.silhouette(features, np.zeros(6, dtype=np.int64), seed=0) is None
    assert metrics.silhouette(features, np.arange(6), seed=0) is None


def test_neighbour_purity_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    neighbours = np.array([[0, 1, 2], [1, 0, 2], [0, 1, 3], [3, 2, 2]])
    # One of two; one of two; one of three (it is not its own neighbour); both.
    expected = (1 / 2 + 1 / 2 + 1 / 3 + 1) / 4
    assert metrics.neighbour_purity(labels, neighbours) == pytest.approx(expected)


def test_neighbour_purity_leaves_out_samples_without_another_neighbour() -> None:
    labels, neighbours = np.array([0, 0, 1]), np.array([[0, 0], [0, 2], [2, 2]])
    assert metrics.neighbour_purity(labels, neighbours) == pytest.approx(0.5)


def test_cluster_sizes_count_empty_clusters() -> None:
    sizes = metrics.cluster_sizes(np.array([2, 0, 2, 2]), 5)
    assert sizes.tolist() == [1, 0, 3, 0, 0]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([5, 5, 5], 1.0),
        ([15, 0, 0], 0.0),
        ([5, 5, 0, 0], 0.5),
        ([3, 1], (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)),
        ([9], 1.0),
    ],
)
def test_balance_by_hand(sizes: list[int], expected: float) -> None:
    assert metrics.balance(np.array(sizes)) == pytest.approx(expected, abs=1e-12)


def test_spread_is_zero_when_collapsed_and_near_one_when_random() -> None:
    features = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert metrics.feature_spread(np.repeat(features[:1], 50, axis=0)) == pytest.approx(0, abs=1e-6)
    assert metrics.feature_spread(features) == pytest.approx(1, abs=0.02)


def test_purity_of_chosen_queries_equals_that_of_their_rows() -> None:
    labels = np.array([0, 0, 1, 1])
    neighbours = np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0], [3, 2, 2]])
    chosen = np.array([3, 0])
    assert metrics.neighbour_purity(labels, neighbours[chosen], chosen) == pytest.approx((1.0 + 0.5) / 2)
