"""Neighbors in a batch: Euclidean, and contextually affinitive (ConAff, Eq. 3-7 of the paper).

ConAff calls two samples close when they have the same neighbors. Inside a batch it is a top-k, a scatter and a gather
on plain tensors: any device, no host synchronization, no gradient. Over a whole data set it is `conr.neighbors.graph`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from conr.neighbors.graph import conaff_graph
from conr.neighbors.nearest import nearest
from conr.neighbors.settings import ConAff, check_count

SPARSE_FROM = 1024  # samples from which sparse products are faster on a CPU


@torch.no_grad()
def conaff(features: Tensor, k: int, settings: ConAff) -> Tensor:
    """The k contextually affinitive neighbors of every sample of a batch (Eq. 3-7), nearest first.

    Args:
        features: (B, D) unit vectors, float32 or float64; or (V, B, D), those of V batches.
        k: neighbors to return, the sample itself included; 1 ≤ k ≤ B.
        settings: k1, k2 and the rest.

    Returns:
        (B, k) or (V, B, k) int64 indices into the batch. Equal affinities are ordered by index, the sample itself
        first.

    Raises:
        ValueError: an argument is impossible for this batch; the message names it.

    >>> features = torch.nn.functional.normalize(torch.randn(32, 8), dim=1)
    >>> conr.conaff(features, 5, conr.ConAff(k1=8, k2=3)).shape
    torch.Size([32, 5])
    """
    batches = _batches(features, k)
    count, size, _ = batches.shape
    settings.check(size, "the batch size")
    if features.device.type == "cpu" and features.dtype != torch.float64 and size >= SPARSE_FROM:
        found = [torch.from_numpy(conaff_graph(batch.numpy(), k, settings)) for batch in batches]
        return torch.stack(found).view(*features.shape[:-1], k)
    ranking = nearest(batches, settings.k1, self_first=True)
    nodes = reciprocal_encoding(ranking)
    if settings.propagates:
        offsets = size * torch.arange(count, device=features.device).view(-1, 1, 1)  # rows of all batches in one matrix
        edges = (ranking[..., : settings.k2] + offsets).flatten(0, 1)
        weights = _edge_weights(batches.flatten(0, 1), edges, settings.alpha)
        for _ in range(settings.layers):
            nodes = _propagate(nodes, edges, weights, settings)
    return nearest(nodes, k, self_first=settings.self_first).view(*features.shape[:-1], k)


@torch.no_grad()
def euclidean(features: Tensor, k: int) -> Tensor:
    """The k nearest neighbors of every sample by Euclidean distance, which for unit vectors is that of cosines.

    This is the "local neighborhood" N(x_i) of Eq. 2 that the paper compares ConAff with.

    Args:
        features: (B, D) unit vectors; or (V, B, D), those of V batches.
        k: neighbors to return, the sample itself included; 1 ≤ k ≤ B.

    Returns:
        (B, k) or (V, B, k) int64 indices into the batch, the sample itself first, equal distances ordered by index.

    Raises:
        ValueError: features are not such a tensor, or k is impossible for this batch.
    """
    return nearest(_batches(features, k), k, self_first=True).view(*features.shape[:-1], k)


def reciprocal_encoding(ranking: Tensor) -> Tensor:
    """The reciprocal adjacency matrix A of Eq. 3: 1 where both rank each other, 0.5 where one does, else 0.

    Args:
        ranking: (…, B, k1) int64, the nearest neighbors of every sample, the sample itself included.

    Returns:
        (…, B, B) float32, symmetric; its row i is the node feature v_i of Eq. 4.
    """
    size = ranking.shape[-2]
    ranked = torch.zeros(*ranking.shape[:-1], size, device=ranking.device).scatter_(-1, ranking, 0.5)
    return ranked + ranked.mT


def _propagate(nodes: Tensor, edges: Tensor, weights: Tensor, settings: ConAff) -> Tensor:
    """One layer of Eq. 6: node features h^(l), (V, B, B), become sums of neighbors' rows with weights e_ij^α.

    The node itself is the first of its own neighbors with weight 1, which is the "h_i +" term of Eq. 6. The result has
    the type of the weights.

    Args:
        nodes: (V, B, B), of V batches.
        edges: (V · B, k2) int64, neighbors among the nodes of all batches.
        weights: (V · B, k2) of the edges.
        settings: whether to add the transpose before, and to normalize after.
    """
    nodes = nodes.to(weights.dtype)
    if settings.symmetrize:
        nodes = nodes + nodes.mT
    # A weighted sum of k2 rows: a product with the (B, B) adjacency matrix would cost B³.
    sums = F.embedding_bag(edges, nodes.flatten(0, 1), per_sample_weights=weights, mode="sum")
    return (F.normalize(sums, dim=1) if settings.normalize else sums).view_as(nodes)


def _edge_weights(features: Tensor, edges: Tensor, alpha: float) -> Tensor:
    """(R, k2) weights S_ij^α of the edges of R samples, 1 for the sample itself.

    A negative similarity has no real power for a fractional α: it weighs nothing then.
    """
    weights = torch.einsum("bd,bkd->bk", features, F.embedding(edges, features))
    weights = weights.pow(alpha) if float(alpha).is_integer() else weights.clamp(min=0).pow(alpha)
    weights[:, 0] = 1.0
    return weights


def _batches(features: Tensor, k: int) -> Tensor:
    """The features as (V, B, D).

    Raises:
        ValueError: they have another shape, or no samples; or k is impossible for them.
    """
    if features.ndim not in (2, 3) or 0 in features.shape[:-1]:
        raise ValueError(
            f"features must be a (batch, dimension) matrix, or several in one tensor, got shape {tuple(features.shape)}"
        )
    check_count("k", k, features.shape[-2], "the batch size")
    return features if features.ndim == 3 else features.unsqueeze(0)
