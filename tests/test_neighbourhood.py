"""ConAff against an oracle of plain loops, and the order it promises among ties."""

import itertools
import math
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conr.neighbourhood import conaff, euclidean, reciprocal_encoding

Matrix = list[list[float]]

repeatable = settings(derandomize=True, deadline=None, max_examples=40)


def slow_affinity(
    features: Matrix, k1: int, k2: int, alpha: float, layers: int, symmetrise: bool, normalise: bool
) -> Matrix:
    """⟨h_i, h_j⟩ of Eq. 7 for every pair of samples, straight from Eq. 3-6."""
    everyone = range(len(features))
    unit = [scaled_to_one(row) for row in features]
    similarity = [[inner(unit[i], unit[j]) for j in everyone] for i in everyone]
    ranking = [sorted(everyone, key=lambda j, i=i: (j != i, -similarity[i][j], j))[:k1] for i in everyone]

    nodes = [[0.0 for _ in everyone] for _ in everyone]
    for i in everyone:
        for j in everyone:
            nodes[i][j] = ((j in ranking[i]) + (i in ranking[j])) / 2

    for _ in range(layers if k2 > 1 else 0):
        if symmetrise:
            nodes = [[nodes[i][j] + nodes[j][i] for j in everyone] for i in everyone]
        summed = []
        for i in everyone:
            row = list(nodes[i])
            for j in ranking[i][1:k2]:
                weight = edge_weight(similarity[i][j], alpha)
                row = [value + weight * other for value, other in zip(row, nodes[j], strict=True)]
            summed.append(row)
        nodes = [scaled_to_one(row) for row in summed] if normalise else summed
    return [[inner(nodes[i], nodes[j]) for j in everyone] for i in everyone]


def slow_conaff(affinity: Matrix, k: int) -> list[list[int]]:
    """Eq. 7: the k most affine samples, the sample itself first among equals, then the lower index."""
    everyone = range(len(affinity))
    return [sorted(everyone, key=lambda j, i=i: (-affinity[i][j], j != i, j))[:k] for i in everyone]


def edge_weight(similarity: float, alpha: float) -> float:
    if similarity < 0 and alpha != int(alpha):
        return 0.0
    return similarity**alpha


def inner(a: list[float], b: list[float]) -> float:
    return sum(map(operator.mul, a, b))


def scaled_to_one(row: list[float]) -> list[float]:
    length = math.sqrt(inner(row, row))
    return [value / length for value in row] if length > 0 else row


def assert_neighbours_are_the_most_affine(neighbours: Tensor, affinity: Matrix, tolerance: float) -> None:
    largest = max(abs(value) for row in affinity for value in row)
    for found, row in zip(neighbours.tolist(), affinity, strict=True):
        assert len(set(found)) == len(found)
        best = sorted(row, reverse=True)[: len(found)]
        assert [row[j] for j in found] == pytest.approx(best, rel=0, abs=tolerance * largest)


def random_features(seed: int, size: int, dimension: int) -> Tensor:
    """Features that float32 holds exactly, with no two similarities of a row so close that rounding swaps them."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        features = torch.randn(size, dimension, generator=generator, dtype=torch.float32).double()
        unit = F.normalize(features, dim=1)
        if (unit @ unit.T).sort(dim=1).values.diff(dim=1).min() > 3e-6:
            return features


def sign_features(seed: int, size: int) -> Tensor:
    """Rows of ±1 in four dimensions: lengths, similarities and many ties are exact in binary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (size, 4), generator=generator).double() * 2 - 1


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
def test_conaff_returns_the_neighbours_of_the_oracle(size: int, k: int, k1: int, k2: int, alpha: float) -> None:
    features = random_features(size + k1, size, 6)
    for layers, (symmetrise, normalise) in itertools.product((0, 1, 2, 3), SWITCHES):
        affinity = slow_affinity(features.tolist(), k1, k2, alpha, layers, symmetrise, normalise)
        how = {"alpha": alpha, "layers": layers, "symmetrise": symmetrise, "normalise": normalise}
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
            neighbours = conaff(features.to(dtype), k, k1, k2, **how)
            assert neighbours.shape == (size, k)
            assert neighbours.dtype == torch.int64
            assert_neighbours_are_the_most_affine(neighbours, affinity, tolerance)


