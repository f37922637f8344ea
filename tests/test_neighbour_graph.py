"""ConAff of a whole data set against ConAff of one batch of all its samples."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from conr import neighbourhood
from conr.neighbourhood import conaff, conaff_graph

Features = NDArray[np.float32]


@pytest.fixture(autouse=True)
def dense_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep `conaff` from taking the sparse way itself."""
    monkeypatch.setattr(neighbourhood, "SPARSE_FROM", 10**9)


def groups(count: int, seed: int = 0) -> Features:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(5, 24))
    return (centres[random.integers(0, 5, count)] + random.normal(scale=1.2, size=(count, 24))).astype(np.float32)


def dense(features: Features, *counts: int, **settings: float) -> NDArray[np.int64]:
    return conaff(torch.from_numpy(features), *counts, **settings).numpy()  # type: ignore[arg-type]


@pytest.mark.parametrize(("k", "k1", "k2"), [(10, 10, 2), (20, 20, 4), (1, 3, 1), (30, 5, 5), (7, 40, 3)])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_neighbours_are_those_of_the_dense_form(k: int, k1: int, k2: int, layers: int) -> None:
    features = groups(400, seed=k)
    found, expected = conaff_graph(features, k, k1, k2, layers=layers), dense(features, k, k1, k2, layers=layers)
    np.testing.assert_array_equal(found[:, 0], expected[:, 0])
    # Two that are equally affine but for rounding, which depends on the order of summation, may change places.
    assert (found == expected).mean() > 0.995


@pytest.mark.parametrize(("symmetrise", "normalise"), list(itertools.product((True, False), (True, False))))
@pytest.mark.parametrize("alpha", [1.0, 2.0, 0.5])
def test_switches_mean_the_same(symmetrise: bool, normalise: bool, alpha: float) -> None:
    features = groups(300, seed=1)
    settings = {"alpha": alpha, "symmetrise": symmetrise, "normalise": normalise}
    found = conaff_graph(features, 6, 8, 3, **settings)
    expected = dense(features, 6, 8, 3, **settings)
    # Without unit rows affinities tie but for rounding, which depends on the order of summation.
    assert (found == expected).all(1).mean() > (0.999 if normalise else 0.97)
    np.testing.assert_array_equal(found[:, 0] == np.arange(300), expected[:, 0] == np.arange(300))


def test_large_batches_on_a_cpu_take_the_sparse_way(monkeypatch: pytest.MonkeyPatch) -> None:
    features = groups(150)
    expected = dense(features, 5, 6, 2)
    monkeypatch.setattr(neighbourhood, "SPARSE_FROM", 150)
    monkeypatch.setattr(neighbourhood, "_nearest", None)  # the dense way would call it
    np.testing.assert_array_equal(dense(features, 5, 6, 2), expected)


@pytest.mark.parametrize("products", [1, 1000, 2**25])
def test_blocks_of_any_size_give_the_same(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = groups(200, seed=3)
    expected = conaff_graph(features, 8, 8, 2)
    monkeypatch.setattr(neighbourhood, "PRODUCTS", products)
    monkeypatch.setattr(neighbourhood, "SEARCHED", 7 if products == 1 else 4096)
    np.testing.assert_array_equal(conaff_graph(features, 8, 8, 2), expected)


def test_duplicates_keep_themselves_first() -> None:
    features = np.repeat(groups(40, seed=4), 5, axis=0)
    found = conaff_graph(features, 5, 5, 2)
    np.testing.assert_array_equal(found[:, 0], np.arange(200))
    np.testing.assert_array_equal(found // 5, np.repeat(np.arange(200) // 5, 5).reshape(200, 5))


def test_where_nothing_is_shared_the_first_of_the_others_follow() -> None:
    features = np.eye(6, dtype=np.float32)
    found = conaff_graph(features, 4, 1, 1)
    np.testing.assert_array_equal(found, dense(features, 4, 1, 1))
    assert found[4].tolist() == [4, 0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((21, 5, 2), r"k = 21 must lie between 1 and the number of samples \(20\)"),
        ((5, 21, 2), r"k1 = 21 must lie between 1 and the number of samples \(20\)"),
        ((5, 5, 6), r"k2 = 6 must lie between 1 and k1 \(5\)"),
    ],
)
def test_impossible_counts_are_named(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conaff_graph(groups(20), *arguments)
