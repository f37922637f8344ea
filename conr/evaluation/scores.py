"""The scores: name, meaning and whether higher is better; and the computation of those that need no labels."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.metrics import silhouette_score
from torch import Tensor

Integers = NDArray[np.integer]

SILHOUETTE_SAMPLE = 10_000  # the exact silhouette is quadratic in the number of images
SILHOUETTE_MEMORY = 64  # MiB of distances that are held at a time


@dataclass(frozen=True)
class Score:
    """A number about a clustering, or about the training that leads to one.

    Attributes:
        title: what people call it.
        meaning: what it says, in a sentence or two.
        higher_is_better: True where that is certain.
        in_tables: whether the tables for people have it.
    """

    title: str
    meaning: str
    higher_is_better: bool = False
    in_tables: bool = True


SCORES = {
    "acc": Score("ACC", "Images in the right cluster, if each cluster stands for one class. 1 is perfect.", True),
    "nmi": Score("NMI", "How much the cluster says about the class: 0 is nothing, 1 is everything.", True),
    "ari": Score("ARI", "Agreement on which images belong together: 0 is chance, 1 is perfect.", True),
    "class_acc": Score(
        "class ACC", "The mean of the ACC of each class: a rare class counts as much as a common one.", True
    ),
    "silhouette": Score(
        "silhouette",
        "How much closer images are to their own cluster than to the next, from −1 to 1. Needs no labels.",
        True,
    ),
    "size_entropy": Score(
        "size entropy",
        "How equal the cluster sizes are: 1 is equal, 0 is all in one cluster. Good clusters can have unequal sizes.",
    ),
    "feature_std": Score(
        "feature std", "Standard deviation of the embeddings, times √D: near 1 is healthy, 0 is collapsed.", True, False
    ),
    "inertia": Score("inertia", "Sum of squared distances to the centroids.", False, False),
    "smallest_cluster": Score("smallest cluster", "Images in it.", False, False),
    "largest_cluster": Score("largest cluster", "Images in it.", False, False),
    "loss": Score("loss", "What training minimizes; each stage has its own.", False, False),
    "candidate_fraction": Score("candidate fraction", "Images that may search for neighbors.", False, False),
    "neighbor_purity": Score("neighbors that share the image's label", "Mean over the images.", True, False),
}
AGREEMENT = ("acc", "nmi", "ari")  # those of papers, which need labels
TABLE = tuple(key for key, score in SCORES.items() if score.in_tables)


@dataclass(frozen=True)
class MeanStd:
    """The mean of several values, and their sample standard deviation; of one value only itself.

    Formatted as "0.974 ± 0.008"; the format specification is that of both numbers.

    Attributes:
        mean: of the values.
        std: None for a single value, which has none.
        count: how many values there are.
    """

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float], scale: float = 1) -> "MeanStd":
        """Of at least one value; a scale of 100 makes percent of shares."""
        scaled = [scale * value for value in values]
        return cls(statistics.mean(scaled), statistics.stdev(scaled) if len(scaled) > 1 else None, len(scaled))

    def __format__(self, specification: str) -> str:
        mean = format(self.mean, specification)
        return mean if self.std is None else f"{mean} ± {format(self.std, specification)}"


def silhouette(features: NDArray[np.float32], clusters: Integers, seed: int) -> float | None:
    """Mean silhouette (Euclidean) of (N, D) features, on at most 10,000 samples; None if one cluster is left."""
    if features.shape[0] > SILHOUETTE_SAMPLE:
        chosen = np.random.default_rng(seed).choice(features.shape[0], SILHOUETTE_SAMPLE, replace=False)
        features, clusters = features[chosen], clusters[chosen]
    if not 1 < np.unique(clusters).size < features.shape[0]:
        return None
    with config_context(working_memory=SILHOUETTE_MEMORY):
        return float(silhouette_score(features, clusters))


def cluster_sizes(assignments: Integers, clusters: int) -> NDArray[np.int64]:
    """Samples in each of K clusters, (K,)."""
    return np.bincount(assignments, minlength=clusters).astype(np.int64)


def size_entropy(sizes: Integers) -> float:
    """Entropy of the cluster sizes over that of equal sizes: 1 when all are equal, 0 when one holds everything."""
    shares = sizes[sizes > 0] / sizes.sum()
    # abs: of a single share the sum is −0.0.
    return float(abs((shares * np.log(shares)).sum()) / np.log(len(sizes))) if len(sizes) > 1 else 1.0


def feature_std(features: NDArray[np.float32] | Tensor) -> float:
    """Mean standard deviation of unit features per dimension, times √D: near 1 when healthy, 0 when collapsed."""
    return float(torch.as_tensor(features).std(0, correction=0).mean() * features.shape[1] ** 0.5)
