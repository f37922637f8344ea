"""Compactness and confident samples against plain loops, and what happens when clusters are missing."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import small_spec
from torch import Tensor

from conr.losses.prototypes import membership
from conr.refinement.confidence import group_compactness, high_confidence

repeatable = settings(derandomize=True, deadline=None, max_examples=60)

SIZE, CLUSTERS, DIMENSION = 12, 5, 6
Vector = list[float]

# Of 5 clusters: all present; two absent; only one present.
LABELS = {
    "all": [0, 1, 2, 3, 4, 0, 0, 1, 3, 3, 3, 2],
    "some": [4, 1, 1, 1, 4, 4, 0, 1, 0, 1, 0, 4],
    "one": [3] * SIZE,
}
partitions = pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
label_lists = st.lists(st.integers(0, CLUSTERS - 1), min_size=2, max_size=SIZE)


def batch(seed: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Online and target features, unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    online, target = F.normalize(torch.randn(2, size, DIMENSION, generator=generator), dim=2)
    return online, target


def members_of(labels: list[int], counted: list[bool] | None = None) -> Tensor:
    return membership(torch.tensor(labels), CLUSTERS, None if counted is None else torch.tensor(counted))


# Loops


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(vector: Vector) -> Vector:
    return [x / math.hypot(*vector) for x in vector]


def slow_compactness(predictions: Tensor, target: Tensor, labels: list[int]) -> float:
    """The mean over clusters of the mean over all pairs of a cluster's members, a member with itself included."""
    rows, others = ([unit(row) for row in features.double().tolist()] for features in (predictions, target))
    means = []
    for cluster in set(labels):
        own = [i for i, label in enumerate(labels) if label == cluster]
        cosines = [dot(rows[i], others[j]) for i in own for j in own]
        means.append(sum(cosines) / len(cosines))
    return -sum(means) / len(means)


def slow_confidence(features: Tensor, labels: list[int], largest: int) -> list[bool]:
    """Every s in turn, the first of the best."""
    rows = [unit(row) for row in features.double().tolist()]
    size = len(rows)
    rankings = [sorted({*range(size)} - {i}, key=lambda j, i=i: -dot(rows[i], rows[j])) for i in range(size)]
    best, chosen = -1, [False] * size
    for s in range(1, min(largest, size - 1) + 1):
        confident = [all(labels[j] == labels[i] for j in rankings[i][:s]) for i in range(size)]
        if s * sum(confident) > best:
            best, chosen = s * sum(confident), confident
    return chosen


# Compactness


@partitions
def test_compactness_equals_its_loop_over_all_pairs(labels: list[int]) -> None:
    predictions, target = batch(4)
    loss = group_compactness(predictions, target, members_of(labels))
    assert loss.item() == pytest.approx(slow_compactness(predictions, target, labels), abs=1e-6)


@repeatable
@given(labels=label_lists, seed=st.integers(0, 100))
def test_compactness_equals_its_loop_for_any_labels_and_lies_in_its_range(labels: list[int], seed: int) -> None:
    predictions, target = batch(seed, len(labels))
    loss = group_compactness(predictions, target, members_of(labels)).item()
    assert loss == pytest.approx(slow_compactness(predictions, target, labels), abs=1e-5)
    assert -1 - 1e-6 <= loss <= 1 + 1e-6


def test_clusters_count_the_same_whatever_their_size() -> None:
    # One cluster of ten agrees, one of two opposes itself.
    rows = torch.full((SIZE, DIMENSION), DIMENSION**-0.5)
    opposed = torch.cat((rows[:10], -rows[10:]))
    assert group_compactness(rows, opposed, members_of([0] * 10 + [1] * 2)).item() == pytest.approx(0, abs=1e-6)


# Gradients of compactness, and symmetries


def test_without_members_the_loss_and_its_gradient_are_zero() -> None:
    online, target = batch(5)
    online.requires_grad_()
    result = group_compactness(online, target, members_of(LABELS["all"], [False] * SIZE))
    result.backward()
    assert result.item() == 0
    assert torch.equal(online.grad, torch.zeros_like(online))


