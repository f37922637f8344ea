"""The loss of cluster heads: against a loop, and what it prefers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conr.losses.distillation import distillation_loss


def probabilities(seed: int, heads: int = 3, clusters: int = 4, pairs: int = 5) -> Tensor:
    logits = torch.randn(2, pairs, heads, clusters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.softmax(2 * logits, dim=3)


def oracle(student: Tensor, teacher: Tensor, prior: Tensor, beta: float) -> float:
    """Sample by sample, head by head, cluster by cluster."""
    _, pairs, heads, clusters = student.shape
    total = 0.0
    for pair in range(pairs):
        weights = [
            sum(float(teacher[0, pair, head, c] * teacher[1, pair, head, c]) for c in range(clusters))
            for head in range(heads)
        ]
        for head in range(heads):
            for one, other in ((0, 1), (1, 0)):
                terms = [
                    float(student[one, pair, head, c] * teacher[other, pair, head, c]) ** beta / float(prior[head, c])
                    for c in range(clusters)
                ]
                total -= sum(weights) / heads * math.log(sum(terms)) / 2
    return total / (pairs * heads)


@pytest.mark.parametrize("beta", [0.6, 1.0])
def test_the_loss_is_the_weighted_mean_over_pairs_heads_and_directions(beta: float) -> None:
    student, teacher, prior = probabilities(0), probabilities(1), probabilities(2)[0, 0]
    found = distillation_loss(student, teacher, prior, beta)
    assert found.item() == pytest.approx(oracle(student, teacher, prior, beta), rel=1e-12)


def test_swapping_the_samples_of_all_pairs_changes_nothing() -> None:
    student, teacher, prior = probabilities(0), probabilities(1), probabilities(2)[0, 0]
    swapped = distillation_loss(student.flip(0), teacher.flip(0), prior, 0.6)
    torch.testing.assert_close(swapped, distillation_loss(student, teacher, prior, 0.6))


def test_the_loss_prefers_partners_in_one_cluster_and_clusters_of_equal_size() -> None:
    def of(assignments: list[list[int]]) -> float:
        chosen = F.one_hot(torch.tensor(assignments), 2).double().unsqueeze(2)
        return distillation_loss(chosen, chosen, chosen.mean((0, 1)).clamp(min=1e-6), 0.6).item()

    together, apart, collapsed = of([[0, 0, 1, 1]] * 2), of([[0, 0, 1, 1], [1, 1, 0, 0]]), of([[0, 0, 0, 0]] * 2)
    assert together < collapsed
    assert together < apart


def test_the_gradient_is_finite_where_probabilities_underflow() -> None:
    student = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]], requires_grad=True)
    distillation_loss(student, student.detach(), torch.tensor([[0.5, 0.5]]), 0.6).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert np.isfinite(student.grad.numpy()).all()
