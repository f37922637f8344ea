"""Neighbor purity: the share of a sample's neighbors that carry its label. Labels are used for this score only."""

import torch
from torch import Tensor


@torch.no_grad()
def purity_by_rank(labels: Tensor, neighbors: Tensor, queries: Tensor | None = None) -> Tensor:
    """For each sample the purity of its first 1, 2 … k neighbors.

    A sample is no neighbor of itself, and one with an unknown label does not count.

    Args:
        labels: (N,) int64, −1 where unknown.
        neighbors: (Q, k) int64 indices, the nearest first.
        queries: (Q,) int64 indices of the samples that the rows belong to; all N in order if None.

    Returns:
        (Q, k) float64 in [0, 1]; NaN up to the first neighbor that counts, and where the sample's own label is unknown.
    """
    own = torch.arange(len(labels), device=labels.device) if queries is None else queries
    expected, found = labels[own].unsqueeze(1), labels[neighbors]
    counted = (neighbors != own.unsqueeze(1)) & (found >= 0) & (expected >= 0)
    agree = counted & (found == expected)
    return agree.cumsum(1).double() / counted.cumsum(1)


def neighbor_purity(labels: Tensor, neighbors: Tensor, queries: Tensor | None = None) -> float:
    """The mean purity of all neighbors over the samples that have one that counts; NaN if none has."""
    return float(purity_by_rank(labels, neighbors, queries)[:, -1].nanmean())
