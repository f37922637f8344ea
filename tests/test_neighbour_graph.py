"""ConAff of a whole data set against ConAff of one batch of all its samples."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conr import neighbourhood
from conr.neighbourhood import conaff, conaff_graph

Features = NDArray[np.float32]
Ranking = NDArray[np.int64]

repeatable = settings(derandomize=True, deadline=None, max_examples=150)


@pytest.fixture(autouse=True)
def dense_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep `conaff` from taking the sparse way itself."""
    monkeypatch.setattr(neighbourhood, "SPARSE_FROM", 10**9)


def groups(count: int, seed: int = 0) -> Features:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(5, 24))
    return (centres[random.integers(0, 5, count)] + random.normal(scale=1.2, size=(count, 24))).astype(np.float32)


def unit(features: Features) -> Features:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def dense(features: Features, *counts: int, **settings: float) -> NDArray[np.int64]:
    return conaff(torch.from_numpy(features), *counts, **settings).numpy()  # type: ignore[arg-type]


def signs(random: np.random.Generator, count: int) -> Features:
    """Rows of ±1 in four dimensions: sixteen different ones, their similarities exact in binary."""
    return random.choice(np.float32([-1, 1]), size=(count, 4))


def ranked(features: Features, k1: int) -> Ranking:
    similarity = features.astype(np.float64) @ features.T
    np.fill_diagonal(similarity, np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k1]


def hubs(random: np.random.Generator, count: int, k1: int) -> Ranking:
    """Neighbours of which the low indices are almost everybody's."""
    keys = random.exponential(size=(count, count)) * np.arange(1, count + 1) ** 1.5
    np.fill_diagonal(keys, -1)
    return keys.argsort(axis=1)[:, :k1]


def affinity(
    features: Features, ranking: Ranking, k2: int, alpha: float, layers: int, symmetrise: bool, normalise: bool
) -> NDArray[np.float64]:
    """Eq. 3-7 with dense matrices in float64."""
    rows = np.arange(len(features))[:, None]
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit.T
    nodes, edges = np.zeros_like(similarity), np.zeros_like(similarity)
    nodes[rows, ranking] = 0.5
    nodes = nodes + nodes.T
    weights = similarity if alpha == int(alpha) else similarity.clip(min=0)
    edges[rows, ranking[:, :k2]] = weights[rows, ranking[:, :k2]] ** alpha
    np.fill_diagonal(edges, 1)
    for _ in range(layers if k2 > 1 else 0):
        nodes = edges @ (nodes + nodes.T if symmetrise else nodes)
        if normalise:
            nodes /= np.linalg.norm(nodes, axis=1, keepdims=True).clip(1e-12)
    return nodes @ nodes.T


@repeatable
@given(
    seed=st.integers(0, 10_000),
    counts=st.tuples(st.integers(2, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3)),
    power=st.sampled_from([(1, 1), (2, 1), (1, 2), (0, 2), (2, 0)]),
    symmetrise=st.booleans(),
    has_hubs=st.booleans(),
)
def test_exact_ties_go_to_the_sample_itself_then_to_the_lower_index(
    seed: int, counts: tuple[int, int, int, int], power: tuple[int, int], symmetrise: bool, has_hubs: bool
) -> None:
    random = np.random.default_rng(seed)
    count, (alpha, layers) = counts[0], power
    k, k1 = min(counts[1], count), min(counts[2], count)
    k2 = min(counts[3], k1)
    features = signs(random, count)
    neighbours = hubs(random, count, k1) if has_hubs else None
    ranking = ranked(features, k1) if neighbours is None else neighbours
    scores = affinity(features, ranking, k2, alpha, layers, symmetrise, normalise=False)
    own = np.eye(count, dtype=bool)
    expected = np.lexsort((np.broadcast_to(np.arange(count), scores.shape), ~own, -scores), axis=1)[:, :k]
    how = {"alpha": alpha, "layers": layers, "symmetrise": symmetrise, "normalise": False}
    np.testing.assert_array_equal(conaff_graph(features, k, k1, k2, neighbours=neighbours, **how), expected)
    if neighbours is None:
        np.testing.assert_array_equal(dense(features, k, k1, k2, **how), expected)


