"""The nearest neighbors by cosine among all samples of a data set: exact, approximate, or given."""

from collections.abc import Iterator

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from conr.neighbors.lists import QUERIES, Lists
from conr.neighbors.nearest import BLOCK, largest


def exact_neighbors(features: NDArray[np.float32], k1: int, rows: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of (rows, k1) nearest neighbors by cosine, each sample first among its own, ties by index."""
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    for first in range(0, len(features), rows):
        queries = features[first : first + rows]
        found, scores = _ordered(*index.search(queries, min(k1 + 1, len(features))), first)
        # Which of equal ones faiss finds is not defined. Where that matters, all samples are compared again.
        tied = np.flatnonzero(scores[:, k1 - 1] == scores[:, -1]) if k1 < len(features) else np.empty(0, dtype=np.int64)
        for chosen in np.array_split(tied, len(tied) * len(features) // BLOCK + 1):
            found[chosen, :k1] = _exact(features, first + chosen, k1)
        yield found[:, :k1]


def approximate_neighbors(features: NDArray[np.float32], k1: int) -> Iterator[NDArray[np.int64]]:
    """`exact_neighbors` from lists of similar samples: the cost of a sample hardly grows with their number.

    Of the true neighbors, some percent are missed and others take their places.
    """
    count, lists = len(features), Lists(features)
    for first in range(0, count, QUERIES):
        found, _ = _ordered(*lists.search(features[first : first + QUERIES], k1), first)
        short = np.flatnonzero((found < 0).any(1))
        for chosen in np.array_split(short, len(short) * count // BLOCK + 1):
            found[chosen] = _exact(features, first + chosen, k1)
        yield found


def given_neighbors(neighbors: NDArray[np.int64], rows: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of given neighbors, each sample put first among its own."""
    for first in range(0, len(neighbors), rows):
        found = neighbors[first : first + rows].copy()
        own = _insert_own(found, first)
        yield np.take_along_axis(found, np.argsort(~own, axis=1, kind="stable"), 1)


def check_neighbors(neighbors: NDArray[np.int64], count: int, k1: int) -> None:
    """Check that given neighbors are k1 different samples of so many for each.

    Raises:
        ValueError: they are not; the message says how.
    """
    if neighbors.ndim != 2 or len(neighbors) != count or neighbors.shape[1] < k1:
        raise ValueError(f"neighbors must have shape ({count}, ≥ {k1}), got {neighbors.shape}")
    ordered = np.sort(neighbors[:, :k1], axis=1)
    if ordered.min() < 0 or ordered.max() >= count:  # −1: an approximate index found fewer
        raise ValueError(f"neighbors must lie between 0 and {count - 1}, got {ordered.min()} to {ordered.max()}")
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError("neighbors must name no sample twice in a row")


def _ordered(
    scores: NDArray[np.float32], found: NDArray[np.int64], first: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What an index found, and its scores: the sample itself first, the others by score, ties by index."""
    own = _insert_own(found, first)
    scores[own] = np.inf
    order = np.lexsort((found, -scores), axis=1)
    return np.take_along_axis(found, order, 1), np.take_along_axis(scores, order, 1)


def _insert_own(found: NDArray[np.int64], first: int) -> NDArray[np.bool_]:
    """Let samples that are missing among their own neighbors replace the last; returns where each one is."""
    samples = np.arange(first, first + len(found))
    missing = (found != samples[:, None]).all(1)
    found[missing, -1] = samples[missing]
    own: NDArray[np.bool_] = found == samples[:, None]
    return own


def _exact(features: NDArray[np.float32], samples: NDArray[np.int64], k1: int) -> NDArray[np.int64]:
    """The k1 nearest of some samples, from their similarities to all."""
    similarity = torch.from_numpy(features[samples] @ features.T)
    similarity[np.arange(len(samples)), samples] = torch.inf
    found: NDArray[np.int64] = largest(similarity, k1).numpy()
    return found
