"""Prototypes and the loss that scatters them against plain loops, and what happens when clusters are missing."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import small_spec
from torch import Tensor

from conr.losses.prototypes import membership, prototype_scattering, prototypes

repeatable = settings(derandomize=True, deadline=None, max_examples=60)

SIZE, CLUSTERS, DIMENSION, TEMPERATURE = 12, 5, 6, 0.5
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


# Gradients and symmetries


def value(online: Tensor, target: Tensor, members: Tensor) -> Tensor:
    return prototype_scattering(online, target, members, TEMPERATURE)


def test_without_members_the_loss_and_its_gradient_are_zero() -> None:
    online, target = batch(5)
    online.requires_grad_()
    result = value(online, target, members_of(LABELS["all"], [False] * SIZE))
    result.backward()
    assert result.item() == 0
    assert torch.equal(online.grad, torch.zeros_like(online))


@repeatable
@given(labels=label_lists, seed=st.integers(0, 100), data=st.data())
def test_gradients_are_finite_and_reach_counted_samples_only(labels: list[int], seed: int, data: st.DataObject) -> None:
    counted = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    online, target = batch(seed, len(labels))
    online.requires_grad_()
    value(online, target, members_of(labels, counted)).backward()
    assert torch.isfinite(online.grad).all()
    assert not online.grad[~torch.tensor(counted)].any()


def test_gradients_reach_every_sample_of_the_clusters() -> None:
    online, target = batch(6)
    online.requires_grad_()
    value(online, target, members_of(LABELS["some"])).backward()
    assert (online.grad.abs().sum(1) > 0).all()


def test_gradients_reach_the_online_network_and_none_the_target() -> None:
    model = small_spec().build(seed=0)
    first, second = torch.rand(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = model(first, second, torch.Generator())
    members = members_of([0, 1, 2, 0, 1, 2, 0, 1])
    value(outputs.unit_projections[0], outputs.unit_targets[1], members).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.online.parameters())
    assert all(parameter.grad is None for parameter in model.target.parameters())


def test_the_order_of_the_batch_and_the_numbers_of_the_clusters_do_not_matter() -> None:
    online, target = batch(7)
    members = members_of(LABELS["some"])
    order, numbers = torch.randperm(SIZE, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0, 4, 2, 1])
    reordered = value(online[order], target[order], members[order][:, numbers])
    torch.testing.assert_close(reordered, value(online, target, members))
