"""ConAff of a whole data set against ConAff of one batch of all its samples."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from recorder import Recorder

from conr.neighbors import conaff as batch_module
from conr.neighbors import graph as graph_module
from conr.neighbors.conaff import conaff
from conr.neighbors.graph import conaff_graph
from conr.neighbors.settings import ConAff

Features = NDArray[np.float32]
Ranking = NDArray[np.int64]

repeatable = settings(derandomize=True, deadline=None, max_examples=150)


@pytest.fixture(autouse=True)
def dense_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep `conaff` from taking the sparse way itself."""
    monkeypatch.setattr(batch_module, "SPARSE_FROM", 10**9)


def groups(count: int, seed: int = 0) -> Features:
    random = np.random.default_rng(seed)
    centers = random.normal(size=(5, 24))
    return unit(centers[random.integers(0, 5, count)] + random.normal(scale=1.2, size=(count, 24)))


def unit(features: NDArray[np.floating]) -> Features:
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def dense(features: Features, k: int, settings: ConAff) -> Ranking:
    return conaff(torch.from_numpy(features), k, settings).numpy()


def signs(random: np.random.Generator, count: int) -> Features:
    """Rows of ±1/2 in four dimensions: sixteen different unit vectors, their similarities exact in binary."""
    return random.choice(np.float32([-0.5, 0.5]), size=(count, 4))


def ranked(features: Features, k1: int) -> Ranking:
    similarity = features.astype(np.float64) @ features.T
    np.fill_diagonal(similarity, np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k1]


def hubs(random: np.random.Generator, count: int, k1: int) -> Ranking:
    """Neighbors of which the low indices are almost everybody's."""
    keys = random.exponential(size=(count, count)) * np.arange(1, count + 1) ** 1.5
    np.fill_diagonal(keys, -1)
    return keys.argsort(axis=1)[:, :k1]


def affinity(features: Features, ranking: Ranking, settings: ConAff) -> NDArray[np.float64]:
    """Eq. 4-7 with dense matrices in float64, from the k1 nearest neighbors."""
    rows, alpha, k2 = np.arange(len(features))[:, None], settings.alpha, settings.k2
    similarity = features.astype(np.float64) @ features.T
    nodes, edges = np.zeros_like(similarity), np.zeros_like(similarity)
    nodes[rows, ranking] = 0.5
    nodes = nodes + nodes.T
    weights = similarity if alpha == int(alpha) else similarity.clip(min=0)
    edges[rows, ranking[:, :k2]] = weights[rows, ranking[:, :k2]] ** alpha
    np.fill_diagonal(edges, 1)
    for _ in range(settings.layers if k2 > 1 else 0):
        nodes = edges @ (nodes + nodes.T if settings.symmetrize else nodes)
        if settings.normalize:
            nodes /= np.linalg.norm(nodes, axis=1, keepdims=True).clip(1e-12)
    return nodes @ nodes.T


@repeatable
@given(
    seed=st.integers(0, 10_000),
    counts=st.tuples(st.integers(2, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3)),
    power=st.sampled_from([(1, 1), (2, 1), (1, 2), (0, 2), (2, 0)]),
    symmetrize=st.booleans(),
    has_hubs=st.booleans(),
)
def test_exact_ties_go_to_the_sample_itself_then_to_the_lower_index(
    seed: int, counts: tuple[int, int, int, int], power: tuple[int, int], symmetrize: bool, has_hubs: bool
) -> None:
    random = np.random.default_rng(seed)
    count, (alpha, layers) = counts[0], power
    k, k1 = min(counts[1], count), min(counts[2], count)
    k2 = min(counts[3], k1)
    features = signs(random, count)
    neighbors = hubs(random, count, k1) if has_hubs else None
    ranking = ranked(features, k1) if neighbors is None else neighbors
    how = ConAff(k1, k2, alpha, layers, symmetrize, normalize=False)
    scores = affinity(features, ranking, how)
    own = np.eye(count, dtype=bool)
    expected = np.lexsort((np.broadcast_to(np.arange(count), scores.shape), ~own, -scores), axis=1)[:, :k]
    np.testing.assert_array_equal(conaff_graph(features, k, how, neighbors=neighbors), expected)
    if neighbors is None:
        np.testing.assert_array_equal(dense(features, k, how), expected)


