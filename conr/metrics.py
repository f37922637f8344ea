"""Scores of a clustering: against labels, and without any."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from torch import Tensor

Integers = NDArray[np.integer]

SILHOUETTE_SAMPLE = 10_000  # the exact silhouette is quadratic in the number of images


def clustering_accuracy(labels: Integers, clusters: Integers) -> float:
    """Share of samples whose cluster is matched to their label by the best one-to-one matching (ACC).

    The matching is the Hungarian one. With more clusters than classes the surplus clusters count as wrong; with fewer,
    the surplus classes do.

    Args:
        labels: (N,) integers.
        clusters: (N,) integers; their numbering does not matter.

    Returns:
        The accuracy, in (0, 1].

    Raises:
        ValueError: the vectors are empty or of different length.
    """
    table = contingency(labels, clusters)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def class_averaged_accuracy(labels: Integers, clusters: Integers) -> float:
    """Mean over the classes of the share of a class that lies in its matched cluster; rare classes count the same.

    The matching is that of `clustering_accuracy`; where several reach the same accuracy, one of them. A class without a
    cluster counts as 0.

    Args:
        labels: (N,) integers.
        clusters: (N,) integers; their numbering does not matter.

    Raises:
        ValueError: the vectors are empty or of different length.
    """
    table = contingency(labels, clusters)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float((table[rows, columns] / table.sum(1)[rows]).sum() / table.shape[0])


def matching(labels: Integers, clusters: Integers) -> dict[int, int]:
    """The Hungarian matching behind the accuracy: cluster → label, for the matched clusters only."""
    table = contingency(labels, clusters)
    rows, columns = linear_sum_assignment(table, maximize=True)
    label_names, cluster_names = np.unique(labels), np.unique(clusters)
    return {int(cluster_names[c]): int(label_names[r]) for r, c in zip(rows, columns, strict=True)}


def contingency(labels: Integers, clusters: Integers) -> NDArray[np.int64]:
    """Counts of every (label, cluster) pair, (classes, clusters), both in sorted order.

    Raises:
        ValueError: the vectors are empty or of different length.
    """
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    if labels.ndim != 1 or labels.shape != clusters.shape:
        raise ValueError(
            f"labels and clusters must be vectors of one length, got shapes {labels.shape} and {clusters.shape}"
        )
    if labels.size == 0:
        raise ValueError("labels and clusters must not be empty")
    _, rows = np.unique(labels, return_inverse=True)
    _, columns = np.unique(clusters, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    return table


def normalised_mutual_information(labels: Integers, clusters: Integers) -> float:
    """NMI with the arithmetic mean of the entropies, in [0, 1]."""
    return float(normalized_mutual_info_score(labels, clusters))


def adjusted_rand_index(labels: Integers, clusters: Integers) -> float:
    """ARI: 1 for equal partitions, 0 expected for independent ones."""
    return float(adjusted_rand_score(labels, clusters))


def label_scores(labels: NDArray[np.int64] | None, clusters: NDArray[np.int64]) -> dict[str, float]:
    """ACC, NMI, ARI and class-averaged ACC over the samples whose label is known; empty without labels."""
    if labels is None or not (labels >= 0).any():
        return {}
    known = labels >= 0
    return {
        "acc": clustering_accuracy(labels[known], clusters[known]),
        "nmi": normalised_mutual_information(labels[known], clusters[known]),
        "ari": adjusted_rand_index(labels[known], clusters[known]),
        "class_acc": class_averaged_accuracy(labels[known], clusters[known]),
    }


def silhouette(features: NDArray[np.float32], clusters: Integers, seed: int) -> float | None:
    """Mean silhouette (Euclidean) of (N, D) features, on at most 10,000 samples; None if one cluster is left."""
    if features.shape[0] > SILHOUETTE_SAMPLE:
        chosen = np.random.default_rng(seed).choice(features.shape[0], SILHOUETTE_SAMPLE, replace=False)
        features, clusters = features[chosen], clusters[chosen]
    if not 1 < np.unique(clusters).size < features.shape[0]:
        return None
    return float(silhouette_score(features, clusters))


def neighbour_purity(labels: Integers, neighbours: Integers, queries: Integers | None = None) -> float:
    """Share of a sample's neighbours, itself left out, that carry its label.

    Args:
        labels: (N,) integers.
        neighbours: (Q, k) indices; a sample that is its own neighbour is not counted.
        queries: (Q,) indices of the samples that the rows belong to; all N in order if None.

    Returns:
        The mean over samples with at least one other neighbour, in [0, 1].
    """
    own = np.arange(len(labels)) if queries is None else queries
    other = neighbours != own[:, None]
    agree = (labels[neighbours] == labels[own][:, None]) & other
    counted = other.sum(1)
    return float((agree.sum(1)[counted > 0] / counted[counted > 0]).mean())


def cluster_sizes(assignments: Integers, clusters: int) -> NDArray[np.int64]:
    """Samples in each of K clusters, (K,)."""
    return np.bincount(assignments, minlength=clusters).astype(np.int64)


def balance(sizes: Integers) -> float:
    """Entropy of the cluster sizes over that of equal sizes: 1 when all are equal, 0 when one holds everything."""
    shares = sizes[sizes > 0] / sizes.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(len(sizes))) if len(sizes) > 1 else 1.0


def feature_spread(features: NDArray[np.float32] | Tensor) -> float:
    """Mean standard deviation of unit features per dimension, times √D: near 1 when spread, 0 when collapsed."""
    return float(torch.as_tensor(features).std(0, correction=0).mean() * features.shape[1] ** 0.5)