@repeatable
@given(
    seed=st.integers(0, 10_000),
    counts=st.tuples(st.integers(2, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    alpha=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]),
    layers=st.integers(0, 3),
    switches=st.tuples(st.booleans(), st.booleans()),
    kind=st.sampled_from(["distinct", "duplicates", "hubs"]),
)
def test_neighbours_are_the_most_affine_of_an_oracle(
    seed: int, counts: tuple[int, int, int, int], alpha: float, layers: int, switches: tuple[bool, bool], kind: str
) -> None:
    random = np.random.default_rng(seed)
    count = counts[0]
    k, k1 = min(counts[1], count), min(counts[2], count)
    k2 = min(counts[3], k1)
    features = signs(random, count) if kind == "duplicates" else groups(count, seed)
    neighbours = hubs(random, count, k1) if kind == "hubs" else None
    ranking = ranked(unit(features), k1) if neighbours is None else neighbours
    scores = affinity(features, ranking, k2, alpha, layers, *switches)
    how = {"alpha": alpha, "layers": layers, "symmetrise": switches[0], "normalise": switches[1]}
    found = conaff_graph(features, k, k1, k2, neighbours=neighbours, **how)
    assert all(len(set(row)) == k for row in found.tolist())
    if switches[1] and layers > 0 and k2 > 1:
        np.testing.assert_array_equal(found[:, 0], np.arange(count))
    best = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(np.take_along_axis(scores, found, 1), best, rtol=0, atol=1e-5 * np.abs(scores).max())


def test_five_thousand_samples_have_the_neighbours_of_the_dense_form() -> None:
    random = np.random.default_rng(0)
    centres, noise = random.normal(size=(10, 64)), np.linspace(0.2, 1.4, 5000)[:, None]  # hubs where there is much
    features = (centres[random.integers(0, 10, 5000)] + noise * random.normal(size=(5000, 64))).astype(np.float32)
    np.testing.assert_array_equal(conaff_graph(features, 10, 10, 2), dense(features, 10, 10, 2))


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
    monkeypatch.setattr(neighbourhood, "ROWS", 7 if products == 1 else 4096)
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


def test_given_neighbours_replace_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    features = groups(100, seed=5)
    nearest = ranked(unit(features), 9)
    expected = conaff_graph(features, 5, 8, 2)
    monkeypatch.setattr(neighbourhood, "_search", None)
    np.testing.assert_array_equal(conaff_graph(features, 5, 8, 2, neighbours=nearest), expected)
    # An index may leave out the sample itself, or find a duplicate before it.
    np.testing.assert_array_equal(
        conaff_graph(features, 5, 8, 2, neighbours=nearest[:, [1, 0, *range(2, 9)]]), expected
    )
    without = conaff_graph(features, 5, 8, 2, neighbours=nearest[:, 1:])
    np.testing.assert_array_equal(without, expected)


@pytest.mark.parametrize(
    ("neighbours", "message"),
    [
        (np.zeros(20, np.int64), r"shape \(20, ≥ 3\), got \(20,\)"),
        (np.zeros((19, 3), np.int64), r"shape \(20, ≥ 3\), got \(19, 3\)"),
        (np.zeros((20, 2), np.int64), r"shape \(20, ≥ 3\), got \(20, 2\)"),
        (np.tile([0, 1, -1], (20, 1)), "between 0 and 19, got -1 to 1"),
        (np.tile([0, 1, 20], (20, 1)), "between 0 and 19, got 0 to 20"),
        (np.tile([3, 1, 3], (20, 1)), "no sample twice"),
    ],
)
def test_impossible_neighbours_are_named(neighbours: Ranking, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conaff_graph(groups(20), 5, 3, 2, neighbours=neighbours)


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
