"""The losses against plain loops, where their gradients flow, and that they can be minimised."""

import math

import pytest
import torch
from torch import Tensor

from conr.objectives import group_concordance, instance_concordance, symmetrised
from conr.training.model import build

SIZE, NEIGHBOURS, DIMENSION = 12, 4, 6
DESCRIPTION = {
    "architecture": "resnet18",
    "width": 4,
    "stem": "cifar",
    "hidden": 16,
    "dimension": 8,
    "bn_group": 0,
    "predictor_deviation": 0.01,
    "framework": "byol",
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
}


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def slow_instance(predictions: Tensor, targets: Tensor) -> float:
    pairs = zip(predictions.tolist(), targets.tolist(), strict=True)
    return -sum(cosine(prediction, target) for prediction, target in pairs) / len(predictions)


def slow_group(predictions: Tensor, targets: Tensor, neighbours: Tensor, candidates: Tensor, divisor: str) -> float:
    rows, others, chosen = predictions.tolist(), targets.tolist(), candidates.tolist()
    total = 0.0
    for i, near in enumerate(neighbours.tolist()):
        if chosen[i]:
            total -= sum(cosine(rows[i], others[j]) for j in near) / len(near)
    return total / (len(rows) if divisor == "batch" else sum(chosen))


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predictions, targets, neighbours and candidates, some of them and not all."""
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randn(SIZE, DIMENSION, generator=generator) * 3
    targets = torch.randn(SIZE, DIMENSION, generator=generator)
    neighbours = torch.rand(SIZE, SIZE, generator=generator).argsort(dim=1)[:, :NEIGHBOURS]
    candidates = torch.arange(SIZE) % 3 != seed % 3
    return predictions, targets, neighbours, candidates


@pytest.mark.parametrize("seed", range(3))
def test_instance_concordance_equals_its_loop(seed: int) -> None:
    predictions, targets, _, _ = batch(seed)
    loss = instance_concordance(predictions, targets)
    assert loss.item() == pytest.approx(slow_instance(predictions, targets), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("divisor", ["candidates", "batch"])
def test_group_concordance_equals_its_loop(divisor: str, seed: int) -> None:
    predictions, targets, neighbours, candidates = batch(seed)
    loss = group_concordance(predictions, targets, neighbours, candidates, divisor)
    expected = slow_group(predictions, targets, neighbours, candidates, divisor)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_mean_over_candidates_is_the_default() -> None:
    inputs = batch(0)
    assert torch.equal(group_concordance(*inputs), group_concordance(*inputs, divisor="candidates"))
    assert not torch.equal(group_concordance(*inputs), group_concordance(*inputs, divisor="batch"))


@pytest.mark.parametrize("divisor", ["candidates", "batch"])
def test_no_candidates_give_zero_and_a_zero_gradient(divisor: str) -> None:
    predictions, targets, neighbours, _ = batch(0)
    predictions.requires_grad_()
    loss = group_concordance(predictions, targets, neighbours, torch.zeros(SIZE, dtype=torch.bool), divisor)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(predictions.grad, torch.zeros_like(predictions))


def test_a_sample_that_is_its_only_neighbour_makes_group_concordance_instance_concordance() -> None:
    predictions, targets, _, _ = batch(1)
    alone, everyone = torch.arange(SIZE).unsqueeze(1), torch.ones(SIZE, dtype=torch.bool)
    for divisor in ("candidates", "batch"):
        loss = group_concordance(predictions, targets, alone, everyone, divisor)
        torch.testing.assert_close(loss, instance_concordance(predictions, targets))


def test_perfect_agreement_is_minus_one_and_opposition_one() -> None:
    predictions, _, neighbours, candidates = batch(0)
    assert instance_concordance(predictions, predictions * 7).item() == pytest.approx(-1, abs=1e-6)
    same = predictions[:1].expand(SIZE, -1)
    assert group_concordance(same, -same, neighbours, candidates).item() == pytest.approx(1, abs=1e-6)


def test_symmetrised_is_the_sum_of_both_directions() -> None:
    first, second, _, _ = batch(0)
    third, fourth, _, _ = batch(1)
    loss = symmetrised(instance_concordance, (first, second), (third, fourth))
    expected = slow_instance(first, fourth) + slow_instance(second, third)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_gradient_reaches_the_candidates_and_nobody_else() -> None:
    predictions, targets, neighbours, candidates = batch(2)
    predictions.requires_grad_()
    group_concordance(predictions, targets, neighbours, candidates).backward()
    moved = predictions.grad.abs().sum(dim=1) > 0
    assert torch.equal(moved, candidates)


def test_bfloat16_features_are_compared_in_float32() -> None:
    predictions, targets, neighbours, candidates = batch(0)
    half, other_half = predictions.bfloat16(), targets.bfloat16()
    loss = group_concordance(half, other_half, neighbours, candidates)
    assert loss.dtype == instance_concordance(half, other_half).dtype == torch.float32
    torch.testing.assert_close(loss, group_concordance(half.float(), other_half.float(), neighbours, candidates))


@pytest.mark.parametrize("loss_name", ["instance", "group"])
def test_loss_falls_under_gradient_descent(loss_name: str) -> None:
    torch.manual_seed(0)
    model = build(DESCRIPTION)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(SIZE, 3, 8, 8), torch.rand(SIZE, 3, 8, 8)
    _, _, neighbours, candidates = batch(0)
    trained = [*model.online.parameters(), *model.predictor.parameters()]
    optimiser = torch.optim.SGD(trained, lr=0.05, momentum=0.9)

    def one_direction(predictions: Tensor, targets: Tensor) -> Tensor:
        if loss_name == "instance":
            return instance_concordance(predictions, targets)
        return group_concordance(predictions, targets, neighbours, candidates)

    losses = []
    for _ in range(20):
        outputs = model(first, second, generator)
        loss = symmetrised(one_direction, outputs.predictions, outputs.targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(SIZE, 5)}, r"^predictions and targets .*\(12, 6\) and \(12, 5\)"),
        ({"predictions": torch.zeros(SIZE), "targets": torch.zeros(SIZE)}, "^predictions and targets "),
        (
            {
                "predictions": torch.zeros(SIZE, 6, dtype=torch.int64),
                "targets": torch.zeros(SIZE, 6, dtype=torch.int64),
            },
            "^predictions must be floating point",
        ),
        ({"neighbours": torch.zeros(3, 2, dtype=torch.int64)}, r"^neighbours .*\(12, k\), got \(3, 2\)"),
        ({"candidates": torch.ones(3, dtype=torch.bool)}, r"^candidates .*\(12,\), got \(3,\)"),
        ({"divisor": "mean"}, "^divisor .*'mean'"),
    ],
)
def test_impossible_arguments_are_named(change: dict[str, object], message: str) -> None:
    names = ("predictions", "targets", "neighbours", "candidates")
    arguments = dict(zip(names, batch(0), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        group_concordance(**arguments)
    if message.startswith("^predictions"):
        with pytest.raises(ValueError, match=message):
            instance_concordance(arguments["predictions"], arguments["targets"])
