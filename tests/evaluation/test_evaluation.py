"""The final clusters and their scores."""

import numpy as np
import pytest
from numpy.typing import NDArray

from conr.clustering.kmeans import kmeans
from conr.evaluation.agreement import label_scores
from conr.evaluation.evaluate import Evaluation, evaluate
from conr.evaluation.scores import silhouette
from conr.parameters.groups import Evaluate

SIZES = (40, 25, 10)
SETTINGS = Evaluate(n_init=3, max_iter=20)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blobs(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Three separated blobs of unit vectors, shuffled, the largest with the highest label."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat([2, 0, 1], SIZES))
    return unit(np.eye(8)[labels] + 0.05 * generator.normal(size=(len(labels), 8))), labels


def evaluated(embeddings: NDArray[np.float32], labels: NDArray[np.int64] | None, clusters: int = 3) -> Evaluation:
    return evaluate(embeddings, labels, clusters, SETTINGS, seed=0)


# Evaluation


def test_separated_blobs_are_found_and_numbered_by_size() -> None:
    embeddings, labels = blobs()
    found = evaluated(embeddings, None)
    assert found.sizes.tolist() == sorted(SIZES, reverse=True)
    numbers = np.array([1, 2, 0])  # label → cluster: label 2 has most samples, then 0, then 1
    np.testing.assert_array_equal(found.assignment.clusters, numbers[labels])
    for cluster, label in enumerate([2, 0, 1]):
        np.testing.assert_allclose(found.centroids[cluster], np.eye(8)[label], atol=0.1)


def test_the_assignments_are_those_to_the_nearest_of_the_centroids_given_back() -> None:
    embeddings = unit(np.random.default_rng(3).normal(size=(120, 8)))
    found = evaluated(embeddings, None, clusters=6)
    nearest = np.linalg.norm(embeddings[:, None] - found.centroids[None], axis=2).argmin(axis=1)
    np.testing.assert_array_equal(found.assignment.clusters, nearest)
    assert found.sizes.tolist() == np.bincount(nearest, minlength=6).tolist()
    assert (np.diff(found.sizes) <= 0).all()


def test_scores_of_separated_blobs_are_perfect() -> None:
    embeddings, labels = blobs()
    scores = evaluated(embeddings, labels).scores
    assert scores["acc"] == 1
    assert scores["nmi"] == pytest.approx(1)
    assert scores["ari"] == pytest.approx(1)
    assert scores["class_acc"] == 1
    assert scores["silhouette"] > 0.8
    assert (scores["smallest_cluster"], scores["largest_cluster"]) == (10, 40)
    shares = np.array(SIZES) / sum(SIZES)
    assert scores["size_entropy"] == pytest.approx(-(shares * np.log(shares)).sum() / np.log(3))


def test_the_inertia_is_that_of_the_centroids_given_back() -> None:
    embeddings, _ = blobs()
    found = evaluated(embeddings, None)
    assert found.scores["inertia"] == pytest.approx((found.assignment.own_distance.astype(float) ** 2).sum(), rel=1e-3)


def test_without_labels_there_are_no_scores_against_them() -> None:
    embeddings, labels = blobs()
    without, with_labels = evaluated(embeddings, None).scores, evaluated(embeddings, labels).scores
    assert with_labels.keys() - without.keys() == {"acc", "nmi", "ari", "class_acc"}
    assert without == {name: value for name, value in with_labels.items() if name in without}


def test_unknown_labels_are_left_out_of_the_scores() -> None:
    embeddings, labels = blobs()
    wrong = labels.copy()
    wrong[:20] = (wrong[:20] + 1) % 3
    unknown = wrong.copy()
    unknown[:20] = -1
    assert evaluated(embeddings, wrong).scores["acc"] == pytest.approx(55 / 75)
    assert evaluated(embeddings, unknown).scores["acc"] == 1


def test_labels_change_nothing_but_the_scores_against_them() -> None:
    embeddings, labels = blobs()
    embeddings = unit(embeddings + np.random.default_rng(1).normal(size=embeddings.shape))  # no clear clusters
    shuffled = np.random.default_rng(2).permutation(labels)
    results = [evaluated(embeddings, given, clusters=5) for given in (None, labels, shuffled)]
    for other in results[1:]:
        np.testing.assert_array_equal(other.assignment.clusters, results[0].assignment.clusters)
        np.testing.assert_array_equal(other.centroids, results[0].centroids)
    assert results[1].scores["acc"] != results[2].scores["acc"]


def test_the_same_seed_gives_the_same_clusters() -> None:
    embeddings = unit(np.random.default_rng(4).normal(size=(90, 8)))
    first, second = (evaluated(embeddings, None, clusters=8) for _ in range(2))
    np.testing.assert_array_equal(first.centroids, second.centroids)
    assert first.scores == second.scores


def test_collapsed_embeddings_have_no_feature_std_and_still_a_result() -> None:
    found = evaluated(unit(np.ones((30, 4))), None, clusters=3)
    assert found.sizes.sum() == 30
    assert found.scores["feature_std"] == pytest.approx(0, abs=1e-6)
    assert found.scores["inertia"] == pytest.approx(0, abs=1e-4)


# What is clustered and what is scored


def halves() -> tuple[NDArray[np.float32], NDArray[np.int64], slice, slice]:
    """Blobs of which the first 45 are clustered and the last 30 are scored; the labels of others are nonsense."""
    embeddings, labels = blobs()
    embeddings = unit(embeddings + np.random.default_rng(1).normal(scale=0.4, size=embeddings.shape))
    return embeddings, labels, slice(0, 45), slice(45, None)


def evaluated_in_parts(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64] | None, clustered: slice, scored: slice
) -> Evaluation:
    return evaluate(embeddings, labels, 4, SETTINGS, 0, clustered, scored)


