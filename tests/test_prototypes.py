"""Prototypes, compactness and confident samples against plain loops, and what happens when clusters are missing."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conr.prototypes import group_compactness, high_confidence, membership, prototype_scattering, prototypes
from conr.training.model import build

repeatable = settings(derandomize=True, deadline=None, max_examples=60)

SIZE, CLUSTERS, DIMENSION, TEMPERATURE = 12, 5, 6, 0.5
Vector = list[float]

# Of 5 clusters: all present; two absent; one alone present.
LABELS = {
    "all": [0, 1, 2, 3, 4, 0, 0, 1, 3, 3, 3, 2],
    "some": [4, 1, 1, 1, 4, 4, 0, 1, 0, 1, 0, 4],
    "one": [3] * SIZE,
}
partitions = pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
label_lists = st.lists(st.integers(0, CLUSTERS - 1), min_size=2, max_size=SIZE)


def batch(seed: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Online and target features of many lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.rand(2, size, 1, generator=generator) * 5 + 0.1
    online, target = torch.randn(2, size, DIMENSION, generator=generator) * lengths
    return online, target


def members_of(labels: list[int], counted: list[bool] | None = None) -> Tensor:
    return membership(torch.tensor(labels), CLUSTERS, None if counted is None else torch.tensor(counted))


# Loops


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(vector: Vector) -> Vector:
    return [x / math.hypot(*vector) for x in vector]


def slow_prototypes(features: Tensor, labels: list[int]) -> dict[int, Vector]:
    """Of each cluster that is present."""
    rows = [unit(row) for row in features.double().tolist()]
    found = {}
    for cluster in sorted(set(labels)):
        own = [row for row, label in zip(rows, labels, strict=True) if label == cluster]
        found[cluster] = unit([sum(column) / len(own) for column in zip(*own, strict=True)])
    return found


def slow_scattering(online: Tensor, target: Tensor, labels: list[int], temperature: float) -> float:
    ours, theirs = slow_prototypes(online, labels), slow_prototypes(target, labels)
    losses = []
    for k in ours:
        own = math.exp(dot(ours[k], theirs[k]) / temperature)
        others = sum(math.exp(dot(ours[k], ours[j]) / temperature) for j in ours if j != k)
        losses.append(-math.log(own / (own + others)))
    return sum(losses) / len(losses)


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


# Membership


def test_membership_marks_the_cluster_of_every_sample() -> None:
    assert membership(torch.tensor([2, 0, 2]), 3).tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]


def test_samples_that_are_not_counted_belong_nowhere() -> None:
    counted = torch.tensor([True, False, False])
    assert membership(torch.tensor([2, 0, 2]), 3, counted).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


# Prototypes


@partitions
def test_prototypes_equal_their_loop_and_are_zero_for_absent_clusters(labels: list[int]) -> None:
    features, _ = batch(0)
    found = prototypes(features, members_of(labels))
    expected = slow_prototypes(features, labels)
    for cluster in range(CLUSTERS):
        assert found[cluster].tolist() == pytest.approx(expected.get(cluster, [0.0] * DIMENSION), abs=1e-6)


@repeatable
@given(labels=label_lists, seed=st.integers(0, 100))
def test_a_prototype_is_a_unit_vector_or_zero(labels: list[int], seed: int) -> None:
    lengths = prototypes(batch(seed, len(labels))[0], members_of(labels)).norm(dim=1)
    expected = [float(cluster in labels) for cluster in range(CLUSTERS)]
    assert lengths.tolist() == pytest.approx(expected, abs=1e-5)


# Prototype scattering


@partitions
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_scattering_equals_its_loop(labels: list[int], temperature: float) -> None:
    online, target = batch(1)
    loss = prototype_scattering(online, target, members_of(labels), temperature)
    assert loss.item() == pytest.approx(slow_scattering(online, target, labels, temperature), abs=1e-5)


@repeatable
@given(labels=label_lists, seed=st.integers(0, 100), temperature=st.floats(0.05, 5))
def test_scattering_equals_its_loop_for_any_labels(labels: list[int], seed: int, temperature: float) -> None:
    online, target = batch(seed, len(labels))
    loss = prototype_scattering(online, target, members_of(labels), temperature)
    assert loss.item() == pytest.approx(slow_scattering(online, target, labels, temperature), abs=1e-4)


def test_scattering_of_a_single_cluster_is_zero_since_there_is_nothing_to_keep_apart() -> None:
    online, target = batch(2)
    online.requires_grad_()
    loss = prototype_scattering(online, target, members_of(LABELS["one"]), TEMPERATURE)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(online.grad, torch.zeros_like(online), rtol=0, atol=1e-6)


def test_scattering_of_samples_that_are_not_counted_is_that_without_them() -> None:
    online, target = batch(3)
    labels, counted = LABELS["all"], [i % 3 > 0 for i in range(SIZE)]
    kept = torch.tensor(counted)
    loss = prototype_scattering(online, target, members_of(labels, counted), TEMPERATURE)
    rest = [label for label, yes in zip(labels, counted, strict=True) if yes]
    assert loss.item() == pytest.approx(slow_scattering(online[kept], target[kept], rest, TEMPERATURE), abs=1e-5)


def test_scattering_falls_when_prototypes_agree_and_when_others_keep_apart() -> None:
    labels = [0, 1]
    members, east, north = members_of(labels), [1.0, 0.0], [0.0, 1.0]
    apart, close = torch.tensor([east, north]), torch.tensor([east, [0.9, 0.1]])
    agreeing = prototype_scattering(apart, apart, members, TEMPERATURE)
    assert agreeing < prototype_scattering(apart, apart.flip(0), members, TEMPERATURE)
    assert agreeing < prototype_scattering(close, close, members, TEMPERATURE)


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
    rows = torch.ones(SIZE, DIMENSION)
    opposed = torch.cat((rows[:10], -rows[10:]))
    assert group_compactness(rows, opposed, members_of([0] * 10 + [1] * 2)).item() == pytest.approx(0, abs=1e-6)


# Both losses

BOTH = pytest.mark.parametrize("loss", ["scattering", "compactness"])


def value(loss: str, online: Tensor, target: Tensor, members: Tensor) -> Tensor:
    if loss == "scattering":
        return prototype_scattering(online, target, members, TEMPERATURE)
    return group_compactness(online, target, members)


@BOTH
def test_without_members_the_loss_and_its_gradient_are_zero(loss: str) -> None:
    online, target = batch(5)
    online.requires_grad_()
    result = value(loss, online, target, members_of(LABELS["all"], [False] * SIZE))
    result.backward()
    assert result.item() == 0
    assert torch.equal(online.grad, torch.zeros_like(online))


@BOTH
@repeatable
@given(labels=label_lists, seed=st.integers(0, 100), data=st.data())
def test_gradients_are_finite_and_reach_counted_samples_only(
    loss: str, labels: list[int], seed: int, data: st.DataObject
) -> None:
    counted = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    online, target = batch(seed, len(labels))
    online.requires_grad_()
    value(loss, online, target, members_of(labels, counted)).backward()
    assert torch.isfinite(online.grad).all()
    assert not online.grad[~torch.tensor(counted)].any()


@BOTH
def test_gradients_reach_every_sample_of_the_clusters(loss: str) -> None:
    online, target = batch(6)
    online.requires_grad_()
    value(loss, online, target, members_of(LABELS["some"])).backward()
    assert (online.grad.abs().sum(1) > 0).all()


@BOTH
def test_gradients_reach_the_online_network_and_none_the_target(loss: str) -> None:
    torch.manual_seed(0)
    description: dict[str, Any] = {"architecture": "resnet18", "width": 4, "stem": "cifar", "hidden": 16}
    description |= {"dimension": 8, "bn_group": 0, "predictor_deviation": 0.01, "framework": "byol"}
    model = build(description | {"mean": [0.5] * 3, "std": [0.25] * 3})
    outputs = model(torch.rand(8, 3, 8, 8), torch.rand(8, 3, 8, 8), torch.Generator())
    members = members_of([0, 1, 2, 0, 1, 2, 0, 1])
    value(loss, outputs.projections[0], outputs.targets[1], members).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.online.parameters())
    assert all(parameter.grad is None for parameter in model.target.parameters())


@BOTH
@repeatable
@given(
    labels=label_lists,
    seed=st.integers(0, 100),
    scales=st.lists(st.floats(1e-3, 1e3), min_size=2 * SIZE, max_size=2 * SIZE),
)
def test_the_length_of_a_feature_does_not_matter(loss: str, labels: list[int], seed: int, scales: list[float]) -> None:
    size = len(labels)
    online, target = batch(seed, size)
    members = members_of(labels)
    ours, theirs = torch.tensor(scales[:size]).unsqueeze(1), torch.tensor(scales[-size:]).unsqueeze(1)
    scaled = value(loss, online * ours, target * theirs, members)
    torch.testing.assert_close(scaled, value(loss, online, target, members), rtol=0, atol=1e-4)


@BOTH
def test_the_order_of_the_batch_and_the_numbers_of_the_clusters_do_not_matter(loss: str) -> None:
    online, target = batch(7)
    members = members_of(LABELS["some"])
    order, numbers = torch.randperm(SIZE, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0, 4, 2, 1])
    reordered = value(loss, online[order], target[order], members[order][:, numbers])
    torch.testing.assert_close(reordered, value(loss, online, target, members))


@BOTH
def test_bfloat16_features_are_compared_in_float32(loss: str) -> None:
    online, target = (features.bfloat16() for features in batch(8))
    members = members_of(LABELS["all"])
    result = value(loss, online, target, members)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, value(loss, online.float(), target.float(), members))


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


def test_no_sample_is_confident_when_every_nearest_neighbour_disagrees() -> None:
    assert not high_confidence(circle(0, 1, 50, 51), torch.tensor([0, 1, 0, 1]), 3).any()


def test_the_largest_number_is_bounded_by_the_batch() -> None:
    features, _ = batch(9)
    everyone = torch.zeros(SIZE, dtype=torch.int64)
    assert high_confidence(features, everyone, 10 * SIZE).all()
    labels = torch.tensor(LABELS["some"])
    expected = high_confidence(features, labels, SIZE - 1)
    assert torch.equal(high_confidence(features, labels, SIZE), expected)
    assert torch.equal(high_confidence(features, labels, 10 * SIZE), expected)


def test_confidence_takes_no_gradient_and_no_notice_of_length() -> None:
    features, _ = batch(10)
    labels, scale = torch.tensor(LABELS["some"]), torch.arange(1.0, SIZE + 1).unsqueeze(1)
    found = high_confidence(features.requires_grad_(), labels, 5)
    assert not found.requires_grad
    assert torch.equal(high_confidence(features * scale, labels, 5), found)
