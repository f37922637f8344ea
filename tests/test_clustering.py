"""k-means: what it recovers, what it minimises, and how it compares with scikit-learn's."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from conr import clustering
from conr.clustering import Clustering, distances_to, kmeans
from conr.metrics import clustering_accuracy

Features = NDArray[np.float32]


def noise(count: int, dimension: int, seed: int = 0) -> Features:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def on_sphere(features: Features) -> Features:
    unit: Features = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def blobs(clusters: int, each: int) -> tuple[Features, NDArray[np.int64]]:
    """Points close to unit vectors at right angles, in mixed order, and the vector of each."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(clusters), each))
    features = np.eye(clusters, 8, dtype=np.float32)[labels] + 0.05 * noise(len(labels), 8)
    return on_sphere(features), labels


def squared_distances(features: Features, result: Clustering) -> float:
    """The definition of inertia, in float64."""
    difference = features.astype(np.float64) - result.centroids.astype(np.float64)[result.assignments]
    return float((difference**2).sum())


@pytest.mark.parametrize("spherical", [True, False])
def test_well_separated_blobs_are_recovered(spherical: bool) -> None:
    features, labels = blobs(5, 40)
    result = kmeans(features, 5, seed=0, restarts=5, spherical=spherical)
    assert clustering_accuracy(labels, result.assignments) == 1.0
    assert result.centroids.shape == (5, 8)
    assert result.centroids.dtype == np.float32
    assert result.assignments.dtype == np.int64


def test_a_single_run_finds_many_clusters_because_of_its_spread_start() -> None:
    # From random samples a start with one in each of 12 blobs is a matter of 1 in 20,000.
    labels = np.repeat(np.arange(12), 20)
    features = on_sphere(np.eye(12, dtype=np.float32)[labels] + 0.01 * noise(len(labels), 12))
    results = [kmeans(features, 12, seed=seed) for seed in range(10)]
    found = [clustering_accuracy(labels, result.assignments) for result in results]
    assert found.count(1.0) >= 9


@pytest.mark.parametrize("spherical", [True, False])
def test_inertia_is_the_sum_of_squared_distances_to_the_own_centroid(spherical: bool) -> None:
    features = on_sphere(noise(300, 6))
    result = kmeans(features, 7, seed=0, spherical=spherical)
    assert result.inertia == pytest.approx(squared_distances(features, result), rel=1e-5)


def test_every_sample_belongs_to_its_nearest_centroid() -> None:
    features = on_sphere(noise(300, 6))
    result = kmeans(features, 7, seed=0)
    distances = np.linalg.norm(features[:, None] - result.centroids[None], axis=2)
    assert np.array_equal(result.assignments, distances.argmin(axis=1))


def test_more_restarts_never_give_a_higher_inertia() -> None:
    features = on_sphere(noise(200, 6))
    inertias = [kmeans(features, 12, seed=3, restarts=restarts).inertia for restarts in (1, 2, 4, 8, 16)]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[-1] < inertias[0]


def test_the_best_of_the_restarts_is_returned_and_no_two_seeds_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    features = on_sphere(noise(200, 6))
    seeds, inertias = [], []
    one_run = clustering._one_run

    def recorded(features: Any, clusters: int, seed: int, *others: Any) -> Clustering:
        result = one_run(features, clusters, seed, *others)
        seeds.append(seed)
        inertias.append(result.inertia)
        return result

    monkeypatch.setattr(clustering, "_one_run", recorded)
    assert kmeans(features, 12, seed=0, restarts=5).inertia == min(inertias)
    kmeans(features, 12, seed=1, restarts=5)
    assert len(set(seeds)) == 10
    assert len(set(inertias[:5])) > 1


def test_the_same_seed_gives_the_same_clusters_and_another_seed_others() -> None:
    features = on_sphere(noise(300, 6))
    first, again, other = (kmeans(features, 10, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(first.assignments, again.assignments)
    assert np.array_equal(first.centroids, again.centroids)
    assert not np.array_equal(first.assignments, other.assignments)


def test_clusters_keep_the_order_of_the_centroids_they_start_from() -> None:
    features, labels = blobs(5, 40)
    order = np.array([3, 1, 4, 0, 2])
    result = kmeans(features, 5, seed=0, start=np.eye(5, 8, dtype=np.float32)[order])
    assert np.array_equal(order[result.assignments], labels)


def test_a_start_is_run_once_whatever_the_seed() -> None:
    features = on_sphere(noise(300, 6))
    start = features[:10]
    results = [kmeans(features, 10, seed=seed, restarts=restarts, start=start) for seed, restarts in ((0, 1), (9, 20))]
    assert np.array_equal(results[0].assignments, results[1].assignments)


def test_all_samples_count_and_not_only_256_a_cluster() -> None:
    features = noise(3000, 3) + np.float32(2)
    result = kmeans(features, 1, seed=0, spherical=False)
    assert result.centroids[0] == pytest.approx(features.mean(axis=0, dtype=np.float64), abs=1e-5)
    assert result.inertia == pytest.approx(float(features.var(axis=0, dtype=np.float64).sum()) * 3000, rel=1e-5)


def test_spherical_centroids_have_length_one_and_others_are_means() -> None:
    features = on_sphere(noise(300, 6))
    round_one, flat = (kmeans(features, 5, seed=0, spherical=spherical) for spherical in (True, False))
    assert np.linalg.norm(round_one.centroids, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    for cluster in range(5):
        mean = features[round_one.assignments == cluster].mean(axis=0)
        assert round_one.centroids[cluster] == pytest.approx(mean / np.linalg.norm(mean), abs=0.01)
        mean = features[flat.assignments == cluster].mean(axis=0)
        assert flat.centroids[cluster] == pytest.approx(mean, abs=0.01)


def test_as_many_clusters_as_samples_leave_no_inertia() -> None:
    features = on_sphere(noise(6, 4))
    result = kmeans(features, 6, seed=0)
    assert sorted(result.assignments.tolist()) == [0, 1, 2, 3, 4, 5]
    assert result.inertia == pytest.approx(0, abs=1e-6)


def test_inertia_on_digits_is_within_a_thousandth_of_scikit_learn() -> None:
    features = (load_digits().data / 16).astype(np.float32)
    expected = KMeans(10, n_init=40, random_state=0).fit(features).inertia_
    assert kmeans(features, 10, seed=0, restarts=40, spherical=False).inertia <= expected * 1.001


@pytest.mark.parametrize("clusters", [0, 5])
def test_an_impossible_number_of_clusters_is_named(clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"^clusters = {clusters} .* number of samples \(4\)"):
        kmeans(noise(4, 3), clusters, seed=0)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (2,)])
def test_a_start_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^start must have shape \(2, 3\), got "):
        kmeans(noise(4, 3), 2, seed=0, start=np.zeros(shape, np.float32))


def test_distances_to_centroids_are_euclidean() -> None:
    features, centroids = noise(20, 5), noise(4, 5, seed=1)
    expected = np.linalg.norm(features[:, None] - centroids[None], axis=2)
    assert distances_to(features, centroids) == pytest.approx(expected, abs=1e-5)
    assert distances_to(features, features[:3]).diagonal() == pytest.approx(np.zeros(3), abs=2e-3)