def test_k_means_sees_what_is_to_be_clustered_and_nothing_else() -> None:
    embeddings, labels, clustered, scored = halves()
    found = evaluated_in_parts(embeddings, labels, clustered, scored)
    expected = kmeans(embeddings[clustered], 4, seed=0, n_init=3, max_iter=20)
    order = np.argsort(-np.bincount(expected.assignments, minlength=4), kind="stable")
    np.testing.assert_array_equal(found.centroids, expected.centroids[order])
    assert found.scores["inertia"] == expected.inertia
    elsewhere = embeddings.copy()
    elsewhere[scored] = -elsewhere[scored]
    np.testing.assert_array_equal(evaluated_in_parts(elsewhere, labels, clustered, scored).centroids, found.centroids)
    assert not np.array_equal(evaluated_in_parts(embeddings, labels, scored, scored).centroids, found.centroids)


def test_every_embedding_is_assigned_whether_k_means_saw_it_or_not() -> None:
    embeddings, labels, clustered, scored = halves()
    found = evaluated_in_parts(embeddings, labels, clustered, scored)
    nearest = np.linalg.norm(embeddings[:, None] - found.centroids[None], axis=2).argmin(axis=1)
    np.testing.assert_array_equal(found.assignment.clusters, nearest)
    assert found.sizes.tolist() == np.bincount(nearest, minlength=4).tolist()


def test_scores_are_those_of_the_scored_alone() -> None:
    embeddings, labels, clustered, scored = halves()
    found = evaluated_in_parts(embeddings, labels, clustered, scored)
    assignments = found.assignment.clusters[scored]
    expected = label_scores(labels[scored], assignments)
    assert {name: found.scores[name] for name in expected} == expected
    assert found.scores["acc"] != label_scores(labels, found.assignment.clusters)["acc"]
    assert found.scores["silhouette"] == silhouette(embeddings[scored], assignments, seed=0)
    nonsense = labels.copy()
    nonsense[clustered] = (nonsense[clustered] + 1) % 3
    assert evaluated_in_parts(embeddings, nonsense, clustered, scored).scores == found.scores
    unknown = labels.copy()
    unknown[clustered] = -1
    assert evaluated_in_parts(embeddings, unknown, clustered, scored).scores == found.scores


def test_without_slices_everything_is_clustered_and_scored() -> None:
    embeddings, labels, _, _ = halves()
    everything = evaluated_in_parts(embeddings, labels, slice(0, 75), slice(0, 75))
    plain = evaluated(embeddings, labels, clusters=4)
    np.testing.assert_array_equal(plain.centroids, everything.centroids)
    assert plain.scores == everything.scores
