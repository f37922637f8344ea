"""Lists of similar samples: approximate nearest neighbors, at a cost that hardly grows with the number of samples."""

import faiss
import numpy as np
from numpy.typing import NDArray

LENGTH = 512  # samples of a list, on average
PROBED = 16  # lists that a query is compared with
TRAINED_ON = 20  # samples per list that the centers of the lists are computed from
ITERATIONS = 8  # of the k-means that computes them
QUERIES = 2**15  # that are searched together: enough for a list to be compared with many of them at once
SCORES = 2**22  # inner products that are held at a time

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


class Lists:
    """Samples in lists, each in that of the nearest center (an inverted file). A query is compared with some lists.

    Those are the lists of the 16 nearest centers. The search runs list by list: all queries that read it are compared
    with all its samples in one product of matrices. A list that each query reads on its own costs several times more.
    Lists have 512 samples on average, however many samples there are.

    Args:
        features: (N, D) float32, at least one.

    Attributes:
        centers: (L, D) float32 of unit length, by spherical k-means.
    """

    def __init__(self, features: Floats) -> None:
        lists = max(len(features) // LENGTH, 1)
        training = faiss.Kmeans(
            features.shape[1],
            lists,
            niter=ITERATIONS,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=TRAINED_ON,
        )
        training.train(features)
        self.centers = np.asarray(training.centroids)
        own = self._nearest_lists(features, 1)[:, 0]
        self._samples = np.argsort(own, kind="stable")
        self._features = features[self._samples]
        self._bounds = np.searchsorted(own[self._samples], np.arange(lists + 1))

    def search(self, queries: Floats, k: int) -> tuple[Floats, Indices]:
        """The k samples of the largest inner product among those of the lists that a query is compared with.

        Args:
            queries: (Q, D) float32.
            k: at least 1.

        Returns:
            (Q, k) inner products, descending, and samples; −inf and −1 where the lists hold fewer.
        """
        blocks = [
            self._search(queries[first : first + QUERIES], k) for first in range(0, max(len(queries), 1), QUERIES)
        ]
        scores, found = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return scores, found

    def _search(self, queries: Floats, k: int) -> tuple[Floats, Indices]:
        probed = self._nearest_lists(queries, PROBED)
        number = probed.shape[1]
        reads = np.argsort(probed, axis=None, kind="stable")  # places in `probed`, list by list
        ends = np.searchsorted(probed.ravel()[reads], np.arange(len(self._bounds)))
        scores = np.full((probed.size, k), -np.inf, np.float32)
        places = np.full((probed.size, k), -1, np.int32)  # of samples, list by list
        for which, (start, end) in enumerate(zip(self._bounds, self._bounds[1:], strict=False)):
            of_list = self._features[start:end].T
            for part in _parts(reads[ends[which] : ends[which + 1]], end - start):
                products = queries[part // number] @ of_list
                best = _largest(products, k)
                scores[part, : best.shape[1]] = np.take_along_axis(products, best, 1)
                places[part, : best.shape[1]] = best + start
        shape = len(queries), number * k
        scores, places = scores.reshape(shape), places.reshape(shape)
        best = _largest(scores, k)
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)
        places = np.take_along_axis(places, best, 1)
        return np.take_along_axis(scores, best, 1), np.where(places < 0, -1, self._samples[places])

    def _nearest_lists(self, queries: Floats, number: int) -> Indices:
        """(Q, number) lists with the nearest centers, or all, in no order."""
        lists = len(self.centers)
        found = np.empty((len(queries), min(number, lists)), np.int64)
        for part in _parts(np.arange(len(queries)), lists):
            found[part] = _largest(queries[part] @ self.centers.T, number)
        return found


def _parts(rows: Indices, columns: int) -> list[Indices]:
    """Rows in parts of which each has a bounded number of products with so many columns; none without columns."""
    step = max(SCORES // max(columns, 1), 1)
    return [rows[first : first + step] for first in range(0, len(rows) if columns else 0, step)]


def _largest(scores: Floats, k: int) -> Indices:
    """(Q, k) columns of the k largest scores of each row, or all, in no order."""
    k = min(k, scores.shape[1])
    columns: Indices = np.argpartition(scores, -k, axis=1)[:, -k:] if k > 1 else scores.argmax(1, keepdims=True)
    return columns
