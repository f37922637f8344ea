"""Instance concordance against its loop, where its gradient flows, and that it can be minimized."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_networks import small_spec
from torch import Tensor

from conr.losses.concordance import instance_concordance, symmetrized

SIZE, DIMENSION = 12, 6


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def slow_instance(predictions: Tensor, targets: Tensor) -> float:
    pairs = zip(predictions.tolist(), targets.tolist(), strict=True)
    return -sum(cosine(prediction, target) for prediction, target in pairs) / len(predictions)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """Unit predictions and targets."""
    generator = torch.Generator().manual_seed(seed)
    predictions, targets = F.normalize(torch.randn(2, SIZE, DIMENSION, generator=generator), dim=2)
    return predictions, targets


@pytest.mark.parametrize("seed", range(3))
def test_instance_concordance_equals_its_loop(seed: int) -> None:
    predictions, targets = batch(seed)
    loss = instance_concordance(predictions, targets)
    assert loss.item() == pytest.approx(slow_instance(predictions, targets), abs=1e-6)


def test_perfect_agreement_is_minus_one_and_opposition_one() -> None:
    predictions, _ = batch(0)
    assert instance_concordance(predictions, predictions).item() == pytest.approx(-1, abs=1e-6)
    assert instance_concordance(predictions, -predictions).item() == pytest.approx(1, abs=1e-6)


def test_symmetrized_is_the_sum_of_both_directions() -> None:
    first, second = batch(0)
    third, fourth = batch(1)
    loss = symmetrized(instance_concordance, (first, second), (third, fourth))
    expected = slow_instance(first, fourth) + slow_instance(second, third)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_every_sample_counts_the_same_in_the_gradient() -> None:
    predictions, targets = batch(2)
    predictions.requires_grad_()
    instance_concordance(predictions, targets).backward()
    torch.testing.assert_close(predictions.grad, -targets / SIZE)


def test_the_loss_falls_under_gradient_descent() -> None:
    model = small_spec().build(seed=0)
    first, second = torch.rand(2, SIZE, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([*model.online.parameters(), *model.predictor.parameters()], lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        outputs = model(first, second, torch.Generator())
        loss = symmetrized(instance_concordance, outputs.unit_predictions, outputs.unit_targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        (torch.zeros(12, 6), torch.zeros(12, 5), r"^predictions and targets .*\(12, 6\) and \(12, 5\)"),
        (torch.zeros(12), torch.zeros(12), r"^predictions and targets .*\(12,\)"),
        (torch.zeros(12, 6).long(), torch.zeros(12, 6).long(), "^predictions .* torch.int64"),
    ],
)
def test_impossible_arguments_are_named(predictions: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instance_concordance(predictions, targets)
