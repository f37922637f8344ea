"""k-means: what it recovers, what it minimizes, and how it compares with scikit-learn's."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from conr.clustering import kmeans as module
from conr.clustering.kmeans import LARGE, PART, Clustering, kmeans, kmeans_tensors
from conr.evaluation.agreement import Agreement

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
    result = kmeans(features, 5, seed=0, n_init=5, spherical=spherical)
    assert Agreement(labels, result.assignments).accuracy == 1.0
    assert result.centroids.shape == (5, 8)
    assert result.centroids.dtype == np.float32
    assert result.assignments.dtype == np.int64


def test_a_single_initialization_finds_many_clusters_because_its_centroids_lie_apart() -> None:
    # Of random samples one in each of 12 blobs is a matter of 1 in 20,000.
    labels = np.repeat(np.arange(12), 20)
    features = on_sphere(np.eye(12, dtype=np.float32)[labels] + 0.01 * noise(len(labels), 12))
    results = [kmeans(features, 12, seed=seed) for seed in range(10)]
    found = [Agreement(labels, result.assignments).accuracy for result in results]
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
    results = [kmeans(features, 10, seed=seed, n_init=n_init, start=start) for seed, n_init in ((0, 1), (9, 20))]
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
    assert kmeans(features, 10, seed=0, n_init=40, spherical=False).inertia <= expected * 1.001


@pytest.mark.parametrize("clusters", [0, 5])
def test_an_impossible_number_of_clusters_is_named(clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"^clusters = {clusters} .* number of samples \(4\)"):
        kmeans(noise(4, 3), clusters, seed=0)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (2,)])
def test_a_start_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^start must have shape \(2, 3\), got "):
        kmeans(noise(4, 3), 2, seed=0, start=np.zeros(shape, np.float32))


# Every way through the code: faiss, all initializations on all samples, and first on a part of the samples.
WAYS = {
    "faiss": {"LARGE": 10**6},
    "all": {"LARGE": 1, "PART": 10**6},
    "part": {"LARGE": 1, "PER_CLUSTER": 5},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(module, name, value)
    return str(request.param)


def overlapping(count: int, seed: int = 0) -> Features:
    """Unit vectors near a space of few dimensions, in clusters that overlap."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(6, 5))
    low = centers[random.integers(0, 6, count)] + 0.7 * random.normal(size=(count, 5))
    return on_sphere((low @ random.normal(size=(5, 16)) + 0.1 * random.normal(size=(count, 16))).astype(np.float32))


