"""Prototypes of the clusters in a batch, and the loss that scatters them (ProPos).

Huang et al., "Learning Representation for Clustering via Prototype Scattering and Positive Sampling", TPAMI 2022. No
host synchronization.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def prototypes(features: Tensor, members: Tensor) -> Tensor:
    """The l2-normalized mean of each cluster's features, (K, D); zero for a cluster without members.

    Args:
        features: (B, D) unit vectors.
        members: (B, K) float, 1 where a sample belongs to a cluster.
    """
    return F.normalize(members.T @ features, dim=1)


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
        online: (B, D) online features of a view, unit vectors.
        target: (B, D) target features of the other view, unit vectors without gradient.
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
