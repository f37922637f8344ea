"""High-confidence samples and the loss on them (DCBoost).

Li et al., "You Can Trust Your Clustering Model: A Parameter-free Self-Boosting Plug-in for Deep Clustering", NeurIPS
2025. No host synchronization.
"""

import torch
from torch import Tensor

from conr.frameworks import Framework
from conr.losses.prototypes import membership, prototype_scattering
from conr.training.terms import Batch, Term


def group_compactness(predictions: Tensor, target: Tensor, members: Tensor) -> Tensor:
    """Minus the mean cosine between predictions and targets of the same cluster, each cluster counting the same.

    The mean over all pairs of a cluster is the product of the means, so no pair is formed.

    Args:
        predictions: (B, D) online predictions of a view, unit vectors.
        target: (B, D) target features of the other view, unit vectors without gradient.
        members: (B, K) float, 1 where a sample belongs to a cluster.

    Returns:
        A scalar in [−1, 1]; 0 where no cluster has members.
    """
    counts = members.sum(0)
    shares = members / counts.clamp(min=1)
    return -((shares.T @ predictions) * (shares.T @ target)).sum() / (counts > 0).sum().clamp(min=1)


@torch.no_grad()
def high_confidence(features: Tensor, pseudo_labels: Tensor, largest: int) -> Tensor:
    """The samples whose s nearest neighbors all carry their own pseudo label, for the best s (DCBoost).

    With n_s the number of such samples, s is the one of 1 … largest with the largest s · n_s; the smallest of equals.

    Args:
        features: (B, D) unit vectors.
        pseudo_labels: (B,) int64.
        largest: the largest number of neighbors to consider; at most B − 1 are.

    Returns:
        (B,) bool; none is true if no sample's nearest neighbor shares its label.
    """
    similarity = (features @ features.T).fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(largest, len(features) - 1), dim=1).indices
    consistent = (pseudo_labels[nearest] == pseudo_labels.unsqueeze(1)).cumprod(dim=1)
    numbers = torch.arange(1, nearest.shape[1] + 1, device=features.device)
    best = (numbers * consistent.sum(0)).argmax()
    return consistent.index_select(1, best.unsqueeze(0)).squeeze(1).bool()


class BoostTerm(Term):
    """DCBoost: clusters of the high-confidence samples compact and apart, the instance loss on all samples.

    The mean of both directions. The temperature is that of the scattering of the clusters' prototypes; `largest` is as
    for `high_confidence`.
    """

    name = "boost"

    def __init__(self, weight: float, framework: Framework, clusters: int, temperature: float, largest: int) -> None:
        super().__init__(weight)
        self.framework, self.clusters = framework, clusters
        self.temperature, self.largest = temperature, largest

    def __call__(self, batch: Batch) -> Tensor:
        """The three parts, with equal weights."""
        outputs, traced = batch.outputs, batch.observer.traced
        total = self.framework.instance_loss(outputs)
        traced("boosted instance loss", total)
        for view, other in ((0, 1), (1, 0)):
            target = outputs.unit_targets[other]
            trusted = high_confidence(target, batch.pseudo_labels, self.largest)
            traced("confident samples", trusted)
            members = membership(batch.pseudo_labels, self.clusters, trusted)
            compactness = group_compactness(outputs.unit_predictions[view], target, members)
            traced("compactness", compactness)
            apart = prototype_scattering(outputs.unit_projections[view], target, members, self.temperature)
            traced("apart", apart)
            total = total + compactness + apart
        return total / 2