@repeatable
@given(
    seed=st.integers(0, 10_000),
    counts=st.tuples(st.integers(2, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    alpha=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]),
    layers=st.integers(0, 3),
    switches=st.tuples(st.booleans(), st.booleans()),
    kind=st.sampled_from(["distinct", "duplicates", "hubs"]),
)
def test_neighbors_are_the_most_affine_of_an_oracle(
    seed: int, counts: tuple[int, int, int, int], alpha: float, layers: int, switches: tuple[bool, bool], kind: str
) -> None:
    random = np.random.default_rng(seed)
    count = counts[0]
    k, k1 = min(counts[1], count), min(counts[2], count)
    k2 = min(counts[3], k1)
    features = signs(random, count) if kind == "duplicates" else groups(count, seed)
    neighbors = hubs(random, count, k1) if kind == "hubs" else None
    ranking = ranked(features, k1) if neighbors is None else neighbors
    how = ConAff(k1, k2, alpha, layers, *switches)
    scores = affinity(features, ranking, how)
    found = conaff_graph(features, k, how, neighbors=neighbors)
    assert all(len(set(row)) == k for row in found.tolist())
    if switches[1] and layers > 0 and k2 > 1:
        np.testing.assert_array_equal(found[:, 0], np.arange(count))
    best = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(np.take_along_axis(scores, found, 1), best, rtol=0, atol=1e-5 * np.abs(scores).max())


def test_thousands_of_samples_have_the_neighbors_of_the_dense_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "ROWS", 1024)  # several blocks
    random = np.random.default_rng(0)
    centers, noise = random.normal(size=(10, 64)), np.linspace(0.2, 1.4, 2500)[:, None]  # hubs where there is much
    features = unit(centers[random.integers(0, 10, 2500)] + noise * random.normal(size=(2500, 64)))
    np.testing.assert_array_equal(conaff_graph(features, 10, ConAff(10, 2)), dense(features, 10, ConAff(10, 2)))


@pytest.mark.parametrize(("k", "k1", "k2"), [(10, 10, 2), (20, 20, 4), (1, 3, 1), (30, 5, 5), (7, 40, 3)])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_neighbors_are_those_of_the_dense_form(k: int, k1: int, k2: int, layers: int) -> None:
    features, how = groups(400, seed=k), ConAff(k1, k2, layers=layers)
    found, expected = conaff_graph(features, k, how), dense(features, k, how)
    np.testing.assert_array_equal(found[:, 0], expected[:, 0])
    # Two that are equally affine but for rounding, which depends on the order of summation, may be swapped.
    assert (found == expected).mean() > 0.995


@pytest.mark.parametrize(("symmetrize", "normalize"), list(itertools.product((True, False), (True, False))))
@pytest.mark.parametrize("alpha", [1.0, 2.0, 0.5])
def test_switches_mean_the_same(symmetrize: bool, normalize: bool, alpha: float) -> None:
    features = groups(300, seed=1)
    how = ConAff(8, 3, alpha=alpha, symmetrize=symmetrize, normalize=normalize)
    found, expected = conaff_graph(features, 6, how), dense(features, 6, how)
    # Without unit rows affinities tie but for rounding, which depends on the order of summation.
    assert (found == expected).all(1).mean() > (0.999 if normalize else 0.97)
    np.testing.assert_array_equal(found[:, 0] == np.arange(300), expected[:, 0] == np.arange(300))


def test_large_batches_on_a_cpu_take_the_sparse_way(monkeypatch: pytest.MonkeyPatch) -> None:
    features, how = groups(150), ConAff(6, 2)
    expected = dense(features, 5, how)
    monkeypatch.setattr(batch_module, "SPARSE_FROM", 150)
    monkeypatch.setattr(batch_module, "nearest", None)  # the dense way would call it
    np.testing.assert_array_equal(dense(features, 5, how), expected)


