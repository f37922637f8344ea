"""Which samples lie at the border between clusters, and which may search for neighbors (Eq. 9-13)."""

import math

import torch
from torch import Tensor


@torch.no_grad()
def boundary_ratio(features: Tensor, pseudo_labels: Tensor, centroids: Tensor) -> Tensor:
    """The boundary ratio r_i of every sample (Eq. 9-11), an online form of one minus the silhouette.

    r = 1 − (d_N − d_I) / max(d_I, d_N), with d_I the distance to the sample's own centroid and d_N the distance to
    the nearest other one: 0 on the own centroid, 1 half-way between two, up to 2 on another cluster's centroid.

    Args:
        features: (B, D) features, in the space of the centroids.
        pseudo_labels: (B,) int64, the cluster of each sample, from 0 to K − 1.
        centroids: (K, D) cluster centroids, K ≥ 2.

    Returns:
        (B,) ratios in the type of the features (float32 at least).

    Raises:
        ValueError: shapes disagree, there are fewer than two centroids, or (checked on the CPU only, where it
            costs no synchronization) a pseudo label is not one of the K clusters.
    """
    if features.ndim != 2:
        raise ValueError(f"features must be a (batch, dimension) matrix, got shape {tuple(features.shape)}")
    if centroids.ndim != 2 or centroids.shape[1] != features.shape[1]:
        raise ValueError(
            f"centroids must have shape (clusters, {features.shape[1]}) like the features, got {tuple(centroids.shape)}"
        )
    clusters = centroids.shape[0]
    if clusters < 2:
        raise ValueError("centroids must hold at least two clusters: with one there is no boundary")
    if pseudo_labels.shape != features.shape[:1]:
        raise ValueError(f"pseudo_labels must have shape ({features.shape[0]},), got {tuple(pseudo_labels.shape)}")
    if pseudo_labels.device.type == "cpu" and ((pseudo_labels < 0) | (pseudo_labels >= clusters)).any():
        raise ValueError(f"pseudo_labels must lie between 0 and {clusters - 1}, one for each centroid")

    if features.dtype != torch.float64:
        features = features.float()
    # Differences, not the expanded square: that one loses the small distances to rounding.
    distances = torch.cdist(features, centroids.to(features.dtype), compute_mode="donot_use_mm_for_euclid_dist")
    own = pseudo_labels.unsqueeze(1)
    intra = distances.gather(1, own).squeeze(1)
    nearest_other = distances.scatter(1, own, torch.inf).amin(1)
    largest = torch.maximum(intra, nearest_other)
    # Two coinciding centroids under a sample leave 0/0: such a sample is on the boundary, ratio 1.
    return 1 - (nearest_other - intra) / largest.clamp(min=torch.finfo(largest.dtype).tiny)


def candidates(ratio: Tensor, fraction: float) -> Tensor:
    """The samples that may search for neighbors: the ⌈fraction · B⌉ with the smallest boundary ratio (Eq. 13).

    Args:
        ratio: (B,) boundary ratios.
        fraction: the share f_r to keep, in (0, 1].

    Returns:
        (B,) bool, exactly ⌈fraction · B⌉ of them true; equal ratios are settled by the lower index.

    Raises:
        ValueError: ratio is not a vector, or fraction lies outside (0, 1].
    """
    if ratio.ndim != 1:
        raise ValueError(f"ratio must be a vector with one value a sample, got shape {tuple(ratio.shape)}")
    return lowest(ratio, candidate_count(fraction, len(ratio)))


def candidate_count(fraction: float, size: int) -> int:
    """⌈fraction · size⌉ (Eq. 13).

    Raises:
        ValueError: fraction lies outside (0, 1].
    """
    _check_fraction("fraction", fraction)
    # Less a tolerance: 0.55 · 100 is 55.00000000000001 in binary, and that is not 56 samples.
    return max(1, math.ceil(fraction * size - 1e-9))


@torch.no_grad()
def lowest(ratio: Tensor, count: int | Tensor) -> Tensor:
    """The samples with the smallest boundary ratio.

    Args:
        ratio: (…, B) boundary ratios, of one batch or several.
        count: how many samples of a batch; () int64 where it changes and must not be read on the host.

    Returns:
        (…, B) bool, `count` of each batch true; equal ratios are settled by the lower index.
    """
    order = ratio.argsort(stable=True)
    first = (torch.arange(ratio.shape[-1], device=ratio.device) < count).expand_as(order)
    return torch.zeros_like(ratio, dtype=torch.bool).scatter_(-1, order, first)


def relaxed_fraction(start: float, epoch: int, first: int, last: int) -> float:
    """The share of candidates f_r at an epoch, growing linearly to 1 (Eq. 12 as meant: the print is upside down).

    f_r(t) = f_r(t0) + (1 − f_r(t0)) · (t − t0) / (T − t0), and 1 from T on.

    Args:
        start: f_r at the first epoch, in (0, 1].
        epoch: the current epoch t, not before the first.
        first: the epoch t0 at which group concordance starts.
        last: the epoch T at which all samples are candidates, after the first.

    Returns:
        The share of candidates, in [start, 1].

    Raises:
        ValueError: start lies outside (0, 1], last does not come after first, or epoch comes before first.
    """
    _check_fraction("start", start)
    if last <= first:
        raise ValueError(f"last = {last} must come after first = {first}")
    if epoch < first:
        raise ValueError(f"epoch = {epoch} must not come before first = {first}")
    progress = min((epoch - first) / (last - first), 1.0)
    return start + (1 - start) * progress


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} = {value} must lie in (0, 1]")
