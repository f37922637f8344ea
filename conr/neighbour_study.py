"""What the two neighbourhoods find on finished features: purity against K (Fig. 2), and examples (Fig. 1b).

As in training, neighbours are searched inside groups of images: a context is to these figures what a batch is to ConNR.
Labels only judge what was found; no neighbour is chosen by them.
"""

from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from conr.boundary import boundary_ratio, candidates
from conr.neighbourhood import conaff, euclidean

MOST_CONTEXTS = 40  # 10,240 images at 256 each: enough for a smooth curve

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]
Verdict = Literal["right", "wrong", "hard positive"] | None


class Affinity(TypedDict):
    """The settings of `conr.neighbourhood.conaff` apart from the number of neighbours."""

    k1: int
    k2: int
    alpha: float
    layers: int
    symmetrise: bool
    normalise: bool


@dataclass(frozen=True)
class PurityCurves:
    """Purity of the K nearest neighbours, the curves of Fig. 2.

    Attributes:
        neighbours: (L,) int64, K from 1 to L.
        local: (L,) purity of the Euclidean neighbours, in [0, 1]; NaN where no neighbour has a known label.
        conaff: the same for the ConAff neighbours.
        conaff_filtered: the same, only the candidates of the boundary filter as queries.
    """

    neighbours: Indices
    local: NDArray[np.float64]
    conaff: NDArray[np.float64]
    conaff_filtered: NDArray[np.float64]


@dataclass(frozen=True)
class Retrieval:
    """A query and its nearest neighbours under both neighbourhoods, a pair of rows of Fig. 1b.

    Attributes:
        query: index of the query.
        local: (k,) int64 indices of its Euclidean neighbours, the nearest first.
        conaff: (k,) the same for ConAff.
        local_verdicts: a verdict on each Euclidean neighbour; None where a label is unknown.
        conaff_verdicts: the same for ConAff; a right one that is not in `local` is a "hard positive".
    """

    query: int
    local: Indices
    conaff: Indices
    local_verdicts: list[Verdict]
    conaff_verdicts: list[Verdict]


