"""ConAff against an oracle of plain loops, and the order it promises among ties."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conaff_oracle import Matrix, slow_affinity, slow_conaff
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conr.neighbors.conaff import SPARSE_FROM, conaff, euclidean, reciprocal_encoding
from conr.neighbors.settings import ConAff

repeatable = settings(derandomize=True, deadline=None, max_examples=40)


def assert_neighbors_are_the_most_affine(neighbors: Tensor, affinity: Matrix, tolerance: float) -> None:
    largest = max(abs(value) for row in affinity for value in row)
    for found, row in zip(neighbors.tolist(), affinity, strict=True):
        assert len(set(found)) == len(found)
        best = sorted(row, reverse=True)[: len(found)]
        assert [row[j] for j in found] == pytest.approx(best, rel=0, abs=tolerance * largest)


def random_features(seed: int, size: int, dimension: int) -> Tensor:
    """Unit vectors in float64, with no two similarities of a row so close that rounding to float32 swaps them."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        features = F.normalize(torch.randn(size, dimension, generator=generator, dtype=torch.float64), dim=1)
        if (features @ features.T).sort(dim=1).values.diff(dim=1).min() > 3e-6:
            return features


def sign_features(seed: int, size: int) -> Tensor:
    """Rows of ±1/2 in four dimensions: unit vectors whose similarities and many ties are exact in binary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (size, 4), generator=generator).double() - 0.5


SHAPES = [
    # B, k, k1, k2
    (2, 1, 2, 2),
    (5, 5, 3, 2),
    (13, 4, 6, 3),
    (18, 10, 10, 2),
    (18, 7, 18, 18),
]
SWITCHES = list(itertools.product((True, False), (True, False)))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0, 0.5, 2.7])
@pytest.mark.parametrize(("size", "k", "k1", "k2"), SHAPES)
def test_conaff_returns_the_neighbors_of_the_oracle(size: int, k: int, k1: int, k2: int, alpha: float) -> None:
    features = random_features(size + k1, size, 6)
    for layers, (symmetrize, normalize) in itertools.product((0, 1, 2, 3), SWITCHES):
        affinity = slow_affinity(features.tolist(), k1, k2, alpha, layers, symmetrize, normalize)
        how = {"alpha": alpha, "layers": layers, "symmetrize": symmetrize, "normalize": normalize}
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
            neighbors = conaff(features.to(dtype), k, ConAff(k1, k2, **how))
            assert neighbors.shape == (size, k)
            assert neighbors.dtype == torch.int64
            assert_neighbors_are_the_most_affine(neighbors, affinity, tolerance)


def test_defaults_are_those_of_the_released_code() -> None:
    features = random_features(3, 20, 6)
    stated = ConAff(k1=10, k2=2, alpha=2.0, layers=2, symmetrize=True, normalize=True)
    assert ConAff() == stated
    assert torch.equal(conaff(features, 8, ConAff()), conaff(features, 8, stated))


@pytest.mark.parametrize("switch", ["symmetrize", "normalize"])
def test_each_switch_changes_the_neighbors(switch: str) -> None:
    features = random_features(1, 30, 6)
    assert not torch.equal(conaff(features, 10, ConAff(8, 4)), conaff(features, 10, ConAff(8, 4, **{switch: False})))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("symmetrize", "normalize"), SWITCHES)
def test_one_hot_features_full_of_ties_give_the_affinities_of_the_oracle(
    symmetrize: bool, normalize: bool, dtype: torch.dtype
) -> None:
    classes = torch.randint(0, 4, (20,), generator=torch.Generator().manual_seed(0))
    features = F.one_hot(classes).to(dtype)
    affinity = slow_affinity(features.tolist(), 8, 3, 2.0, 2, symmetrize, normalize)
    neighbors = conaff(features, 9, ConAff(8, 3, symmetrize=symmetrize, normalize=normalize))
    assert_neighbors_are_the_most_affine(neighbors, affinity, 1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(("symmetrize", "normalize"), SWITCHES)
def test_duplicated_rows_give_the_affinities_of_the_oracle(symmetrize: bool, normalize: bool) -> None:
    # Three copies of each row: k1 and k2 take whole groups, so that the sets are the same however ties fall.
    features = random_features(5, 6, 5).repeat(3, 1)
    affinity = slow_affinity(features.tolist(), 6, 3, 2.0, 2, symmetrize, normalize)
    neighbors = conaff(features, 8, ConAff(6, 3, symmetrize=symmetrize, normalize=normalize))
    assert_neighbors_are_the_most_affine(neighbors, affinity, 1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("symmetrize", [True, False])
def test_ties_in_exact_affinities_go_to_the_sample_itself_then_to_the_lower_index(symmetrize: bool, seed: int) -> None:
    features = sign_features(seed, 24)
    affinity = slow_affinity(features.tolist(), 7, 3, 2.0, 2, symmetrize, normalize=False)
    neighbors = conaff(features, 12, ConAff(7, 3, symmetrize=symmetrize, normalize=False))
    assert neighbors.tolist() == slow_conaff(affinity, 12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_k2_of_one_ranks_by_reciprocal_encodings_alone(dtype: torch.dtype, seed: int) -> None:
    features = sign_features(seed, 24)
    affinity = slow_affinity(features.tolist(), 7, 1, 2.0, 0, symmetrize=False, normalize=False)
    for layers in (0, 2):
        neighbors = conaff(features.to(dtype), 12, ConAff(7, 1, layers=layers))
        assert neighbors.tolist() == slow_conaff(affinity, 12)


@pytest.mark.parametrize("k2", [1, 2, 4])
def test_equal_samples_rank_themselves_first_and_the_others_by_index(k2: int) -> None:
    features = torch.full((4, 4), 0.5)
    expected = [[0, 1, 2, 3], [1, 0, 2, 3], [2, 0, 1, 3], [3, 0, 1, 2]]
    assert conaff(features, 4, ConAff(4, k2)).tolist() == expected
    assert conaff(features, 4, ConAff(4, k2, normalize=False)).tolist() == expected
    assert euclidean(features, 4).tolist() == expected


def test_k1_of_the_whole_batch_makes_everyone_equal_without_propagation() -> None:
    neighbors = conaff(random_features(2, 6, 4), 3, ConAff(6, 1))
    assert neighbors.tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 0, 1], [4, 0, 1], [5, 0, 1]]


def test_a_sample_without_direction_still_keeps_its_own_encoding() -> None:
    features = sign_features(1, 12)
    features[4] = 0
    affinity = slow_affinity(features.tolist(), 5, 3, 2.0, 1, symmetrize=True, normalize=False)
    neighbors = conaff(features, 6, ConAff(5, 3, layers=1, normalize=False))
    assert neighbors.tolist() == slow_conaff(affinity, 6)


def test_two_separate_groups_find_each_other() -> None:
    features = torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.2], [0.2, 1.0]])
    neighbors = conaff(F.normalize(features, dim=1), 3, ConAff(3, 2)).sort(dim=1).values
    assert neighbors.tolist() == [[0, 2, 4], [1, 3, 5]] * 3


@repeatable
@given(
    seed=st.integers(0, 10_000),
    order=st.permutations(range(10)),
    symmetrize=st.booleans(),
    normalize=st.booleans(),
)
def test_neighbors_follow_a_permutation_of_the_batch(
    seed: int, order: list[int], symmetrize: bool, normalize: bool
) -> None:
    features = random_features(seed, 10, 5)
    affinity = torch.tensor(slow_affinity(features.tolist(), 5, 3, 2.0, 2, symmetrize, normalize))
    permutation, how = torch.tensor(order), ConAff(5, 3, symmetrize=symmetrize, normalize=normalize)
    straight = conaff(features, 4, how)
    permuted = conaff(features[permutation], 4, how)
    named_as_before = torch.empty_like(straight)
    named_as_before[permutation] = permutation[permuted]
    # Ties may fall differently; affinities may not.
    torch.testing.assert_close(affinity.gather(1, named_as_before), affinity.gather(1, straight))


@repeatable
@given(seed=st.integers(0, 10_000), k1=st.integers(2, 12), k2=st.integers(2, 12), copies=st.integers(1, 4))
def test_first_neighbor_is_the_sample_itself_when_normalized(seed: int, k1: int, k2: int, copies: int) -> None:
    features = F.normalize(torch.randn(12, 5, generator=torch.Generator().manual_seed(seed)), dim=1)
    features = features[: 12 // copies].repeat(copies, 1)
    neighbors = conaff(features, 3, ConAff(k1, min(k1, k2)))
    assert neighbors[:, 0].tolist() == list(range(12))


def test_euclidean_neighbors_are_those_of_sorted_distances() -> None:
    features = random_features(8, 30, 6)
    distances = np.linalg.norm(features.numpy()[:, None] - features.numpy()[None], axis=2)
    expected = np.argsort(distances, axis=1, kind="stable")
    for k in (1, 7, 30):
        assert np.array_equal(euclidean(features, k).numpy(), expected[:, :k])
        assert np.array_equal(euclidean(features.float(), k).numpy(), expected[:, :k])


@repeatable
@given(seed=st.integers(0, 10_000), size=st.integers(1, 12), data=st.data())
def test_reciprocal_encoding_is_one_half_or_zero_by_mutual_ranking(seed: int, size: int, data: st.DataObject) -> None:
    k1 = data.draw(st.integers(1, size))
    ranking = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, :k1]
    encoding = reciprocal_encoding(ranking)
    assert torch.equal(encoding, encoding.T)
    ranks = [set(row) for row in ranking.tolist()]
    expected = [[((j in ranks[i]) + (i in ranks[j])) / 2 for j in range(size)] for i in range(size)]
    assert encoding.tolist() == expected
    assert set(encoding.unique().tolist()) <= {0.0, 0.5, 1.0}


@pytest.mark.parametrize("settings", [ConAff(7, 3), ConAff(7, 3, layers=0), ConAff(5, 2, alpha=0.5, normalize=False)])
def test_several_batches_in_one_call_have_the_neighbors_of_each(settings: ConAff) -> None:
    batches = torch.stack([random_features(seed, 20, 6) for seed in range(3)])
    assert torch.equal(conaff(batches, 4, settings), torch.stack([conaff(batch, 4, settings) for batch in batches]))
    assert torch.equal(euclidean(batches, 4), torch.stack([euclidean(batch, 4) for batch in batches]))


def test_several_large_batches_have_the_neighbors_of_each() -> None:
    batches = F.normalize(torch.randn(2, SPARSE_FROM, 4, generator=torch.Generator().manual_seed(0)), dim=2)
    assert torch.equal(conaff(batches, 4, ConAff()), torch.stack([conaff(batch, 4, ConAff()) for batch in batches]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, r"^k = 0 .*\(6\)$"),
        ({"k": 7}, r"^k = 7 .*\(6\)$"),
        ({"settings": ConAff(0, 2)}, r"^k1 = 0 .*\(6\)$"),
        ({"settings": ConAff(7, 2)}, r"^k1 = 7 .*\(6\)$"),
        ({"settings": ConAff(4, 0)}, r"^k2 = 0 .*k1 \(4\)$"),
        ({"settings": ConAff(4, 5)}, r"^k2 = 5 .*k1 \(4\)$"),
        ({"settings": ConAff(4, 2, layers=-1)}, r"^layers = -1 "),
        ({"settings": ConAff(4, 2, alpha=-0.5)}, r"^alpha = -0.5 "),
        ({"features": torch.zeros(6)}, r"^features .*\(6,\)"),
        ({"features": torch.zeros(0, 3)}, r"^features .*\(0, 3\)"),
    ],
)
def test_impossible_arguments_of_conaff_are_named(arguments: dict[str, object], message: str) -> None:
    possible = {"features": torch.eye(6), "k": 3, "settings": ConAff(4, 2)}
    with pytest.raises(ValueError, match=message):
        conaff(**(possible | arguments))


@pytest.mark.parametrize(
    ("features", "k", "message"),
    [
        (torch.eye(6), 0, "^k = 0 "),
        (torch.eye(6), 7, "^k = 7 "),
        (torch.zeros(6), 1, "^features "),
        (torch.zeros(0, 3), 1, "^features "),
    ],
)
def test_impossible_arguments_of_euclidean_are_named(features: Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        euclidean(features, k)
