"""Neighbours inside a batch: Euclidean, and contextually affinitive (ConAff).

ConAff (Eq. 3-7 of the paper) calls two samples close when they have the same neighbours. Everything here is
a top-k, a scatter and a gather on plain tensors: any device, no host synchronisation, no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def conaff(
    features: Tensor,
    k: int,
    k1: int,
    k2: int,
    *,
    alpha: float = 2.0,
    layers: int = 2,
    symmetrise: bool = True,
    normalise: bool = True,
) -> Tensor:
    """The k contextually affinitive neighbours of every sample of a batch (Eq. 3-7), nearest first.

    Args:
        features: (B, D) features; they are l2-normalised here, so their scale does not matter.
        k: neighbours to return, the sample itself included; 1 ≤ k ≤ B.
        k1: neighbours that define the reciprocal encoding (Eq. 3), the sample itself included; 1 ≤ k1 ≤ B.
        k2: neighbours that a layer of propagation sums over (Eq. 5), the sample itself included; 1 ≤ k2 ≤ k1.
            k2 = 1 means no propagation.
        alpha: exponent of the edge weights (α in Eq. 6).
        layers: layers of propagation (L).
        symmetrise: add the transpose before each layer, as the released code does; Eq. 6 does not show it.
        normalise: l2-normalise each row after each layer, as the released code does; Eq. 6 does not show it.

    Returns:
        (B, k) int64 indices into the batch. Equal affinities are ordered by index, the sample itself first.

    Raises:
        ValueError: an argument is impossible for this batch; the message names it.
    """
    _check_features(features)
    size = features.shape[0]
    _check_count("k", k, size, "the batch size")
    _check_count("k1", k1, size, "the batch size")
    _check_count("k2", k2, k1, "k1")
    if layers < 0:
        raise ValueError(f"layers = {layers} must not be negative")
    if alpha < 0:
        raise ValueError(f"alpha = {alpha} must not be negative")

    similarity = _cosine_similarity(features)
    ranking = _nearest(similarity, k1, self_first=True)
    nodes = reciprocal_encoding(ranking)
    propagates = k2 > 1 and layers > 0
    if propagates:
        edges = ranking[:, :k2]
        weights = _edge_weights(similarity, edges, alpha)
        for _ in range(layers):
            nodes = propagate(nodes, edges, weights, symmetrise=symmetrise, normalise=normalise)
    # Rows of unit length are closest to themselves; rounding must not let a duplicate come before.
    return _nearest(nodes @ nodes.T, k, self_first=propagates and normalise)


@torch.no_grad()
def euclidean(features: Tensor, k: int) -> Tensor:
    """The k nearest neighbours of every sample by Euclidean distance between l2-normalised features.

    This is the "local neighbourhood" N(x_i) of Eq. 2 that the paper compares ConAff with.

    Args:
        features: (B, D) features; they are l2-normalised here.
        k: neighbours to return, the sample itself included; 1 ≤ k ≤ B.

    Returns:
        (B, k) int64 indices into the batch, the sample itself first, equal distances ordered by index.

    Raises:
        ValueError: features are not a matrix, or k is impossible for this batch.
    """
    _check_features(features)
    _check_count("k", k, features.shape[0], "the batch size")
    return _nearest(_cosine_similarity(features), k, self_first=True)


def reciprocal_encoding(ranking: Tensor) -> Tensor:
    """The reciprocal adjacency matrix A of Eq. 3: 1 where both rank each other, 0.5 where one does, else 0.

    Args:
        ranking: (B, k1) int64, the nearest neighbours of every sample, the sample itself included.

    Returns:
        (B, B) float32, symmetric; its row i is the node feature v_i of Eq. 4.
    """
    size = ranking.shape[0]
    ranked = torch.zeros(size, size, device=ranking.device).scatter_(1, ranking, 0.5)
    return ranked + ranked.T


def propagate(nodes: Tensor, edges: Tensor, weights: Tensor, *, symmetrise: bool, normalise: bool) -> Tensor:
    """One layer of message propagation (Eq. 6): every node becomes the weighted sum of its neighbours' rows.

    The node itself is the first of its own neighbours with weight 1, which is the "h_i +" term of Eq. 6.

    Args:
        nodes: (B, B) node features h^(l).
        edges: (B, k2) int64 neighbours of every node, the node itself first.
        weights: (B, k2) edge weights e_ij^α.
        symmetrise: add the transpose of the node matrix first.
        normalise: l2-normalise each row afterwards.

    Returns:
        (B, B) node features h^(l+1), in the type of the weights.
    """
    nodes = nodes.to(weights.dtype)
    if symmetrise:
        nodes = nodes + nodes.T
    adjacency = torch.zeros_like(nodes).scatter_(1, edges, weights)
    nodes = adjacency @ nodes
    return F.normalize(nodes, dim=1) if normalise else nodes


def _cosine_similarity(features: Tensor) -> Tensor:
    """(B, B) cosine similarities in float32, or float64 if the features are; ranks from bf16 would be noise."""
    features = features if features.dtype == torch.float64 else features.float()
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


def _edge_weights(similarity: Tensor, edges: Tensor, alpha: float) -> Tensor:
    """(B, k2) weights S_ij^α, 1 for the sample itself.

    A negative similarity has no real power for a fractional α: it weighs nothing then.
    """
    weights = similarity.gather(1, edges)
    weights = weights.pow(alpha) if float(alpha).is_integer() else weights.clamp(min=0).pow(alpha)
    weights[:, 0] = 1.0
    return weights


def _nearest(scores: Tensor, k: int, *, self_first: bool) -> Tensor:
    """(B, k) indices of the k largest scores of each row; ties go to the sample itself, then to the lower index.

    With `self_first` the sample itself comes first even if another one scores higher.

    `torch.topk` leaves the order of ties to the device, and reciprocal encodings are full of ties. A stable sort
    settles them the same way everywhere.
    """
    scores = scores.clone()
    diagonal = scores.diagonal()
    above = torch.full_like(diagonal, torch.inf)
    diagonal.copy_(above if self_first else torch.nextafter(diagonal, above))
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def _check_features(features: Tensor) -> None:
    if features.ndim != 2 or features.shape[0] == 0:
        raise ValueError(f"features must be a (batch, dimension) matrix, got shape {tuple(features.shape)}")


def _check_count(name: str, value: int, largest: int, limit: str) -> None:
    if not 1 <= value <= largest:
        raise ValueError(f"{name} = {value} must lie between 1 and {limit} ({largest})")