def test_defaults_are_those_of_the_released_code() -> None:
    features = random_features(3, 20, 6)
    stated = conaff(features, 8, 6, 3, alpha=2.0, layers=2, symmetrise=True, normalise=True)
    assert torch.equal(conaff(features, 8, 6, 3), stated)


@pytest.mark.parametrize("switch", ["symmetrise", "normalise"])
def test_each_switch_changes_the_neighbours(switch: str) -> None:
    features = random_features(1, 30, 6)
    assert not torch.equal(conaff(features, 10, 8, 4), conaff(features, 10, 8, 4, **{switch: False}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("symmetrise", "normalise"), SWITCHES)
def test_one_hot_features_full_of_ties_give_the_affinities_of_the_oracle(
    symmetrise: bool, normalise: bool, dtype: torch.dtype
) -> None:
    classes = torch.randint(0, 4, (20,), generator=torch.Generator().manual_seed(0))
    features = F.one_hot(classes).to(dtype)
    affinity = slow_affinity(features.tolist(), 8, 3, 2.0, 2, symmetrise, normalise)
    neighbours = conaff(features, 9, 8, 3, symmetrise=symmetrise, normalise=normalise)
    assert_neighbours_are_the_most_affine(neighbours, affinity, 1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(("symmetrise", "normalise"), SWITCHES)
def test_duplicated_rows_give_the_affinities_of_the_oracle(symmetrise: bool, normalise: bool) -> None:
    # Three copies of each row: k1 and k2 take whole groups, so that the sets are the same however ties fall.
    features = random_features(5, 6, 5).repeat(3, 1)
    affinity = slow_affinity(features.tolist(), 6, 3, 2.0, 2, symmetrise, normalise)
    neighbours = conaff(features, 8, 6, 3, symmetrise=symmetrise, normalise=normalise)
    assert_neighbours_are_the_most_affine(neighbours, affinity, 1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("symmetrise", [True, False])
def test_ties_in_exact_affinities_go_to_the_sample_itself_then_to_the_lower_index(symmetrise: bool, seed: int) -> None:
    features = sign_features(seed, 24)
    affinity = slow_affinity(features.tolist(), 7, 3, 2.0, 2, symmetrise, normalise=False)
    neighbours = conaff(features, 12, 7, 3, symmetrise=symmetrise, normalise=False)
    assert neighbours.tolist() == slow_conaff(affinity, 12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_k2_of_one_ranks_by_reciprocal_encodings_alone(dtype: torch.dtype, seed: int) -> None:
    features = sign_features(seed, 24)
    affinity = slow_affinity(features.tolist(), 7, 1, 2.0, 0, symmetrise=False, normalise=False)
    for layers in (0, 2):
        neighbours = conaff(features.to(dtype), 12, 7, 1, layers=layers)
        assert neighbours.tolist() == slow_conaff(affinity, 12)


@pytest.mark.parametrize("k2", [1, 2, 4])
def test_equal_samples_rank_themselves_first_and_the_others_by_index(k2: int) -> None:
    features = torch.ones(4, 4)
    expected = [[0, 1, 2, 3], [1, 0, 2, 3], [2, 0, 1, 3], [3, 0, 1, 2]]
    assert conaff(features, 4, 4, k2).tolist() == expected
    assert conaff(features, 4, 4, k2, normalise=False).tolist() == expected
    assert euclidean(features, 4).tolist() == expected


def test_k1_of_the_whole_batch_makes_everyone_equal_without_propagation() -> None:
    neighbours = conaff(random_features(2, 6, 4), 3, 6, 1)
    assert neighbours.tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 0, 1], [4, 0, 1], [5, 0, 1]]


def test_a_sample_without_direction_still_keeps_its_own_encoding() -> None:
    features = sign_features(1, 12)
    features[4] = 0
    affinity = slow_affinity(features.tolist(), 5, 3, 2.0, 1, symmetrise=True, normalise=False)
    neighbours = conaff(features, 6, 5, 3, layers=1, normalise=False)
    assert neighbours.tolist() == slow_conaff(affinity, 6)


def test_two_separate_groups_find_each_other() -> None:
    features = torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.2], [0.2, 1.0]])
    neighbours = conaff(features, 3, 3, 2).sort(dim=1).values
    assert neighbours.tolist() == [[0, 2, 4], [1, 3, 5]] * 3


