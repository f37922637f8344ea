"""Lists of similar samples: found are the best of the lists that are read, and most of the nearest are in them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from conr.neighbors import lists as module
from conr.neighbors.lists import Lists
from conr.neighbors.search import approximate_neighbors

Floats = NDArray[np.float32]


def unit(count: int, dimension: int, seed: int = 0) -> Floats:
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def slow(query: Floats, features: Floats, centers: Floats, k: int, probed: int) -> dict[int, float]:
    """The samples that a search finds and their inner products with the query, in float64 loops."""

    def product(one: Floats, other: Floats) -> float:
        return sum(float(a) * float(b) for a, b in zip(one, other, strict=True))

    def nearest(sample: Floats) -> list[int]:
        return sorted(range(len(centers)), key=lambda center: -product(sample, centers[center]))

    read = set(nearest(query)[:probed])
    scores = {j: product(query, row) for j, row in enumerate(features) if nearest(row)[0] in read}
    return dict(sorted(scores.items(), key=lambda item: -item[1])[:k])


@pytest.mark.parametrize(("length", "probed", "k"), [(1000, 16, 5), (10, 2, 4), (10, 3, 50), (5, 1, 1), (10, 100, 7)])
def test_found_are_the_largest_products_in_the_lists_of_the_nearest_centers(
    length: int, probed: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LENGTH", length)
    monkeypatch.setattr(module, "PROBED", probed)
    monkeypatch.setattr(module, "QUERIES", 7)  # several blocks
    monkeypatch.setattr(module, "SCORES", 60)  # several parts of a list
    features, queries = unit(120, 4), np.concatenate([unit(20, 4, seed=1), unit(120, 4)[:5]])
    lists = Lists(features)
    assert len(lists.centers) == max(120 // length, 1)
    scores, found = lists.search(queries, k)
    assert (scores.dtype, found.dtype) == (np.float32, np.int64)
    for query, own_scores, own in zip(queries, scores, found, strict=True):
        expected = slow(query, features, lists.centers, k, probed)
        missing = k - len(expected)
        assert own.tolist() == [*expected, *[-1] * missing]
        np.testing.assert_allclose(own_scores, [*expected.values(), *[-np.inf] * missing], atol=1e-6)


def test_most_of_the_nearest_are_found() -> None:
    low = np.random.default_rng(0).normal(size=(20_000, 8)) @ np.random.default_rng(1).normal(size=(8, 32))
    features = (low / np.linalg.norm(low, axis=1, keepdims=True)).astype(np.float32)
    _, found = Lists(features).search(features[:500], 10)
    nearest = np.argsort(-features[:500] @ features.T, axis=1)[:, :10]
    assert np.mean([len(set(own) & set(true)) / 10 for own, true in zip(found, nearest, strict=True)]) > 0.99


def test_no_queries_find_nothing() -> None:
    scores, found = Lists(unit(30, 4)).search(unit(30, 4)[:0], 3)
    assert scores.shape == found.shape == (0, 3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_samples_have_themselves_first_and_other_samples_after(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LENGTH", 10)
    monkeypatch.setattr(module, "PROBED", 2)
    features = np.full((60, 4), value, np.float32)
    found = np.concatenate(list(approximate_neighbors(features, 5)))
    np.testing.assert_array_equal(found[:, 0], np.arange(60))
    assert all(len(set(row)) == 5 and min(row) >= 0 for row in found.tolist())


def test_samples_whose_lists_are_too_short_are_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LENGTH", 5)
    monkeypatch.setattr(module, "PROBED", 1)
    monkeypatch.setattr(module, "QUERIES", 16)
    features = unit(50, 4)
    found = np.concatenate(list(approximate_neighbors(features, 40)))
    np.testing.assert_array_equal(found, np.argsort(-features @ features.T, axis=1)[:, :40])
