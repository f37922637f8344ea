"""k-means on the unit sphere, for pseudo labels between epochs and for the final clusters.

faiss is the quickest for small data sets on a CPU. What follows is for large ones, and for a GPU: all initializations
are computed at once, as one product of all samples with all their centroids. A CPU, where that costs most, tries them
on a part of the samples first, and then only the best of them on all.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

TOLERANCE = 1e-6  # an initialization has converged when an iteration gains less than this share of its inertia
ROUNDING = 2e-6  # squared distances that differ by less, in squared lengths of the longest sample, may be equal
SCORES = {"cpu": 1 << 20, "cuda": 1 << 26}  # numbers in a block of scores: a processor's cache, a GPU's memory
BLOCK = 1 << 19  # numbers in a block of samples that is read several times: a processor's cache
LARGE = 10_000  # samples from which a CPU does not leave the work to faiss
PART = 4  # of a large data set a CPU first clusters one sample in so many, and then all of them from there
FINALISTS = 4  # initializations that continue on all samples: those with the lowest inertia
PER_CLUSTER = 50  # samples that the part must have for each cluster
CHECK_EVERY = {"cpu": 1, "cuda": 8}  # iterations between two checks for convergence: a GPU waits for each


@dataclass(frozen=True)
class Clustering:
    """The outcome of k-means.

    Attributes:
        centroids: (K, D) float32.
        assignments: (N,) int64, from 0 to K − 1.
        inertia: sum of squared distances of the samples to their centroids.
    """

    centroids: NDArray[np.float32]
    assignments: NDArray[np.int64]
    inertia: float


def kmeans(
    features: NDArray[np.float32],
    clusters: int,
    *,
    seed: int,
    n_init: int = 1,
    max_iter: int = 100,
    start: NDArray[np.float32] | None = None,
    spherical: bool = True,
) -> Clustering:
    """`kmeans_tensors` for arrays.

    >>> features = numpy.eye(3, dtype="float32").repeat(4, axis=0)
    >>> found = conr.kmeans(features, 3, seed=0, n_init=5)
    >>> sorted(numpy.bincount(found.assignments)), round(found.inertia, 3)
    ([np.int64(4), np.int64(4), np.int64(4)], 0.0)
    """
    centroids, assignments, inertia = kmeans_tensors(
        torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)),
        clusters,
        seed=seed,
        n_init=n_init,
        max_iter=max_iter,
        start=None if start is None else torch.from_numpy(np.ascontiguousarray(start, dtype=np.float32)),
        spherical=spherical,
    )
    return Clustering(centroids.numpy(), assignments.numpy(), inertia)


@torch.no_grad()
def kmeans_tensors(
    features: Tensor,
    clusters: int,
    *,
    seed: int,
    n_init: int = 1,
    max_iter: int = 100,
    start: Tensor | None = None,
    spherical: bool = True,
) -> tuple[Tensor, Tensor, float]:
    """k-means on the device of the features; of several initializations, the one with the lowest inertia.

    Memory beside the features: about 20 bytes per sample and initialization, and one block of scores.

    Args:
        features: (N, D) float32, l2-normalized if spherical.
        clusters: K, at most N.
        seed: seed of the initial centroids, different for every initialization.
        n_init: how many k-means++ initializations to try. Labels never choose among them.
        max_iter: largest number of iterations; where a part of the samples comes first, on it and again on all.
        start: (K, D) centroids to start from instead, on the same device; then there is one initialization.
        spherical: keep the centroids on the unit sphere (cosine k-means).

    Returns:
        Centroids, (K, D) float32; assignments, (N,) int64; and the inertia.

    Raises:
        ValueError: more clusters than samples, no initialization or iteration, or a start of another shape.
    """
    count, dimension = features.shape
    if not 1 <= clusters <= count:
        raise ValueError(f"clusters = {clusters} must lie between 1 and the number of samples ({count})")
    if n_init < 1 or max_iter < 1:
        raise ValueError(f"n_init = {n_init} and max_iter = {max_iter} must be at least 1")
    if start is not None and start.shape != (clusters, dimension):
        raise ValueError(f"start must have shape {(clusters, dimension)}, got {tuple(start.shape)}")
    seeds = [[seed, number] for number in range(n_init if start is None else 1)]
    on_cpu = features.device.type == "cpu"
    if on_cpu and count < LARGE:
        return _with_faiss(features, clusters, seeds, max_iter, start, spherical)
    origin = torch.zeros_like(features[0]) if spherical else features.mean(0)
    if not spherical:
        features = features - origin  # shorter vectors: smaller rounding errors
    lloyd = _Lloyd(features, spherical)
    if start is not None:
        initial = (start - origin).unsqueeze(0)
    elif on_cpu and count >= PART * max(LARGE, PER_CLUSTER * clusters):
        part = _Lloyd(features[::PART].contiguous(), spherical)
        found, inertias = part.run(part.plus_plus(clusters, seeds), max_iter)
        initial = found[inertias.argsort()[:FINALISTS]]
    else:
        initial = lloyd.plus_plus(clusters, seeds)
    centroids, inertias = lloyd.run(initial, max_iter)
    best = centroids[int(inertias.argmin())]
    assignments = lloyd.assign(best.unsqueeze(0)).nearest[0].long()
    size = max(BLOCK // dimension, 1)
    blocks = zip(torch.split(features, size), torch.split(assignments, size), strict=True)
    squared = torch.cat([(rows - best[own]).square().sum(1) for rows, own in blocks])
    return best + origin, assignments, float(squared.sum(dtype=torch.float64))


class _Assigned(NamedTuple):
    """All samples assigned to the centroids of R initializations."""

    nearest: Tensor  # (R, N) int32
    sums: Tensor  # (R, K, D) float64, of a cluster's samples
    sizes: Tensor  # (R, K) float64
    farthest: Tensor  # (R,) int64, the sample farthest from its centroid
    distance: Tensor  # (R,) float32, the square of its distance


class _Lloyd:
    """Lloyd's iterations on (N, D) features. The nearest centroid is the one of the highest score x·c − ‖c‖²/2."""

    def __init__(self, features: Tensor, spherical: bool) -> None:
        self.features, self.spherical = features, spherical
        self.squares = torch.linalg.vector_norm(features, dim=1).square()
        self.total = self.squares.sum(dtype=torch.float64)
        self.longest = self.squares.max().sqrt()

    def plus_plus(self, clusters: int, seeds: list[list[int]]) -> Tensor:
        """Greedy k-means++ (Arthur and Vassilvitskii, 2007): (R, K, D) centroids from R seeds.

        2 + ⌊ln K⌋ candidates (as in scikit-learn) are sampled in proportion to their squared distance to the nearest
        centroid so far; the best becomes the next centroid. The random numbers come from the CPU on every device.
        """
        shape = clusters, 2 + int(np.log(clusters))
        numbers = np.stack([np.random.default_rng(seed).random(shape) for seed in seeds])
        features, uniform = self.features, torch.from_numpy(numbers).to(self.features.device)
        chosen = (uniform[:, 0, 0] * len(features)).long()
        nearest = self._distances_to_samples(chosen)
        centroids = [features[chosen]]
        for column in uniform[:, 1:].unbind(1):
            # Whole numbers have the same sum in any order: the sample does not depend on device or number of threads.
            share = nearest / nearest.amax(1, keepdim=True).clamp(min=torch.finfo(nearest.dtype).tiny)
            sums = share.mul_(2**30).long().cumsum(1)
            candidates = torch.searchsorted(sums, (column * sums[:, -1:]).long(), right=True)
            candidates = candidates.clamp(max=len(features) - 1)
            closest, least = nearest, torch.full_like(column[:, 0], torch.inf)
            for candidate in candidates.unbind(1):
                distances = torch.minimum(nearest, self._distances_to_samples(candidate))
                potential = distances.sum(1, dtype=torch.float64)
                better = potential < least
                least, chosen = torch.where(better, potential, least), torch.where(better, candidate, chosen)
                closest = torch.where(better.unsqueeze(1), distances, closest)
            nearest = closest
            centroids.append(features[chosen])
        return torch.stack(centroids, dim=1)

    def _distances_to_samples(self, chosen: Tensor) -> Tensor:
        """Squared distances of all samples to (R,) samples, (R, N)."""
        distances = torch.addmm(self.squares, self.features[chosen], self.features.T, alpha=-2)
        return distances.add_(self.squares[chosen].unsqueeze(1)).clamp_(min=0)

    def run(self, centroids: Tensor, max_iter: int) -> tuple[Tensor, Tensor]:
        """Iterate all initializations at once, from (R, K, D) centroids; returns the last ones and (R,) inertias."""
        check_every = CHECK_EVERY[centroids.device.type]
        centroids = centroids.clone()
        inertias = torch.full((len(centroids),), torch.inf, dtype=torch.float64, device=centroids.device)
        going = torch.ones_like(inertias, dtype=torch.bool)
        for iteration in range(max_iter):
            if iteration % check_every == 0:
                rows = going.nonzero()[:, 0]
                if not len(rows):
                    break
            own, before, still = centroids[rows], inertias[rows], going[rows]
            assigned = self.assign(own)
            inertia = self._inertia(own, assigned)
            moved, filled = self._moved(own, assigned)
            inertias[rows] = torch.where(still, inertia, before)
            converged = before - inertia <= TOLERANCE * inertia
            centroids[rows] = torch.where(still[:, None, None], moved, own)
            going[rows] = still & (~converged | filled)
        return centroids, inertias

    def assign(self, centroids: Tensor) -> _Assigned:
        """Assign all samples, in blocks of bounded memory."""
        count_init, clusters, dimension = centroids.shape
        count, device = len(self.features), centroids.device
        flat, halves = centroids.flatten(0, 1), (centroids.square().sum(2) / 2).view(-1, 1)
        nearest = torch.empty(count_init, count, dtype=torch.int32, device=device)
        sums = torch.zeros(count_init, clusters, dimension, dtype=torch.float64, device=device)
        sizes = torch.zeros(count_init, clusters, dtype=torch.float64, device=device)
        farthest = torch.zeros(count_init, dtype=torch.int64, device=device)
        distance = torch.full((count_init,), -torch.inf, device=device)
        size = max(SCORES[device.type] // len(flat), 1)
        for first in range(0, count, size):
            rows, block = self.features[first : first + size], slice(first, first + size)
            scores = torch.addmm(halves, flat, rows.T, beta=-1).view(count_init, clusters, -1)
            highest, own = scores.max(1)
            nearest[:, block] = own
            members = scores.zero_().scatter_(1, own.unsqueeze(1), 1.0)
            sizes += members.sum(2)
            sums += (members.flatten(0, 1) @ rows).view_as(sums)
            far, sample = (self.squares[block] - 2 * highest).max(1)
            farthest = torch.where(far > distance, sample + first, farthest)
            distance = torch.maximum(far, distance)
        return _Assigned(nearest, sums, sizes, farthest, distance)

    def _inertia(self, centroids: Tensor, assigned: _Assigned) -> Tensor:
        """Sum of squared distances of samples to (R, K, D) centroids, (R,)."""
        centroids = centroids.double()
        scores = (assigned.sums * centroids).sum((-2, -1))
        scores -= (assigned.sizes * centroids.square().sum(-1)).sum(-1) / 2
        inertia: Tensor = self.total - 2 * scores
        return inertia

    def _moved(self, centroids: Tensor, assigned: _Assigned) -> tuple[Tensor, Tensor]:
        """Where (R, K, D) centroids move to, and which initializations have an empty cluster, (R,).

        An empty cluster moves to the sample that is farthest from its centroid; if several are empty, only one moves.
        """
        sizes = assigned.sizes.unsqueeze(-1)
        means = F.normalize(assigned.sums, dim=-1) if self.spherical else assigned.sums / sizes.clamp(min=1)
        moved = torch.where(sizes > 0, means.float(), centroids)
        rows = torch.arange(len(centroids), device=centroids.device)
        smallest, cluster = assigned.sizes.min(1)
        filled = (smallest == 0) & (assigned.distance > ROUNDING * self.longest**2)
        moved[rows, cluster] = torch.where(filled[:, None], self.features[assigned.farthest], moved[rows, cluster])
        return moved, filled


def _with_faiss(
    features: Tensor, clusters: int, seeds: list[list[int]], max_iter: int, start: Tensor | None, spherical: bool
) -> tuple[Tensor, Tensor, float]:
    """`kmeans_tensors` by faiss, one initialization after the other."""
    import faiss  # here: a training on a GPU, and of many images, does without it

    samples, results = features.numpy(), []
    for seed in seeds:
        run = faiss.Kmeans(
            features.shape[1],
            clusters,
            niter=max_iter,
            seed=int(np.random.SeedSequence(seed).generate_state(1)[0]) % 2**31,
            spherical=spherical,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
            min_points_per_centroid=1,
            max_points_per_centroid=len(samples),  # faiss would silently train on 256 a centroid
            early_stop_threshold=TOLERANCE,
        )
        run.index = faiss.IndexFlatL2(features.shape[1])  # of distances even if spherical: their sum is the inertia
        run.train(samples, init_centroids=None if start is None else start.contiguous().numpy())
        squared, assignments = run.assign(samples)
        results.append((float(squared.sum(dtype=np.float64)), run.centroids, assignments))
    inertia, centroids, assignments = min(results, key=lambda result: result[0])
    return torch.from_numpy(centroids), torch.from_numpy(assignments).long(), inertia
