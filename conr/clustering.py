"""k-means on the unit sphere, for pseudo labels between epochs and for the final clusters.

faiss is the quickest for small data sets on a CPU. What follows is for large ones, and for a GPU.

All restarts go together: one product of all samples with the centroids of all restarts. A CPU, where products cost more
than decisions, clusters a large data set by a part of it first and goes on from there with all samples; and it finishes
each restart alone, looking only at samples whose nearest centroid may have changed.
"""

from dataclasses import dataclass

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

TOLERANCE = 1e-6  # a restart ends when an iteration gains less than this share of its inertia
ROUNDING = 2e-6  # scores that differ by less, in squared lengths of the longest sample, may be equal
SCORES = {"cpu": 1 << 20, "cuda": 1 << 26}  # numbers in a block of scores: a processor's cache, a GPU's memory
CACHED = 1 << 19  # numbers in a block of samples that is read several times: a processor's cache
LARGE = 10_000  # samples from which a CPU does not leave the work to faiss
ALONE = {"cpu"}  # devices on which each restart is finished alone
TOGETHER = 4  # iterations of all restarts together before that
PART = 4  # of a large data set a CPU first clusters one sample in so many, and then all of them from there
ENOUGH = 50  # samples a cluster in that part
PATIENCE = {"cpu": 1, "cuda": 8}  # iterations between two looks at what has ended: a GPU waits for each look


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
    restarts: int = 1,
    iterations: int = 100,
    start: NDArray[np.float32] | None = None,
    spherical: bool = True,
) -> Clustering:
    """`kmeans_tensors` for arrays."""
    centroids, assignments, inertia = kmeans_tensors(
        torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)),
        clusters,
        seed=seed,
        restarts=restarts,
        iterations=iterations,
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
    restarts: int = 1,
    iterations: int = 100,
    start: Tensor | None = None,
    spherical: bool = True,
) -> tuple[Tensor, Tensor, float]:
    """k-means on all samples, on the device where they are; of several restarts, the one with the lowest inertia.

    A restart ends when its inertia stands still. Where each is finished alone, it is given up if it would not reach
    the best so far even if every iteration left gained as much as its last one (the gains of k-means mostly fall).

    Memory beside the features: about 20 bytes a sample and restart, and one block of scores.

    Args:
        features: (N, D) float32, l2-normalised if spherical.
        clusters: K, at most N.
        seed: seed of the initial centroids, different for every restart.
        restarts: how many k-means++ initialisations to try. Labels never choose among them.
        iterations: largest number of iterations of one restart; where a part comes first, on it and again on all.
        start: (K, D) centroids to start from instead, on the same device; then there is one run.
        spherical: keep the centroids on the unit sphere (cosine k-means).

    Returns:
        Centroids, (K, D) float32; assignments, (N,) int64; and the inertia.

    Raises:
        ValueError: more clusters than samples, no restart or iteration, or a start of another shape.
    """
    count, dimension = features.shape
    if not 1 <= clusters <= count:
        raise ValueError(f"clusters = {clusters} must lie between 1 and the number of samples ({count})")
    if restarts < 1 or iterations < 1:
        raise ValueError(f"restarts = {restarts} and iterations = {iterations} must be at least 1")
    if start is not None and start.shape != (clusters, dimension):
        raise ValueError(f"start must have shape {(clusters, dimension)}, got {tuple(start.shape)}")
    if features.device.type == "cpu" and count < LARGE:
        return _with_faiss(features, clusters, seed, restarts, iterations, start, spherical)
    centre = torch.zeros_like(features[0]) if spherical else features.mean(0)
    if not spherical:
        features = features - centre  # shorter vectors: closer bounds, smaller rounding errors
    lloyd = _Lloyd(features, spherical)
    if start is not None:
        centroids, inertias = lloyd.run((start - centre).unsqueeze(0), iterations, close=True)
    elif features.device.type in ALONE and count >= PART * max(LARGE, ENOUGH * clusters):
        part = _Lloyd(features[::PART].contiguous(), spherical)
        centroids, _ = part.run(part.spread(_draws(seed, restarts, clusters)), iterations)
        centroids, inertias = lloyd.run(centroids, iterations, close=True)
    else:
        centroids, inertias = lloyd.run(lloyd.spread(_draws(seed, restarts, clusters)), iterations)
    best = centroids[int(inertias.argmin())]
    assignments = lloyd.assign(best.unsqueeze(0)).nearest[0].long()
    inertia = float(_squared_distances(features, best, assignments).sum(dtype=torch.float64))
    return best + centre, assignments, inertia