def contexts(count: int, size: int, seed: int) -> Indices:
    """Shuffle images into groups, as an epoch does; at most 40 of them.

    Args:
        count: number of images N.
        size: images in a group.
        seed: seed of the order.

    Returns:
        (G, size) int64 indices. Images that fill no group are left out; fewer than `size` images are one group of N.
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
    **affinity: Unpack[Affinity],
) -> PurityCurves:
    """The share of the K nearest neighbours that carry the query's label, for K = 1, 2 … (Fig. 2).

    The mean is over all queries with a known label. A neighbour with an unknown label does not count, nor does a
    query at a K up to which all its neighbours are such.

    Args:
        features: (N, D) unit features.
        labels: (N,) int64, −1 where unknown.
        centroids: (K, D) cluster centroids, for the boundary filter.
        assignments: (N,) int64, the cluster of each image.
        fr: the share of candidates that the boundary filter keeps in each context (Eq. 13).
        context: images among which neighbours are searched.
        largest: the largest K; at most one less than the images of a context.
        seed: seed of the contexts.
        **affinity: settings of ConAff.

    Raises:
        ValueError: a setting is impossible for a context; the message names it.
    """
    groups = contexts(len(features), context, seed)
    largest = min(largest, groups.shape[1] - 1)
    sums, counts = np.zeros((3, largest)), np.zeros((3, largest), dtype=np.int64)
    for group in groups:
        local, affine = _both_neighbourhoods(features[group], largest, affinity)
        ratio = boundary_ratio(
            torch.from_numpy(features[group]),
            torch.from_numpy(assignments[group]),
            torch.from_numpy(centroids),
        )
        everyone, clean = np.ones(len(group), dtype=np.bool_), candidates(ratio, fr).numpy()
        for curve, (neighbours, queries) in enumerate([(local, everyone), (affine, everyone), (affine, clean)]):
            purity = _purity(labels[group], neighbours, queries)
            sums[curve] += np.nansum(purity, axis=0)
            counts[curve] += (~np.isnan(purity)).sum(axis=0)
    curves = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return PurityCurves(np.arange(1, largest + 1), *curves)


def choose_queries(
    features: Floats, labels: Indices | None, *, count: int = 8, neighbours: int = 10, **affinity: Unpack[Affinity]
) -> Indices:
    """Queries to show: those whose two lists of neighbours differ most.

    With labels there is one a class first, from the most frequent class down, then a second a class, and so on. The
    labels decide which classes are shown, not whether their neighbours are right.

    Args:
        features: (B, D) unit features of one context.
        labels: (B,) int64, −1 where unknown; or None.
        count: queries to choose.
        neighbours: length of the lists; at most B − 1.
        **affinity: settings of ConAff.

    Returns:
        (Q,) int64 indices, Q ≤ count; equal differences are settled by the lower index.
    """
    local, affine = _both_neighbourhoods(features, neighbours, affinity)
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
    features: Floats, labels: Indices | None, queries: Indices, *, neighbours: int = 10, **affinity: Unpack[Affinity]
) -> list[Retrieval]:
    """The nearest neighbours of some queries under both neighbourhoods, judged by the labels (Fig. 1b).

    Args:
        features: (B, D) unit features of one context.
        labels: (B,) int64, −1 where unknown; or None.
        queries: (Q,) int64 indices into the context.
        neighbours: how many neighbours of each; at most B − 1.
        **affinity: settings of ConAff.

    Returns:
        One retrieval a query, its indices into the context.

    Raises:
        ValueError: a setting is impossible for the context; the message names it.
    """
    local, affine = _both_neighbourhoods(features, neighbours, affinity)
    known = np.full(len(features), -1, dtype=np.int64) if labels is None else labels
    found = []
    for query in queries.tolist():
        right = [_verdict(known, query, other) for other in local[query]]
        affine_right = [_verdict(known, query, other) for other in affine[query]]
        new = ~np.isin(affine[query], local[query])
        judged: list[Verdict] = [
            "hard positive" if verdict == "right" and is_new else verdict
            for verdict, is_new in zip(affine_right, new, strict=True)
        ]
        found.append(Retrieval(query, local[query], affine[query], right, judged))
    return found


def _verdict(labels: Indices, query: int, neighbour: int) -> Verdict:
    if labels[query] < 0 or labels[neighbour] < 0:
        return None
    return "right" if labels[query] == labels[neighbour] else "wrong"


def _both_neighbourhoods(features: Floats, count: int, affinity: Affinity) -> tuple[Indices, Indices]:
    """(B, count) Euclidean and ConAff neighbours of every sample, itself left out, the nearest first."""
    batch = torch.from_numpy(np.ascontiguousarray(features))
    count = min(count, len(batch) - 1)
    return _without_self(euclidean(batch, count + 1).numpy()), _without_self(
        conaff(batch, count + 1, **affinity).numpy()
    )


def _without_self(ranking: Indices) -> Indices:
    """A ranking (B, k + 1) less the sample itself, (B, k).

    Without the normalisation of rows others can be more affine to a sample than it is itself: it may then stand
    anywhere, or be missing; then the last one goes.
    """
    own = ranking == np.arange(len(ranking))[:, None]
    order = np.argsort(own, axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(ranking, order, axis=1)


def _purity(labels: Indices, neighbours: Indices, queries: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(Q, L) purity of the first 1 … L neighbours of the queries with a known label; NaN where none is known."""
    rows = np.flatnonzero(queries & (labels >= 0))
    found = labels[neighbours[rows]]
    known = (found >= 0).cumsum(axis=1)
    right = (found == labels[rows, None]).cumsum(axis=1)
    purity: NDArray[np.float64] = np.divide(right, known, out=np.full(right.shape, np.nan), where=known > 0)
    return purity