def test_lengths_of_features_do_not_matter() -> None:
    features = random_features(4, 20, 6)
    lengths = 2.0 ** torch.randint(-3, 4, (20, 1), generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(conaff(features * lengths, 8, 6, 3), conaff(features, 8, 6, 3))


def test_half_precision_features_are_ranked_in_float32() -> None:
    features = random_features(4, 20, 6).bfloat16()
    assert torch.equal(conaff(features, 8, 6, 3), conaff(features.float(), 8, 6, 3))


@repeatable
@given(
    seed=st.integers(0, 10_000),
    order=st.permutations(range(10)),
    symmetrise=st.booleans(),
    normalise=st.booleans(),
)
def test_neighbours_follow_a_permutation_of_the_batch(
    seed: int, order: list[int], symmetrise: bool, normalise: bool
) -> None:
    features = random_features(seed, 10, 5)
    affinity = torch.tensor(slow_affinity(features.tolist(), 5, 3, 2.0, 2, symmetrise, normalise))
    permutation = torch.tensor(order)
    straight = conaff(features, 4, 5, 3, symmetrise=symmetrise, normalise=normalise)
    permuted = conaff(features[permutation], 4, 5, 3, symmetrise=symmetrise, normalise=normalise)
    named_as_before = torch.empty_like(straight)
    named_as_before[permutation] = permutation[permuted]
    # Ties may fall differently; affinities may not.
    torch.testing.assert_close(affinity.gather(1, named_as_before), affinity.gather(1, straight))


@repeatable
@given(seed=st.integers(0, 10_000), k1=st.integers(2, 12), k2=st.integers(2, 12), copies=st.integers(1, 4))
def test_first_neighbour_is_the_sample_itself_when_normalised(seed: int, k1: int, k2: int, copies: int) -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
    features = features[: 12 // copies].repeat(copies, 1)
    neighbours = conaff(features, 3, k1, min(k1, k2))
    assert neighbours[:, 0].tolist() == list(range(12))


def test_euclidean_neighbours_are_those_of_sorted_distances() -> None:
    features = random_features(8, 30, 6)
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    distances = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    expected = np.argsort(distances, axis=1, kind="stable")
    for k in (1, 7, 30):
        assert np.array_equal(euclidean(features, k).numpy(), expected[:, :k])
        assert np.array_equal(euclidean(features.float() * 5, k).numpy(), expected[:, :k])


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, r"^k = 0 must lie between 1 and the batch size \(6\)"),
        ({"k": 7}, r"^k = 7 must lie between 1 and the batch size \(6\)"),
        ({"k1": 0}, r"^k1 = 0 "),
        ({"k1": 7}, r"^k1 = 7 must lie between 1 and the batch size \(6\)"),
        ({"k2": 0}, r"^k2 = 0 "),
        ({"k2": 5}, r"^k2 = 5 must lie between 1 and k1 \(4\)"),
        ({"layers": -1}, r"^layers = -1 "),
        ({"alpha": -0.5}, r"^alpha = -0.5 "),
        ({"features": torch.zeros(6)}, r"^features .*\(6,\)"),
        ({"features": torch.zeros(0, 3)}, r"^features .*\(0, 3\)"),
    ],
)
def test_impossible_arguments_of_conaff_are_named(arguments: dict[str, object], message: str) -> None:
    possible = {"features": torch.eye(6), "k": 3, "k1": 4, "k2": 2}
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
