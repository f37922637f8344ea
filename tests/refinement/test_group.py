"""Group concordance against its loop, where its gradient flows, and that it can be minimized."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_networks import small_spec
from torch import Tensor

from conr.losses.concordance import instance_concordance, symmetrized
from conr.refinement.group import group_concordance

SIZE, NEIGHBORS, DIMENSION = 12, 4, 6


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def slow_group(predictions: Tensor, targets: Tensor, neighbors: Tensor, candidates: Tensor, divisor: str) -> float:
    rows, others, chosen = predictions.tolist(), targets.tolist(), candidates.tolist()
    total = 0.0
    for i, near in enumerate(neighbors.tolist()):
        if chosen[i]:
            total -= sum(cosine(rows[i], others[j]) for j in near) / len(near)
    return total / (len(rows) if divisor == "batch" else sum(chosen))


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit predictions and targets, neighbors and candidates, some of them and not all."""
    generator = torch.Generator().manual_seed(seed)
    predictions, targets = F.normalize(torch.randn(2, SIZE, DIMENSION, generator=generator), dim=2)
    neighbors = torch.rand(SIZE, SIZE, generator=generator).argsort(dim=1)[:, :NEIGHBORS]
    candidates = torch.arange(SIZE) % 3 != seed % 3
    return predictions, targets, neighbors, candidates


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("divisor", ["candidates", "batch"])
def test_group_concordance_equals_its_loop(divisor: str, seed: int) -> None:
    predictions, targets, neighbors, candidates = batch(seed)
    loss = group_concordance(predictions, targets, neighbors, candidates, divisor)
    expected = slow_group(predictions, targets, neighbors, candidates, divisor)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_mean_over_candidates_is_the_default() -> None:
    inputs = batch(0)
    assert torch.equal(group_concordance(*inputs), group_concordance(*inputs, divisor="candidates"))
    assert not torch.equal(group_concordance(*inputs), group_concordance(*inputs, divisor="batch"))


@pytest.mark.parametrize("divisor", ["candidates", "batch"])
def test_no_candidates_give_zero_and_a_zero_gradient(divisor: str) -> None:
    predictions, targets, neighbors, _ = batch(0)
    predictions.requires_grad_()
    loss = group_concordance(predictions, targets, neighbors, torch.zeros(SIZE, dtype=torch.bool), divisor)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(predictions.grad, torch.zeros_like(predictions))


def test_a_sample_that_is_its_only_neighbor_makes_group_concordance_instance_concordance() -> None:
    predictions, targets, _, _ = batch(1)
    itself, everyone = torch.arange(SIZE).unsqueeze(1), torch.ones(SIZE, dtype=torch.bool)
    for divisor in ("candidates", "batch"):
        loss = group_concordance(predictions, targets, itself, everyone, divisor)
        torch.testing.assert_close(loss, instance_concordance(predictions, targets))


def test_perfect_agreement_is_minus_one_and_opposition_one() -> None:
    predictions, _, neighbors, candidates = batch(0)
    same = predictions[:1].expand(SIZE, -1)
    assert group_concordance(same, same, neighbors, candidates).item() == pytest.approx(-1, abs=1e-6)
    assert group_concordance(same, -same, neighbors, candidates).item() == pytest.approx(1, abs=1e-6)


def test_the_gradient_reaches_the_candidates_and_nobody_else() -> None:
    predictions, targets, neighbors, candidates = batch(2)
    predictions.requires_grad_()
    group_concordance(predictions, targets, neighbors, candidates).backward()
    moved = predictions.grad.abs().sum(dim=1) > 0
    assert torch.equal(moved, candidates)


def test_the_loss_falls_under_gradient_descent() -> None:
    model = small_spec().build(seed=0)
    first, second = torch.rand(2, SIZE, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    _, _, neighbors, candidates = batch(0)
    optimizer = torch.optim.SGD([*model.online.parameters(), *model.predictor.parameters()], lr=0.05, momentum=0.9)

    def one_direction(predictions: Tensor, targets: Tensor) -> Tensor:
        return group_concordance(predictions, targets, neighbors, candidates)

    losses = []
    for _ in range(20):
        outputs = model(first, second, torch.Generator())
        loss = symmetrized(one_direction, outputs.unit_predictions, outputs.unit_targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(SIZE, 5)}, r"^predictions and targets .*\(12, 6\) and \(12, 5\)"),
        ({"predictions": torch.zeros(SIZE), "targets": torch.zeros(SIZE)}, "^predictions and targets "),
        (
            {"predictions": torch.zeros(SIZE, 6).long(), "targets": torch.zeros(SIZE, 6).long()},
            "^predictions .* torch.int64",
        ),
        ({"neighbors": torch.zeros(3, 2, dtype=torch.int64)}, r"^neighbors .*\(12, k\), got \(3, 2\)"),
        ({"candidates": torch.ones(3, dtype=torch.bool)}, r"^candidates .*\(12,\), got \(3,\)"),
        ({"divisor": "mean"}, "^divisor .*'mean'"),
    ],
)
def test_impossible_arguments_are_named(change: dict[str, object], message: str) -> None:
    names = ("predictions", "targets", "neighbors", "candidates")
    arguments = dict(zip(names, batch(0), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        group_concordance(**arguments)