def distances_to(features: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Euclidean distances of (N, D) features to (K, D) centroids, (N, K)."""
    distances: NDArray[np.float32] = cdist(features, centroids).astype(np.float32)
    return distances


@dataclass(frozen=True)
class _Assigned:
    """All samples assigned to the centroids of R restarts.

    Attributes:
        nearest: (R, N) int32.
        margin: (R, N) float32, by how much the score of the nearest centroid is above that of the next; if asked for.
        sums: (R, K, D) float64, the sum of a cluster's samples.
        sizes: (R, K) float64.
        farthest: (R,) int64, the sample farthest from its centroid.
        distance: (R,) float32, the square of its distance.
    """

    nearest: Tensor
    margin: Tensor | None
    sums: Tensor
    sizes: Tensor
    farthest: Tensor
    distance: Tensor


class _Lloyd:
    """Lloyd's iterations on (N, D) features. The nearest centroid is the one of the highest score x·c − ‖c‖²/2."""

    def __init__(self, features: Tensor, spherical: bool) -> None:
        self.features, self.spherical = features, spherical
        self.squares = torch.linalg.vector_norm(features, dim=1).square()
        self.total = self.squares.sum(dtype=torch.float64)
        self.longest = self.squares.max().sqrt()

    def spread(self, draws: Tensor) -> Tensor:
        """Greedy k-means++ (Arthur and Vassilvitskii, 2007): (R, K, L) random numbers to (R, K, D) centroids.

        L samples are drawn by their squared distance to the centroids before; the best of them is the next centroid.
        """
        features, draws = self.features, draws.to(self.features.device)
        chosen = (draws[:, 0, 0] * len(features)).long()
        nearest = self._distances_to_samples(chosen)
        centroids = [features[chosen]]
        for column in draws[:, 1:].unbind(1):
            # Whole numbers add up to the same in any order: the draw depends on no device and no number of threads.
            share = nearest / nearest.amax(1, keepdim=True).clamp(min=torch.finfo(nearest.dtype).tiny)
            sums = share.mul_(2**30).long().cumsum(1)
            places = (column * sums[:, -1:]).long()
            candidates = torch.searchsorted(sums, places, right=True).clamp(max=len(features) - 1)
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

    def run(self, centroids: Tensor, iterations: int, close: bool = False) -> tuple[Tensor, Tensor]:
        """All restarts to their end, from (R, K, D) centroids that may be close to it; centroids and (R,) inertias."""
        if centroids.device.type not in ALONE:
            return self.together(centroids, iterations)
        if not close and iterations > TOGETHER:
            centroids, _ = self.together(centroids, TOGETHER)
            iterations -= TOGETHER
        return self.alone(centroids, iterations)

    def together(self, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """All restarts in step, from (R, K, D) centroids; returns them at the end, and their (R,) inertias."""
        patience = PATIENCE[centroids.device.type]
        centroids = centroids.clone()
        inertias = torch.full((len(centroids),), torch.inf, dtype=torch.float64, device=centroids.device)
        going = torch.ones_like(inertias, dtype=torch.bool)
        for iteration in range(iterations):
            if iteration % patience == 0:
                rows = going.nonzero()[:, 0]
                if not len(rows):
                    break
            own, before, still = centroids[rows], inertias[rows], going[rows]
            assigned = self.assign(own)
            inertia = self.inertia(own, assigned.sums, assigned.sizes)
            moved = self.means(own, assigned.sums, assigned.sizes)
            rescued = self._rescue(moved, assigned)
            inertias[rows] = torch.where(still, inertia, before)
            ended = before - inertia <= TOLERANCE * inertia
            centroids[rows] = torch.where(still[:, None, None], moved, own)
            going[rows] = still & (~ended | rescued)
        return centroids, inertias

    def alone(self, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """The same one restart after the other, the most promising first, with few samples looked at."""
        assigned = self.assign(centroids, margins=True)
        assert assigned.margin is not None
        inertias = self.inertia(centroids, assigned.sums, assigned.sizes)
        best = torch.full_like(inertias[0], torch.inf)
        for row in inertias.argsort().tolist():
            centroids[row], inertias[row] = self._finish(
                centroids[row],
                assigned.nearest[row].long(),
                assigned.margin[row],
                assigned.sums[row],
                assigned.sizes[row],
                best,
                iterations,
            )
            best = torch.minimum(best, inertias[row])
        return centroids, inertias

    def assign(self, centroids: Tensor, margins: bool = False) -> _Assigned:
        """Look at all samples, in blocks of bounded memory."""
        restarts, clusters, dimension = centroids.shape
        count, device = len(self.features), centroids.device
        flat, halves = centroids.flatten(0, 1), (centroids.square().sum(2) / 2).view(-1, 1)
        nearest = torch.empty(restarts, count, dtype=torch.int32, device=device)
        margin = torch.empty(restarts, count, device=device) if margins else None
        sums = torch.zeros(restarts, clusters, dimension, dtype=torch.float64, device=device)
        sizes = torch.zeros(restarts, clusters, dtype=torch.float64, device=device)
        farthest = torch.zeros(restarts, dtype=torch.int64, device=device)
        distance = torch.full((restarts,), -torch.inf, device=device)
        size = max(SCORES[device.type] // len(flat), 1)
        for first in range(0, count, size):
            rows, block = self.features[first : first + size], slice(first, first + size)
            scores = torch.addmm(halves, flat, rows.T, beta=-1).view(restarts, clusters, -1)
            highest, own = scores.max(1)
            nearest[:, block] = own
            own = own.unsqueeze(1)
            if margin is not None:
                margin[:, block] = highest - scores.scatter_(1, own, -torch.inf).amax(1)
            members = scores.zero_().scatter_(1, own, 1.0)
            sizes += members.sum(2)
            sums += (members.flatten(0, 1) @ rows).view_as(sums)
            far, sample = (self.squares[block] - 2 * highest).max(1)
            farthest = torch.where(far > distance, sample + first, farthest)
            distance = torch.maximum(far, distance)
        return _Assigned(nearest, margin, sums, sizes, farthest, distance)

    def inertia(self, centroids: Tensor, sums: Tensor, sizes: Tensor) -> Tensor:
        """Sum of squared distances of samples to centroids (..., K, D), from the sums and sizes of their clusters."""
        centroids = centroids.double()
        scores = (sums * centroids).sum((-2, -1)) - (sizes * centroids.square().sum(-1)).sum(-1) / 2
        inertia: Tensor = self.total - 2 * scores
        return inertia

    def means(self, centroids: Tensor, sums: Tensor, sizes: Tensor) -> Tensor:
        """Where (..., K, D) centroids move to; that of an empty cluster stays."""
        sizes = sizes.unsqueeze(-1)
        moved = F.normalize(sums, dim=-1) if self.spherical else sums / sizes.clamp(min=1)
        return torch.where(sizes > 0, moved.float(), centroids)

    def _rescue(self, centroids: Tensor, assigned: _Assigned) -> Tensor:
        """Move, in place, an empty cluster of every restart to its farthest sample; which restarts had one, (R,)."""
        rows = torch.arange(len(centroids), device=centroids.device)
        smallest, cluster = assigned.sizes.min(1)
        empty: Tensor = (smallest == 0) & (assigned.distance > ROUNDING * self.longest**2)
        centroids[rows, cluster] = torch.where(
            empty[:, None], self.features[assigned.farthest], centroids[rows, cluster]
        )
        return empty

    def _finish(
        self,
        centroids: Tensor,
        nearest: Tensor,
        margin: Tensor,
        sums: Tensor,
        sizes: Tensor,
        best: Tensor,
        iterations: int,
    ) -> tuple[Tensor, Tensor]:
        """One restart to its end; (K, D) centroids and the inertia.

        A sample's margin shrinks by no more than what its own and any other centroid move. While it is positive, the
        sample stays where it is; if it no longer is, the sample is looked at again.
        """
        size = max(CACHED // self.features.shape[1], 1)
        before = torch.full_like(best, torch.inf)
        for iteration in range(iterations):
            inertia = self.inertia(centroids, sums, sizes)
            moved = self.means(centroids, sums, sizes)
            smallest, cluster = sizes.min(0)
            if smallest == 0:
                distances = _squared_distances(self.features, centroids, nearest)
                if distances.max() > ROUNDING * self.longest**2:
                    moved[cluster], before = self.features[distances.argmax()], inertia + torch.inf
            ended = bool(_ended(before, inertia, best, iterations - 1 - iteration))
            before, old, centroids = inertia, centroids, moved
            if ended:
                break
            margin -= self._loss_of_margin(old, centroids).index_select(0, nearest)
            halves = centroids.square().sum(1, keepdim=True) / 2
            for block in (margin < ROUNDING * self.longest**2).nonzero()[:, 0].split(size):
                rows = self.features.index_select(0, block)
                last = nearest.index_select(0, block).unsqueeze(0)
                scores = torch.addmm(halves, centroids, rows.T, beta=-1)
                highest = scores.amax(0)
                changed = (highest > scores.gather(0, last)[0]).nonzero()[:, 0]
                if len(changed):
                    gone, come = last[0, changed], scores.index_select(1, changed).max(0).indices
                    movers, one = rows.index_select(0, changed).double(), torch.ones(len(changed), dtype=sizes.dtype)
                    sums.index_add_(0, come, movers).index_add_(0, gone, movers, alpha=-1)
                    sizes.index_add_(0, come, one).index_add_(0, gone, one, alpha=-1)
                    last[0, changed] = come
                    nearest.index_copy_(0, block, last[0])
                margin.index_copy_(0, block, highest - scores.scatter_(0, last, -torch.inf).amax(0))
        return centroids, before

    def _loss_of_margin(self, old: Tensor, new: Tensor) -> Tensor:
        """By how much the margin of a cluster's samples can have shrunk, (K,), after (K, D) centroids moved."""
        moves = new - old
        apart = torch.cdist(moves, moves, compute_mode="donot_use_mm_for_euclid_dist")
        halves = (new.square().sum(1) - old.square().sum(1)) / 2
        loss: Tensor = (apart * self.longest + halves.unsqueeze(1) - halves).amax(1)
        return loss


def _ended(before: Tensor, now: Tensor, best: Tensor, left: int) -> Tensor:
    """Whether inertias stand still, or cannot come down to the best one in the iterations that are left."""
    gain = before - now
    return (gain <= TOLERANCE * now) | (now - left * gain > best)


def _draws(seed: int, restarts: int, clusters: int) -> Tensor:
    """Random numbers in [0, 1) for the L candidates of each centroid of each restart, (R, K, L) float64, on the CPU.

    L = 2 + ⌊ln K⌋, as scikit-learn.
    """
    shape = clusters, 2 + int(np.log(clusters))
    rows = [np.random.default_rng([seed, restart]).random(shape) for restart in range(restarts)]
    return torch.from_numpy(np.stack(rows))


def _squared_distances(features: Tensor, centroids: Tensor, assignments: Tensor) -> Tensor:
    """Squared distances of (N, D) features to their own of (K, D) centroids, (N,) float32."""
    size = max(CACHED // features.shape[1], 1)
    pairs = zip(torch.split(features, size), torch.split(assignments, size), strict=True)
    return torch.cat([(rows - centroids[own]).square().sum(1) for rows, own in pairs])


def _with_faiss(
    features: Tensor,
    clusters: int,
    seed: int,
    restarts: int,
    iterations: int,
    start: Tensor | None,
    spherical: bool,
) -> tuple[Tensor, Tensor, float]:
    """`kmeans_tensors` by faiss, one restart after the other."""
    results = []
    for restart in range(1 if start is not None else restarts):
        settings = faiss.ClusteringParameters()
        settings.niter = iterations
        settings.seed = int(np.random.SeedSequence([seed, restart]).generate_state(1)[0]) % 2**31
        settings.spherical = spherical
        settings.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
        settings.min_points_per_centroid = 1
        settings.max_points_per_centroid = len(features)  # faiss would silently train on 256 a centroid
        settings.early_stop_threshold = TOLERANCE
        run = faiss.Clustering(features.shape[1], clusters, settings)
        if start is not None:
            faiss.copy_array_to_vector(start.contiguous().numpy().ravel(), run.centroids)
        index = faiss.IndexFlatL2(features.shape[1])
        run.train(features.numpy(), index)
        centroids = faiss.vector_to_array(run.centroids).reshape(clusters, -1).copy()
        index.reset()
        index.add(centroids)
        squared, assignments = index.search(features.numpy(), 1)
        results.append((float(squared.sum(dtype=np.float64)), centroids, assignments[:, 0]))
    inertia, centroids, assignments = min(results, key=lambda result: result[0])
    return torch.from_numpy(centroids), torch.from_numpy(assignments).long(), inertia