@repeatable
@given(labels=label_lists, seed=st.integers(0, 100), data=st.data())
def test_gradients_are_finite_and_reach_counted_samples_only(labels: list[int], seed: int, data: st.DataObject) -> None:
    counted = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    online, target = batch(seed, len(labels))
    online.requires_grad_()
    group_compactness(online, target, members_of(labels, counted)).backward()
    assert torch.isfinite(online.grad).all()
    assert not online.grad[~torch.tensor(counted)].any()


def test_gradients_reach_every_sample_of_the_clusters() -> None:
    online, target = batch(6)
    online.requires_grad_()
    group_compactness(online, target, members_of(LABELS["some"])).backward()
    assert (online.grad.abs().sum(1) > 0).all()


def test_gradients_reach_the_online_network_and_none_the_target() -> None:
    model = small_spec().build(seed=0)
    first, second = torch.rand(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = model(first, second, torch.Generator())
    members = members_of([0, 1, 2, 0, 1, 2, 0, 1])
    group_compactness(outputs.unit_predictions[0], outputs.unit_targets[1], members).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.online.parameters())
    assert all(parameter.grad is None for parameter in model.target.parameters())


def test_the_order_of_the_batch_and_the_numbers_of_the_clusters_do_not_matter() -> None:
    online, target = batch(7)
    members = members_of(LABELS["some"])
    order, numbers = torch.randperm(SIZE, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0, 4, 2, 1])
    reordered = group_compactness(online[order], target[order], members[order][:, numbers])
    torch.testing.assert_close(reordered, group_compactness(online, target, members))


# High confidence


@repeatable
@given(
    labels=st.lists(st.integers(0, 2), min_size=2, max_size=SIZE),
    seed=st.integers(0, 1000),
    largest=st.integers(1, SIZE + 5),
)
def test_confident_samples_equal_their_loop(labels: list[int], seed: int, largest: int) -> None:
    features, _ = batch(seed, len(labels))
    found = high_confidence(features, torch.tensor(labels), largest)
    assert found.dtype == torch.bool
    assert found.tolist() == slow_confidence(features, labels, largest)


def circle(*degrees: float) -> Tensor:
    """Points on a circle: the nearest on it are the nearest by cosine."""
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def test_a_larger_number_with_as_much_evidence_gives_way_to_the_smaller() -> None:
    # n_1 = 4 (two close pairs) and n_2 = 2 (a close pair and a third of its label, which is nearer to the others).
    features, labels = circle(0, 3, 40, 50, 53, 160), torch.tensor([0, 0, 0, 1, 1, 2])
    counts = {}
    for s in (1, 2):
        rows = features @ features.T - 2 * torch.eye(6)
        nearest = rows.argsort(dim=1, descending=True)[:, :s]
        counts[s] = int((labels[nearest] == labels.unsqueeze(1)).all(1).sum())
    assert counts == {1: 4, 2: 2}
    expected = [True, True, False, True, True, False]
    assert high_confidence(features, labels, 1).tolist() == expected
    assert high_confidence(features, labels, 2).tolist() == expected
    assert slow_confidence(features, labels.tolist(), 2) == expected


def test_a_larger_number_wins_with_more_evidence() -> None:
    # Three of a kind, all confident at s = 2 (evidence 6); a pair that is confident at s = 1 only (evidence 5).
    features, labels = circle(0, 4, 9, 90, 95), torch.tensor([0, 0, 0, 1, 1])
    assert high_confidence(features, labels, 1).tolist() == [True] * 5
    assert high_confidence(features, labels, 2).tolist() == [True, True, True, False, False]


def test_no_sample_is_confident_when_every_nearest_neighbor_disagrees() -> None:
    assert not high_confidence(circle(0, 1, 50, 51), torch.tensor([0, 1, 0, 1]), 3).any()


def test_the_largest_number_is_bounded_by_the_batch() -> None:
    features, _ = batch(9)
    everyone = torch.zeros(SIZE, dtype=torch.int64)
    assert high_confidence(features, everyone, 10 * SIZE).all()
    labels = torch.tensor(LABELS["some"])
    expected = high_confidence(features, labels, SIZE - 1)
    assert torch.equal(high_confidence(features, labels, SIZE), expected)
    assert torch.equal(high_confidence(features, labels, 10 * SIZE), expected)


def test_confidence_takes_no_gradient() -> None:
    features, _ = batch(10)
    assert not high_confidence(features.requires_grad_(), torch.tensor(LABELS["some"]), 5).requires_grad
