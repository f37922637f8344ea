"""Agreement of clusters with labels against brute force, scikit-learn and cases worked out by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from conr.evaluation.agreement import Agreement, label_scores

repeatable = settings(derandomize=True, deadline=None, max_examples=100)

Pairs = list[tuple[int, int]]


def columns(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    labels, clusters = np.array(pairs, dtype=np.int64).T
    return labels, clusters


def agreement(labels: list[int], clusters: list[int]) -> Agreement:
    return Agreement(np.array(labels), np.array(clusters))


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
    assert Agreement(*columns(pairs)).accuracy == pytest.approx(brute_force_accuracy(pairs))


@repeatable
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30),
    names=st.permutations([-7, 0, 3, 10, 10**12]),
)
def test_names_of_clusters_do_not_matter(pairs: Pairs, names: list[int]) -> None:
    labels, clusters = columns(pairs)
    found, renamed = Agreement(labels, clusters), Agreement(labels, np.array(names)[clusters])
    assert renamed.accuracy == pytest.approx(found.accuracy)
    assert renamed.normalized_mutual_information == pytest.approx(found.normalized_mutual_information)
    assert renamed.adjusted_rand_index == pytest.approx(found.adjusted_rand_index)


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
    assert agreement(labels, clusters).accuracy == pytest.approx(expected)


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
    assert agreement(labels, clusters).class_averaged_accuracy == pytest.approx(expected)


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
    found = Agreement(np.repeat(np.arange(classes), size), np.array(chosen))
    assert found.class_averaged_accuracy == pytest.approx(found.accuracy)


@repeatable
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_class_averaged_accuracy_is_the_mean_recall_of_the_matched_classes(pairs: Pairs) -> None:
    labels, clusters = columns(pairs)
    found = Agreement(labels, clusters)
    own = {label: cluster for cluster, label in found.matching.items()}
    recalls = []
    for label in {label for label, _ in pairs}:
        members = [cluster for other, cluster in pairs if other == label]
        recalls.append(sum(cluster == own.get(label) for cluster in members) / len(members))
    expected = sum(recalls) / len(recalls)
    assert found.class_averaged_accuracy == pytest.approx(expected)
    if len(set(labels.tolist())) > 1:
        assert label_scores(labels, clusters)["class_acc"] == pytest.approx(expected)


@repeatable
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_matching_is_one_to_one_and_gives_the_accuracy(pairs: Pairs) -> None:
    labels, clusters = columns(pairs)
    found = Agreement(labels, clusters)
    matching = found.matching
    assert len(set(matching.values())) == len(matching) == min(len(set(labels)), len(set(clusters)))
    hits = sum(matching.get(cluster) == label for label, cluster in pairs)
    assert hits / len(pairs) == pytest.approx(found.accuracy)


def test_matching_by_hand_uses_the_original_names() -> None:
    assert agreement([4, 4, 9, 9, 9], [1, 1, 30, 30, 8]).matching == {1: 4, 30: 9}


def test_the_table_counts_pairs_in_the_sorted_order_of_classes_and_clusters() -> None:
    found = agreement([9, 4, 9, 9], [2, 2, 1, 2])
    assert found.table.tolist() == [[0, 1], [1, 2]]
    assert found.table.dtype == np.int64
    assert (found.classes.tolist(), found.numbers.tolist()) == ([4, 9], [1, 2])


def test_all_that_one_agreement_says_is_of_the_same_table() -> None:
    """Five of six samples: class 4 is cluster 1, class 9 is cluster 0, and one sample of 9 is in the wrong one."""
    labels, clusters = [4, 4, 9, 9, 9, 9], [1, 1, 0, 0, 0, 1]
    found = agreement(labels, clusters)
    assert found.table.tolist() == [[0, 2], [3, 1]]
    assert found.matching == {0: 9, 1: 4}
    assert found.accuracy == pytest.approx(5 / 6)
    assert found.class_averaged_accuracy == pytest.approx((1 + 3 / 4) / 2)
    assert found.normalized_mutual_information == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert found.adjusted_rand_index == pytest.approx(adjusted_rand_score(labels, clusters))
    assert label_scores(np.array(labels), np.array(clusters)) == {
        "acc": found.accuracy,
        "nmi": found.normalized_mutual_information,
        "ari": found.adjusted_rand_index,
        "class_acc": found.class_averaged_accuracy,
    }


@pytest.mark.parametrize(
    ("labels", "clusters", "message"),
    [
        ([0, 1], [0, 1, 2], r"\(2,\) and \(3,\)"),
        ([[0, 1]], [[0, 1]], r"\(1, 2\)"),
        ([], [], "empty"),
    ],
)
def test_vectors_that_do_not_fit_are_errors(labels: list[int], clusters: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^labels and clusters .*{message}"):
        Agreement(np.array(labels, dtype=np.int64), np.array(clusters, dtype=np.int64))


def test_information_and_rand_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, clusters = random.integers(0, 4, 100), random.integers(0, 6, 100)
    found = Agreement(labels, clusters)
    nmi = normalized_mutual_info_score(labels, clusters, average_method="arithmetic")
    assert found.normalized_mutual_information == pytest.approx(nmi)
    assert found.adjusted_rand_index == pytest.approx(adjusted_rand_score(labels, clusters))


def test_label_scores_leave_out_unknown_labels() -> None:
    labels = np.array([0, 0, 1, 1, -1, -1])
    perfect = {"acc": 1.0, "nmi": 1.0, "ari": 1.0, "class_acc": 1.0}
    assert label_scores(labels, np.array([3, 3, 5, 5, 3, 7])) == perfect
    assert label_scores(labels, np.array([3, 3, 3, 5, 5, 5]))["acc"] == 0.75


def test_without_any_known_label_there_are_no_label_scores() -> None:
    assert label_scores(None, np.array([0, 1])) == {}
    assert label_scores(np.array([-1, -1]), np.array([0, 1])) == {}


@pytest.mark.parametrize("labels", [[4, 4, 4], [4, -1, 4]])
def test_where_all_labels_are_one_class_there_are_no_label_scores(labels: list[int]) -> None:
    """The ACC would be the share of the largest cluster."""
    assert label_scores(np.array(labels), np.array([0, 1, 0])) == {}