def plain_lloyd(features: Features, start: Features, spherical: bool) -> tuple[NDArray[np.int64], float]:
    """The textbook's loop in float64, until nothing changes."""
    samples, centroids = features.astype(np.float64), start.astype(np.float64)
    last = np.full(len(samples), -1)
    while True:
        squared = ((samples[:, None] - centroids) ** 2).sum(2)
        nearest = squared.argmin(1)
        if np.array_equal(nearest, last):
            return nearest, float(squared.min(1).sum())
        last = nearest
        for cluster in np.unique(nearest):
            mean = samples[nearest == cluster].mean(0)
            centroids[cluster] = mean / np.linalg.norm(mean) if spherical else mean


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_from_a_start_is_the_textbooks(
    way: str, seed: int, spherical: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    features = overlapping(600, seed)
    if not spherical:
        features = features * np.linspace(0.5, 2, 600, dtype=np.float32)[:, None] + np.float32(3)
    start = features[:8]
    assignments, inertia = plain_lloyd(features, start, spherical)
    result = kmeans(features, 8, seed=0, max_iter=1000, start=start, spherical=spherical)
    assert (result.assignments == assignments).mean() >= 0.995  # rounding moves a sample between two clusters
    assert result.inertia == pytest.approx(inertia, rel=1e-5)


def test_more_initializations_never_give_a_higher_inertia(way: str) -> None:
    features = on_sphere(noise(400, 6))
    inertias = [kmeans(features, 12, seed=3, n_init=n_init).inertia for n_init in (1, 2, 4, 8, 16)]
    assert inertias == sorted(inertias, reverse=True) or way == "part"  # the best on a part need not be the best on all
    assert inertias[-1] < inertias[0]


def test_seeds_share_no_initialization(way: str) -> None:
    features = on_sphere(noise(400, 6))
    first = [kmeans(features, 5, seed=seed, max_iter=1) for seed in range(20)]
    assert len({result.inertia for result in first}) == 20
    # The best of few from one seed is not just the first of the next ones.
    best = [kmeans(features, 5, seed=seed, n_init=3, max_iter=1).inertia for seed in range(18)]
    assert best != [min(result.inertia for result in first[seed : seed + 3]) for seed in range(18)]


def test_all_ways_end_in_a_local_minimum(way: str) -> None:
    features = overlapping(900)
    result = kmeans(features, 8, seed=0, n_init=6)
    _, settled = plain_lloyd(features, result.centroids, True)
    assert result.inertia == pytest.approx(squared_distances(features, result), rel=1e-6)
    assert settled <= result.inertia * (1 + 1e-6) <= settled * 1.0005


def faiss_inertia(features: Features, clusters: int, n_init: int) -> float:
    """faiss's spherical k-means, with the same initialization and n_init."""
    run = faiss.Kmeans(
        features.shape[1],
        clusters,
        niter=100,
        nredo=n_init,
        seed=1,
        spherical=True,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,
        max_points_per_centroid=len(features),
    )
    run.train(features)
    products, _ = run.index.search(features, 1)
    return float(2 * len(features) - 2 * products.sum(dtype=np.float64))


def test_inertia_is_no_higher_than_that_of_faiss(way: str) -> None:
    features = overlapping(1500)
    result = kmeans(features, 6, seed=0, n_init=20)
    assert result.inertia <= faiss_inertia(features, 6, 20) * 1.0001


def test_inertia_is_no_higher_than_that_of_scikit_learn(way: str) -> None:
    features = overlapping(1500)
    result = kmeans(features, 6, seed=0, n_init=20, spherical=False)
    expected = KMeans(6, n_init=20, tol=0, random_state=0).fit(features).inertia_
    assert result.inertia <= expected * 1.0001


def test_blocks_change_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = overlapping(700)
    whole = kmeans(features, 5, seed=0, n_init=4)
    monkeypatch.setattr(module, "SCORES", {"cpu": 20 * 37})
    monkeypatch.setattr(module, "BLOCK", 16 * 13)
    blocks = kmeans(features, 5, seed=0, n_init=4)
    assert np.array_equal(blocks.assignments, whole.assignments)
    assert blocks.centroids == pytest.approx(whole.centroids, abs=1e-6)
    assert blocks.inertia == pytest.approx(whole.inertia, rel=1e-6)


def test_checking_rarely_for_convergence_changes_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = overlapping(700)
    often = kmeans(features, 5, seed=0, n_init=4)
    monkeypatch.setattr(module, "CHECK_EVERY", {"cpu": 8})
    rarely = kmeans(features, 5, seed=0, n_init=4)
    assert np.array_equal(rarely.assignments, often.assignments)
    assert rarely.centroids == pytest.approx(often.centroids, abs=1e-6)


def test_the_number_of_threads_changes_nothing_but_rounding(way: str) -> None:
    features, before = overlapping(2000), torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(kmeans(features, 5, seed=0, n_init=4))
    torch.set_num_threads(before)
    assert np.array_equal(results[0].assignments, results[1].assignments)
    assert results[0].centroids == pytest.approx(results[1].centroids, abs=1e-6)


@pytest.mark.parametrize("spherical", [True, False])
def test_more_clusters_than_distinct_samples_leave_no_inertia(way: str, spherical: bool) -> None:
    features = np.repeat(on_sphere(noise(5, 4)), 20, axis=0)
    result = kmeans(features, 9, seed=0, n_init=3, spherical=spherical)
    assert result.inertia == pytest.approx(0, abs=1e-5)
    assert np.isfinite(result.centroids).all()
    assert len(np.unique(result.assignments)) == 5


def test_a_cluster_that_gets_no_sample_is_given_the_farthest(way: str) -> None:
    features, labels = blobs(5, 40)
    start = np.eye(5, 8, dtype=np.float32)
    start[3:] = -start[3:]  # nothing is near these two
    result = kmeans(features, 5, seed=0, start=start)
    assert Agreement(labels, result.assignments).accuracy == 1.0


@pytest.mark.parametrize("spherical", [True, False])
def test_one_cluster_is_the_mean(way: str, spherical: bool) -> None:
    features = overlapping(400)
    mean = features.mean(axis=0, dtype=np.float64)
    result = kmeans(features, 1, seed=0, n_init=2, spherical=spherical)
    assert result.centroids[0] == pytest.approx(mean / np.linalg.norm(mean) if spherical else mean, abs=1e-6)
    assert not result.assignments.any()


def test_tensors_stay_tensors_and_give_what_arrays_give() -> None:
    features = overlapping(300)
    centroids, assignments, inertia = kmeans_tensors(torch.from_numpy(features), 4, seed=2, n_init=3)
    result = kmeans(features, 4, seed=2, n_init=3)
    assert np.array_equal(centroids, result.centroids)
    assert np.array_equal(assignments, result.assignments)
    assert inertia == result.inertia


@given(st.integers(1, 40), st.integers(1, 6), st.booleans(), st.integers(0, 2**31), st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_is_given_each_sample_gets_a_nearest_centroid(
    count: int, dimension: int, spherical: bool, seed: int, data: st.DataObject
) -> None:
    clusters = data.draw(st.integers(1, count))
    features = np.random.default_rng(seed).integers(1, 4, (count, dimension)).astype(np.float32)  # with duplicates
    if spherical:
        features = on_sphere(features)
    result = kmeans(features, clusters, seed=seed, n_init=2, max_iter=20, spherical=spherical)
    distances = np.linalg.norm(features[:, None] - result.centroids[None], axis=2)
    own = distances[np.arange(count), result.assignments]
    assert own == pytest.approx(distances.min(axis=1), abs=3e-3)
    assert result.inertia == pytest.approx(squared_distances(features, result), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("numbers", [{"n_init": 0}, {"max_iter": 0}])
def test_no_initialization_or_iteration_is_an_error(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^n_init = \d+ and max_iter = \d+ "):
        kmeans(noise(4, 3), 2, seed=0, **numbers)


# Large data, as it is


def test_on_large_data_the_inertia_is_that_of_all_initializations_on_all_samples() -> None:
    features = overlapping(PART * LARGE)
    result = kmeans(features, 6, seed=0, n_init=8)
    assert result.inertia == pytest.approx(faiss_inertia(features, 6, 8), rel=1e-3)
    assert result.inertia == pytest.approx(squared_distances(features, result), rel=1e-5)


def test_on_large_data_flat_clusters_have_the_inertia_of_scikit_learn() -> None:
    features = overlapping(PART * LARGE)
    result = kmeans(features, 6, seed=0, n_init=8, spherical=False)
    expected = KMeans(6, n_init=8, tol=0, algorithm="lloyd", random_state=0).fit(features).inertia_
    assert result.inertia == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("spherical", [True, False])
def test_large_data_that_are_easy_are_clustered_exactly(spherical: bool) -> None:
    features, labels = blobs(5, PART * LARGE // 5)
    result = kmeans(features, 5, seed=0, n_init=5, spherical=spherical)
    assert Agreement(labels, result.assignments).accuracy == 1.0
    for cluster in range(5):
        mean = features[result.assignments == cluster].mean(axis=0, dtype=np.float64)
        expected = mean / np.linalg.norm(mean) if spherical else mean
        assert result.centroids[cluster] == pytest.approx(expected, abs=1e-5)
