"""What the two neighborhoods find on finished features: purity against K (Fig. 2), and examples (Fig. 1b).

As in training, neighbors are searched inside groups of images: a context is to these figures what a batch is to ConNR.
Labels are used for the scores only; no neighbor is chosen by them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from conr.neighbors.boundary import boundary_ratio, candidates
from conr.neighbors.conaff import conaff, euclidean
from conr.neighbors.purity import purity_by_rank
from conr.neighbors.settings import ConAff

MOST_CONTEXTS = 40  # 10,240 images at 256 each: enough for a smooth curve

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]
Verdict = Literal["right", "wrong", "hard positive"] | None


@dataclass(frozen=True)
class PurityCurves:
    """Purity of the K nearest neighbors, the curves of Fig. 2.

    Attributes:
        neighbors: (L,) int64, K from 1 to L.
        local: (L,) purity of the Euclidean neighbors, in [0, 1]; NaN where no neighbor has a known label.
        conaff: the same for the ConAff neighbors.
        conaff_filtered: the same, only the candidates of the boundary filter as queries.
    """

    neighbors: Indices
    local: NDArray[np.float64]
    conaff: NDArray[np.float64]
    conaff_filtered: NDArray[np.float64]


@dataclass(frozen=True)
class Retrieval:
    """A query and its nearest neighbors under both neighborhoods, a pair of rows of Fig. 1b.

    Attributes:
        query: index of the query.
        local: (k,) int64 indices of its Euclidean neighbors, the nearest first.
        conaff: (k,) the same for ConAff.
        local_verdicts: a verdict on each Euclidean neighbor; None where a label is unknown.
        conaff_verdicts: the same for ConAff; a right one that is not in `local` is a "hard positive".
    """

    query: int
    local: Indices
    conaff: Indices
    local_verdicts: list[Verdict]
    conaff_verdicts: list[Verdict]


def contexts(count: int, size: int, seed: int) -> Indices:
    """Shuffle `count` images into groups, as an epoch does: (G, size) int64 indices, G ≤ 40.

    Images that fill no group are left out; fewer than `size` images are one group.
    """
    order = np.random.default_rng(seed).permutation(count).astype(np.int64)
    size = min(size, count)
    groups = min(count // size, MOST_CONTEXTS)
    return order[: groups * size].reshape(groups, size)


def purity_curves(
    features: Floats,
    labels: Indices,
    centroids: Floats,
    assignments: Indices,
    *,
    fr: float,
    context: int,
    largest: int = 50,
    seed: int,
    settings: ConAff,
) -> PurityCurves:
    """The share of the K nearest neighbors that carry the query's label, for K = 1, 2 … (Fig. 2).

    The mean is over all queries with a known label. A neighbor with an unknown label does not count, nor does a
    query at a K up to which all its neighbors are such.

    Args:
        features: (N, D) unit features.
        labels: (N,) int64, −1 where unknown.
        centroids: (K, D) cluster centroids, for the boundary filter.
        assignments: (N,) int64, the cluster of each image.
        fr: the share of candidates that the boundary filter keeps in each context (Eq. 13).
        context: images among which neighbors are searched.
        largest: the largest K; at most one less than the images of a context.
        seed: seed of the contexts.
        settings: of ConAff.

    Raises:
        ValueError: a setting is impossible for a context; the message names it.
    """
    groups = contexts(len(features), context, seed)
    largest = min(largest, groups.shape[1] - 1)
    purities = []
    for group in groups:
        batch, known, own = (torch.from_numpy(of_all[group]) for of_all in (features, labels, assignments))
        found = _both_neighborhoods(features[group], largest, settings)
        local, affine = (purity_by_rank(known, torch.from_numpy(neighbors)) for neighbors in found)
        ratio = boundary_ratio(batch, own, torch.from_numpy(centroids))
        purities.append((local, affine, affine[candidates(ratio, fr)]))
    curves = [torch.cat(rows).nanmean(0).numpy() for rows in zip(*purities, strict=True)]
    return PurityCurves(np.arange(1, largest + 1), *curves)


def choose_queries(
    features: Floats, labels: Indices | None, *, count: int = 8, neighbors: int = 10, settings: ConAff
) -> Indices:
    """Queries to show: those whose two lists of neighbors differ most.

    With labels there is one per class first, from the most frequent class down, then a second per class, and so on. The
    labels decide which classes are shown, not whether their neighbors are right.

    Args:
        features: (B, D) unit features of one context.
        labels: (B,) int64, −1 where unknown; or None.
        count: queries to choose.
        neighbors: length of the lists; at most B − 1.
        settings: of ConAff.

    Returns:
        (Q,) int64 indices, Q ≤ count; equal differences are settled by the lower index.
    """
    local, affine = _both_neighborhoods(features, neighbors, settings)
    shared = (affine[:, :, None] == local[:, None, :]).any(axis=2).sum(axis=1)
    order = np.argsort(shared, kind="stable")
    if labels is None or not (labels >= 0).any():
        return order[:count]
    order = order[labels[order] >= 0]
    classes, sizes = np.unique(labels[order], return_counts=True)
    frequent = classes[np.argsort(-sizes, kind="stable")]
    by_class = [order[labels[order] == label] for label in frequent]
    turns = [members[turn] for turn in range(int(sizes.max())) for members in by_class if turn < len(members)]
    return np.array(turns[:count], dtype=np.int64)


def retrieved(
    features: Floats, labels: Indices | None, queries: Indices, *, neighbors: int = 10, settings: ConAff
) -> list[Retrieval]:
    """The nearest neighbors of some queries under both neighborhoods, judged by the labels (Fig. 1b).

    Args:
        features, labels, neighbors, settings: as for `choose_queries`.
        queries: (Q,) int64 indices into the context.

    Returns:
        One retrieval per query, its indices into the context.

    Raises:
        ValueError: a setting is impossible for the context; the message names it.
    """
    neighborhoods = _both_neighborhoods(features, neighbors, settings)
    known = np.full(len(features), -1, dtype=np.int64) if labels is None else labels

    def verdict(query: int, neighbor: int, local: Indices) -> Verdict:
        if min(known[query], known[neighbor]) < 0:
            return None
        if known[query] != known[neighbor]:
            return "wrong"
        return "right" if neighbor in local else "hard positive"

    found = []
    for query, local, affine in zip(queries.tolist(), *(ranking[queries] for ranking in neighborhoods), strict=True):
        judged = ([verdict(query, neighbor, local) for neighbor in others] for others in (local, affine))
        found.append(Retrieval(query, local, affine, *judged))
    return found


def _both_neighborhoods(features: Floats, count: int, settings: ConAff) -> tuple[Indices, Indices]:
    """(B, count) Euclidean and ConAff neighbors of every sample, itself left out, the nearest first."""
    batch = torch.from_numpy(features)
    count = min(count, len(batch) - 1)
    local, affine = euclidean(batch, count + 1), conaff(batch, count + 1, settings)
    return _without_self(local.numpy()), _without_self(affine.numpy())


def _without_self(ranking: Indices) -> Indices:
    """A ranking (B, k + 1) less the sample itself, (B, k).

    Without the normalization of rows others can be more affine to a sample than it is itself: it may then be
    anywhere, or missing; then the last one is removed.
    """
    own = ranking == np.arange(len(ranking))[:, None]
    order = np.argsort(own, axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(ranking, order, axis=1)
