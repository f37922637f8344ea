"""The map of the embeddings, and the nearest neighbors of each image."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from conr.evaluation import plane as module
from conr.evaluation.plane import MAP_POINTS, embedding_map, nearest_images

SIZES = (40, 25, 10)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blobs(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Three separated blobs of unit vectors, shuffled."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat([2, 0, 1], sizes))
    return unit(np.eye(8)[labels] + 0.05 * generator.normal(size=(len(labels), 8))), labels


def mapped(embeddings: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    positions = embedding_map(embeddings, seed)
    assert positions is not None
    return positions


def nearest_in_the_plane(positions: NDArray[np.float32]) -> NDArray[np.int64]:
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(axis=1)


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """t-SNE on a few points spends its time on waiting for threads, much of it on a busy machine."""
    with threadpool_limits(1):
        yield


# Map


@pytest.mark.parametrize("count", [3, 9, 10, 15])
def test_a_few_samples_are_all_on_the_map(count: int) -> None:
    positions = mapped(unit(np.random.default_rng(count).normal(size=(count, 8))))
    assert positions.shape == (count, 2)
    assert positions.dtype == np.float32
    assert np.isfinite(positions).all()
    assert len(np.unique(positions, axis=0)) == count


@pytest.mark.parametrize("points", [12, 20])
def test_all_of_many_samples_are_on_the_map(monkeypatch: pytest.MonkeyPatch, points: int) -> None:
    assert MAP_POINTS == 2_500
    monkeypatch.setattr(module, "MAP_POINTS", points)
    embeddings, _ = blobs()
    positions = mapped(embeddings)
    assert positions.shape == (75, 2)
    assert np.isfinite(positions).all()
    assert len(np.unique(positions, axis=0)) == 75


@pytest.mark.parametrize("points", [9, 12, 100])
def test_the_map_follows_its_seed(monkeypatch: pytest.MonkeyPatch, points: int) -> None:
    monkeypatch.setattr(module, "MAP_POINTS", points)
    embeddings, _ = blobs()
    np.testing.assert_array_equal(mapped(embeddings, 5), mapped(embeddings, 5))
    if points < 75:
        assert not np.array_equal(mapped(embeddings, 5), mapped(embeddings, 6))


@pytest.mark.parametrize(("sizes", "points"), [(SIZES, 100), ((400, 250, 100), 200)])
def test_blobs_stay_apart_on_the_map(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], points: int) -> None:
    monkeypatch.setattr(module, "MAP_POINTS", points)
    embeddings, labels = blobs(0, sizes)
    nearest = nearest_in_the_plane(mapped(embeddings))
    assert (labels[nearest] == labels).mean() > 0.95


def test_a_sample_between_arranged_ones_lies_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAP_POINTS", 120)
    embeddings, labels = blobs(1, (200, 200, 200))
    positions = mapped(embeddings)
    for label in range(3):
        own, others = positions[labels == label], positions[labels != label]
        center = np.median(own, axis=0)
        radius = np.quantile(np.linalg.norm(own - center, axis=1), 0.98)
        assert (np.linalg.norm(others - center, axis=1) > radius).mean() > 0.95


@pytest.mark.parametrize("points", [10, 1000])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_equal_samples_are_one_point_whether_t_sne_sees_them_or_not(
    monkeypatch: pytest.MonkeyPatch, points: int, noise: float
) -> None:
    monkeypatch.setattr(module, "MAP_POINTS", points)
    generator = np.random.default_rng(0)
    different = unit(generator.normal(size=(40, 8)))
    copies = generator.permutation(np.repeat(np.arange(40), 4))
    positions = mapped(unit(different[copies].astype(np.float64) + noise * generator.normal(size=(160, 8))))
    for number in range(40):
        same = positions[copies == number]
        assert np.abs(same - same[0]).max() <= (0 if noise == 0 else 1e-3) * np.ptp(positions)


def test_negative_zeros_are_zeros() -> None:
    embeddings = unit(np.eye(4)[np.arange(24) % 4])
    signed = embeddings.copy()
    signed[::8] *= np.where(embeddings[::8] == 0, -1, 1)
    np.testing.assert_array_equal(mapped(embeddings), mapped(signed))
    assert len(np.unique(mapped(signed), axis=0)) == 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_has_no_map(value: float) -> None:
    embeddings, _ = blobs()
    embeddings[3, 1] = value
    assert embedding_map(embeddings, 0) is None


# Nearest images


@settings(derandomize=True, deadline=None, max_examples=60)
@given(samples=st.integers(1, 60), count=st.integers(1, 12), seed=st.integers(0, 2**16))
def test_the_nearest_images_are_those_of_a_loop(samples: int, count: int, seed: int) -> None:
    embeddings = unit(np.random.default_rng(seed).normal(size=(samples, 6)))
    found = nearest_images(embeddings, count)
    assert found.shape == (samples, min(count, samples - 1))
    for sample in range(samples):
        cosines = [
            (-float(np.dot(embeddings[sample].astype(float), embeddings[other])), other) for other in range(samples)
        ]
        expected = [other for _, other in sorted(cosines) if other != sample]
        assert found[sample].tolist() == expected[: found.shape[1]]


def test_more_samples_than_one_search_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, _ = blobs()
    expected = nearest_images(embeddings, 5)
    monkeypatch.setattr(module, "ROWS", 16)
    np.testing.assert_array_equal(nearest_images(embeddings, 5), expected)


def test_equal_images_are_neighbors_of_each_other_and_not_of_themselves() -> None:
    embeddings = unit(np.repeat(np.eye(4), 3, axis=0))
    found = nearest_images(embeddings, 2)
    for sample in range(12):
        assert sorted([sample, *found[sample].tolist()]) == [sample // 3 * 3 + step for step in range(3)]


def test_neighbors_that_are_known_are_taken_without_the_sample_itself() -> None:
    embeddings = unit(np.random.default_rng(0).normal(size=(4, 3)))
    known = np.array([[0, 3, 2, 1], [2, 1, 3, 0], [3, 1, 0, 2], [2, 1, 0, 3]])
    assert nearest_images(embeddings, 2, neighbors=known).tolist() == [[3, 2], [2, 3], [3, 1], [2, 1]]


@pytest.mark.parametrize("shape", [(3, 4), (4, 2), (4,)])
def test_known_neighbors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    embeddings = unit(np.random.default_rng(0).normal(size=(4, 3)))
    with pytest.raises(ValueError, match="neighbors is"):
        nearest_images(embeddings, 2, neighbors=np.zeros(shape, dtype=np.int64))