@pytest.mark.parametrize("products", [1, 1000, 2**25])
def test_blocks_of_any_size_give_the_same(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, how = groups(200, seed=3), ConAff(8, 2)
    expected = conaff_graph(features, 8, how)
    monkeypatch.setattr(graph_module, "PRODUCTS", products)
    monkeypatch.setattr(graph_module, "ROWS", 7 if products == 1 else 4096)
    np.testing.assert_array_equal(conaff_graph(features, 8, how), expected)


def test_duplicates_keep_themselves_first() -> None:
    features = np.repeat(groups(40, seed=4), 5, axis=0)
    found = conaff_graph(features, 5, ConAff(5, 2))
    np.testing.assert_array_equal(found[:, 0], np.arange(200))
    np.testing.assert_array_equal(found // 5, np.repeat(np.arange(200) // 5, 5).reshape(200, 5))


def test_where_nothing_is_shared_the_first_of_the_others_follow() -> None:
    features = np.eye(6, dtype=np.float32)
    found = conaff_graph(features, 4, ConAff(1, 1))
    np.testing.assert_array_equal(found, dense(features, 4, ConAff(1, 1)))
    assert found[4].tolist() == [4, 0, 1, 2]


def test_given_neighbors_replace_the_search() -> None:
    features, how = groups(100, seed=5), ConAff(8, 2)
    nearest = ranked(features, 9)
    expected = conaff_graph(features, 5, how)
    np.testing.assert_array_equal(conaff_graph(features, 5, how, neighbors=nearest), expected)
    # An index may leave out the sample itself, or find a duplicate before it.
    swapped = nearest[:, [1, 0, *range(2, 9)]]
    np.testing.assert_array_equal(conaff_graph(features, 5, how, neighbors=swapped), expected)
    np.testing.assert_array_equal(conaff_graph(features, 5, how, neighbors=nearest[:, 1:]), expected)
    others = hubs(np.random.default_rng(0), 100, 8)
    assert (conaff_graph(features, 5, how, neighbors=others) != expected).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("given", [False, True])
def test_the_observer_is_notified_of_every_sample_twice(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "ROWS", 30)
    features, recorder = groups(100), Recorder()
    neighbors = ranked(features, 8) if given else None
    conaff_graph(features, 5, ConAff(8, 2), neighbors=neighbors, observer=recorder)
    assert recorder.tasks == [("neighbors", 200, 0)]
    amounts = [amount for amount, _ in recorder.steps]
    assert amounts[:4] == [30, 30, 30, 10]
    assert sum(amounts) == 200


@pytest.mark.parametrize(
    ("neighbors", "message"),
    [
        (np.zeros(20, np.int64), r"^neighbors .*\(20, ≥ 3\), got \(20,\)"),
        (np.zeros((19, 3), np.int64), r"^neighbors .*\(20, ≥ 3\), got \(19, 3\)"),
        (np.zeros((20, 2), np.int64), r"^neighbors .*\(20, ≥ 3\), got \(20, 2\)"),
        (np.tile([0, 1, -1], (20, 1)), "^neighbors .*19.* -1 to 1"),
        (np.tile([0, 1, 20], (20, 1)), "^neighbors .*19.* 0 to 20"),
        (np.tile([3, 1, 3], (20, 1)), "^neighbors "),
    ],
)
def test_impossible_neighbors_are_named(neighbors: Ranking, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conaff_graph(groups(20), 5, ConAff(3, 2), neighbors=neighbors)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((21, 5, 2), r"^k = 21 .*\(20\)$"),
        ((5, 21, 2), r"^k1 = 21 .*\(20\)$"),
        ((5, 5, 6), r"^k2 = 6 .*k1 \(5\)$"),
    ],
)
def test_impossible_counts_are_named(counts: tuple[int, int, int], message: str) -> None:
    k, k1, k2 = counts
    with pytest.raises(ValueError, match=message):
        conaff_graph(groups(20), k, ConAff(k1, k2))
