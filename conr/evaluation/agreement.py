"""How clusters agree with labels: a contingency table, and the scores computed from it."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import mutual_info_score

Integers = NDArray[np.integer]


class Agreement:
    """Labels against clusters, with the best one-to-one matching between them (the Hungarian one).

    Args:
        labels: (N,) integers.
        clusters: (N,) integers; their numbering does not matter.

    Attributes:
        classes: the different labels, sorted.
        numbers: the different clusters, sorted.
        table: (classes, clusters) int64, how many samples have a label and a cluster.

    Raises:
        ValueError: the vectors are empty or of different length.
    """

    def __init__(self, labels: Integers, clusters: Integers) -> None:
        labels, clusters = np.asarray(labels), np.asarray(clusters)
        if labels.ndim != 1 or labels.shape != clusters.shape:
            raise ValueError(
                f"labels and clusters must be vectors of one length, got shapes {labels.shape} and {clusters.shape}"
            )
        if labels.size == 0:
            raise ValueError("labels and clusters must not be empty")
        self.classes, rows = np.unique(labels, return_inverse=True)
        self.numbers, columns = np.unique(clusters, return_inverse=True)
        shape = len(self.classes), len(self.numbers)
        cells = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
        self.table: NDArray[np.int64] = cells.reshape(shape)

    @cached_property
    def _matched(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, columns = linear_sum_assignment(self.table, maximize=True)
        return rows, columns

    @property
    def matching(self) -> dict[int, int]:
        """Cluster → label, for the matched clusters only."""
        rows, columns = self._matched
        return dict(zip(self.numbers[columns].tolist(), self.classes[rows].tolist(), strict=True))

    @property
    def accuracy(self) -> float:
        """ACC: the share of samples whose cluster is matched to their label, in (0, 1].

        With more clusters than classes the surplus clusters count as wrong; with fewer, the surplus classes do.
        """
        return float(self.table[self._matched].sum() / self.table.sum())

    @property
    def class_averaged_accuracy(self) -> float:
        """The mean over the classes of the share that lies in the matched cluster; rare classes count the same.

        Where several matchings reach the same accuracy, one of them counts. A class without a cluster counts as 0.
        """
        shares = self.table[self._matched] / self.table.sum(1)[self._matched[0]]
        return float(shares.sum() / len(self.classes))

    @property
    def normalized_mutual_information(self) -> float:
        """NMI with the arithmetic mean of the entropies, in [0, 1]; 1 where both are of one kind."""
        mean = (_entropy(self.table.sum(1)) + _entropy(self.table.sum(0))) / 2
        if mean == 0:
            return 1.0
        return float(mutual_info_score(None, None, contingency=self.table) / mean)

    @property
    def adjusted_rand_index(self) -> float:
        """ARI (Hubert & Arabie, 1985): 1 for equal partitions, 0 expected for independent ones."""
        together, of_class, of_cluster, pairs = (
            int((counts * (counts - 1) // 2).sum())
            for counts in (self.table, self.table.sum(1), self.table.sum(0), self.table.sum())
        )
        expected, largest = of_class * of_cluster, (of_class + of_cluster) * pairs
        # Numbers of pairs as Python's integers, which do not overflow.
        return 1.0 if largest == 2 * expected else 2 * (together * pairs - expected) / (largest - 2 * expected)


def _entropy(counts: NDArray[np.int64]) -> float:
    shares = counts / counts.sum()
    return max(0.0, -float((shares * np.log(shares)).sum()))


def label_scores(labels: NDArray[np.int64] | None, clusters: NDArray[np.int64]) -> dict[str, float]:
    """ACC, NMI, ARI and class-averaged ACC over the samples whose label is known.

    Empty where they would say nothing: without labels, and where all labels are one class.

    Args:
        labels: (N,) int64, −1 where unknown; or None.
        clusters: (N,) int64.

    >>> conr.label_scores(numpy.array([0, 0, 1, 1]), numpy.array([5, 5, 3, 5]))["acc"]
    0.75
    """
    if labels is None or len(np.unique(labels[labels >= 0])) < 2:
        return {}
    agreement = Agreement(labels[labels >= 0], clusters[labels >= 0])
    return {
        "acc": agreement.accuracy,
        "nmi": agreement.normalized_mutual_information,
        "ari": agreement.adjusted_rand_index,
        "class_acc": agreement.class_averaged_accuracy,
    }
