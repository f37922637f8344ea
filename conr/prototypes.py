"""Prototypes of the clusters in a batch: scattering them (ProPos), and high-confidence samples (DCBoost).

Huang et al., "Learning Representation for Clustering via Prototype Scattering and Positive Sampling", TPAMI 2022;
Li et al., "You Can Trust Your Clustering Model: A Parameter-free Self-Boosting Plug-in for Deep Clustering", NeurIPS
2025. Neither needs a host synchronisation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def prototypes(features: Tensor, members: Tensor) -> Tensor:
    """The l2-normalised mean of each cluster's unit features, (K, D); zero for a cluster without members.

    Args:
        features: (B, D), of any length.
        members: (B, K) float, 1 where a sample belongs to a cluster.
    """
    return F.normalize(members.T @ F.normalize(features.float(), dim=1), dim=1)


def membership(pseudo_labels: Tensor, clusters: int, counted: Tensor | None = None) -> Tensor:
    """(B, K) float32: 1 where a sample carries a cluster's pseudo label and is counted, else 0.

    Args:
        pseudo_labels: (B,) int64 from 0 to K − 1.
        clusters: K.
        counted: (B,) bool; all if None.
    """
    members = F.one_hot(pseudo_labels, clusters).float()
    return members if counted is None else members * counted.unsqueeze(1)


def prototype_scattering(online: Tensor, target: Tensor, members: Tensor, temperature: float) -> Tensor:
    """The prototype scattering loss of ProPos, one direction: a cluster's prototypes agree, others keep apart.

    With m_k a prototype of the online features of one view and m'_k one of the target features of the other, the mean
    over the clusters k in the batch of −log(e^{m_k·m'_k/τ} / (e^{m_k·m'_k/τ} + Σ_{j≠k} e^{m_k·m_j/τ})).

    Args:
        online: (B, D) online features of a view.
        target: (B, D) target features of the other view, without gradient.
        members: (B, K) float, 1 where a sample belongs to a cluster; clusters without members are left out.
        temperature: τ.

    Returns:
        A scalar; 0 where no cluster has members.
    """
    present = members.sum(0) > 0
    ours, theirs = prototypes(online, members), prototypes(target, members)
    agreement = (ours * theirs).sum(1) / temperature
    others = ours @ ours.T / temperature
    left_out = ~present.unsqueeze(0) | torch.eye(len(present), dtype=torch.bool, device=present.device)
    logits = torch.cat((agreement.unsqueeze(1), others.masked_fill(left_out, -torch.inf)), dim=1)
    losses = logits.logsumexp(1) - agreement
    return (losses * present).sum() / present.sum().clamp(min=1)


def group_compactness(predictions: Tensor, target: Tensor, members: Tensor) -> Tensor:
    """Minus the mean cosine between predictions and targets of the same cluster, each cluster counting the same.

    The mean over all pairs of a cluster is the product of the means, so no pair is formed.

    Args:
        predictions: (B, D) online predictions of a view.
        target: (B, D) target features of the other view, without gradient.
        members: (B, K) float, 1 where a sample belongs to a cluster.

    Returns:
        A scalar in [−1, 1]; 0 where no cluster has members.
    """
    counts = members.sum(0)
    shares = members / counts.clamp(min=1)
    ours = shares.T @ F.normalize(predictions.float(), dim=1)
    theirs = shares.T @ F.normalize(target.float(), dim=1)
    return -(ours * theirs).sum() / (counts > 0).sum().clamp(min=1)


@torch.no_grad()
def high_confidence(features: Tensor, pseudo_labels: Tensor, largest: int) -> Tensor:
    """The samples whose s nearest neighbours all carry their own pseudo label, for the most telling s (DCBoost).

    With n_s the number of such samples, s is the one of 1 … largest with the largest s · n_s; the smallest of equals.

    Args:
        features: (B, D) features, of any length.
        pseudo_labels: (B,) int64.
        largest: the largest number of neighbours to consider; at most B − 1 are.

    Returns:
        (B,) bool; none is true if no sample's nearest neighbour shares its label.
    """
    unit = F.normalize(features.float(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(largest, len(features) - 1), dim=1).indices
    consistent = (pseudo_labels[nearest] == pseudo_labels.unsqueeze(1)).cumprod(dim=1)
    numbers = torch.arange(1, nearest.shape[1] + 1, device=features.device)
    best = (numbers * consistent.sum(0)).argmax()
    return consistent.index_select(1, best.unsqueeze(0)).squeeze(1).bool()
