"""Boundary ratios against hand-computed cases and plain loops; the number of candidates and its schedule."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conr.neighbors.boundary import boundary_ratio, candidates, lowest, relaxed_fraction

repeatable = settings(derandomize=True, deadline=None, max_examples=100)


def slow_ratio(features: Tensor, pseudo_labels: Tensor, centroids: Tensor) -> list[float]:
    ratios = []
    for feature, own in zip(features.tolist(), pseudo_labels.tolist(), strict=True):
        distances = [math.dist(feature, centroid) for centroid in centroids.tolist()]
        intra = distances[own]
        other = min(distance for cluster, distance in enumerate(distances) if cluster != own)
        ratios.append(1 - (other - intra) / max(intra, other))
    return ratios


@pytest.mark.parametrize(
    ("feature", "label", "expected"),
    [
        ((0.0, 0.0), 0, 0.0),  # on its own centroid
        ((2.0, 0.0), 0, 1.0),  # half-way
        ((4.0, 0.0), 0, 2.0),  # on the other's
        ((4.0, 0.0), 1, 0.0),
        ((1.0, 0.0), 0, 1 / 3),  # 1 − (3 − 1)/3
        ((3.0, 0.0), 0, 5 / 3),  # its pseudo label is not the nearest: 1 − (1 − 3)/3
        ((2.0, 7.0), 1, 1.0),  # anywhere on the perpendicular bisector
    ],
)
def test_ratio_between_two_centroids(feature: tuple[float, float], label: int, expected: float) -> None:
    centroids = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    ratio = boundary_ratio(torch.tensor([feature]), torch.tensor([label]), centroids)
    assert ratio.tolist() == pytest.approx([expected], abs=1e-6)


def test_nearest_other_centroid_counts_among_three() -> None:
    centroids = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 3.0]])
    ratio = boundary_ratio(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]), centroids)
    far = math.hypot(100, 1)
    assert ratio.tolist() == pytest.approx([1 - (2 - 1) / 2, 1 - (1 - far) / far], abs=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("clusters", [2, 3, 10])
def test_ratio_equals_plain_loops_over_eq_9_to_11(clusters: int, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(clusters)
    features = torch.randn(40, 5, generator=generator).to(dtype)
    centroids = torch.randn(clusters, 5, generator=generator).to(dtype)
    labels = torch.randint(0, clusters, (40,), generator=generator)
    ratio = boundary_ratio(features, labels, centroids)
    assert ratio.dtype == dtype
    assert ratio.tolist() == pytest.approx(slow_ratio(features, labels, centroids), abs=tolerance)


def test_half_precision_features_give_float32_ratios() -> None:
    features = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    ratio = boundary_ratio(features, torch.tensor([0]), torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    assert ratio.dtype == torch.float32
    assert ratio.tolist() == pytest.approx([1 / 3], abs=1e-6)


@repeatable
@given(seed=st.integers(0, 10_000), clusters=st.integers(2, 6), scale=st.floats(1e-3, 1e3))
def test_ratio_lies_between_zero_and_two(seed: int, clusters: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(20, 4, generator=generator) * scale
    centroids = torch.cat((torch.randn(clusters - 1, 4, generator=generator) * scale, features[:1]))
    ratio = boundary_ratio(features, torch.randint(0, clusters, (20,), generator=generator), centroids)
    assert ratio.min() >= 0
    assert ratio.max() <= 2


def test_coinciding_centroids_put_a_sample_on_the_boundary() -> None:
    centroids = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    ratio = boundary_ratio(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), centroids)
    assert ratio.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": torch.zeros(4)}, "^features "),
        ({"centroids": torch.zeros(2, 3)}, r"^centroids .*\(2, 3\)"),
        ({"centroids": torch.zeros(2)}, "^centroids "),
        ({"centroids": torch.zeros(1, 2)}, "^centroids "),
        ({"pseudo_labels": torch.zeros(3, dtype=torch.int64)}, r"^pseudo_labels .*\(4,\), got \(3,\)"),
        ({"pseudo_labels": torch.tensor([0, 1, 2, 0])}, "^pseudo_labels .* 0 and 1"),
        ({"pseudo_labels": torch.tensor([0, 1, -1, 0])}, "^pseudo_labels .* 0 and 1"),
    ],
)
def test_impossible_arguments_of_boundary_ratio_are_named(arguments: dict[str, Tensor], message: str) -> None:
    possible = {
        "features": torch.zeros(4, 2),
        "pseudo_labels": torch.tensor([0, 1, 1, 0]),
        "centroids": torch.eye(2),
    }
    with pytest.raises(ValueError, match=message):
        boundary_ratio(**(possible | arguments))


def test_several_batches_in_one_call_keep_the_candidates_of_each() -> None:
    ratios = torch.tensor([[0.9, 0.1, 0.5, 0.3, 1.7], [0.2, 0.2, 0.2, 0.1, 0.2]])
    for count in (3, torch.tensor(3)):
        assert torch.equal(lowest(ratios, count), torch.stack([lowest(ratio, count) for ratio in ratios]))
    assert lowest(ratios, 3).tolist()[1] == [True, True, False, True, False]


def test_candidates_are_the_samples_with_the_smallest_ratios() -> None:
    ratio = torch.tensor([0.9, 0.1, 0.5, 0.3, 1.7])
    assert candidates(ratio, 0.6).tolist() == [False, True, True, True, False]
    assert candidates(ratio, 0.41).tolist() == [False, True, True, True, False]
    assert candidates(ratio, 0.4).tolist() == [False, True, False, True, False]


def test_equal_ratios_are_settled_by_the_lower_index() -> None:
    assert candidates(torch.full((5,), 0.5), 0.5).tolist() == [True, True, True, False, False]
    assert candidates(torch.tensor([0.5, 0.2, 0.5, 0.5]), 0.5).tolist() == [True, True, False, False]


def test_fraction_one_keeps_everyone() -> None:
    ratio = torch.rand(257, generator=torch.Generator().manual_seed(0))
    assert candidates(ratio, 1.0).all()


@repeatable
@given(size=st.integers(1, 300), thousandths=st.integers(1, 1000), seed=st.integers(0, 10_000))
def test_exactly_the_fraction_rounded_up_is_kept(size: int, thousandths: int, seed: int) -> None:
    ratio = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    expected = math.ceil(Fraction(thousandths, 1000) * size)
    assert candidates(ratio, thousandths / 1000).sum().item() == expected


@pytest.mark.parametrize(("fraction", "size", "kept"), [(0.55, 100, 55), (0.07, 100, 7), (0.1, 10, 1)])
def test_rounding_of_the_product_keeps_no_extra_sample(fraction: float, size: int, kept: int) -> None:
    assert candidates(torch.zeros(size), fraction).sum().item() == kept


@repeatable
@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5]), min_size=1, max_size=30),
    fractions=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
)
def test_a_larger_fraction_keeps_all_that_a_smaller_one_keeps(
    values: list[float], fractions: tuple[float, float]
) -> None:
    ratio = torch.tensor(values)
    few, many = candidates(ratio, min(fractions)), candidates(ratio, max(fractions))
    assert (few & ~many).sum().item() == 0
    assert few.any()


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, math.nan])
def test_a_fraction_outside_zero_to_one_is_an_error(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"^fraction = "):
        candidates(torch.zeros(3), fraction)


def test_ratios_that_are_no_vector_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^ratio .*\(3, 2\)"):
        candidates(torch.zeros(3, 2), 0.5)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(800, 0.8), (850, 0.85), (900, 0.9), (1000, 1.0), (1001, 1.0), (5000, 1.0)]
)
def test_fraction_grows_linearly_and_stays_at_one(epoch: int, expected: float) -> None:
    assert relaxed_fraction(0.8, epoch, 800, 1000) == pytest.approx(expected, abs=1e-12)


@repeatable
@given(start=st.floats(0.01, 1), first=st.integers(0, 500), length=st.integers(1, 500))
def test_fraction_begins_at_the_start_and_ends_at_exactly_one(start: float, first: int, length: int) -> None:
    values = [relaxed_fraction(start, first + t, first, first + length) for t in range(length + 2)]
    assert values[0] == start
    assert values[-2:] == [1.0, 1.0]
    assert values == sorted(values)


@repeatable
@given(
    start=st.floats(0.01, 1),
    shift=st.integers(0, 900),
    stretch=st.integers(1, 20),
    length=st.integers(1, 50),
    data=st.data(),
)
def test_fraction_depends_on_the_share_of_the_way_alone(
    start: float, shift: int, stretch: int, length: int, data: st.DataObject
) -> None:
    done = data.draw(st.integers(0, length))
    here = relaxed_fraction(start, done, 0, length)
    there = relaxed_fraction(start, shift + done * stretch, shift, shift + length * stretch)
    assert there == here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 5, 0, 10), "^start = 0"),
        ((1.5, 5, 0, 10), "^start = 1.5"),
        ((0.8, 5, 5, 5), "^last = 5 .* first = 5"),
        ((0.8, 5, 6, 5), "^last = 5 .* first = 6"),
        ((0.8, 4, 5, 10), "^epoch = 4 .* first = 5"),
    ],
)
def test_impossible_arguments_of_relaxed_fraction_are_named(
    arguments: tuple[float, int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        relaxed_fraction(*arguments)
