"""Pseudo labels: k-means on the target network's features of the clean images, between epochs."""

from collections.abc import Mapping

import torch
from torch import Tensor

from conr.clustering import kmeans_tensors
from conr.networks import Siamese
from conr.progress import silent
from conr.training.compute import Compute, clean_features

FIRST_RESTARTS = 40  # restarts of the first k-means; later ones start from the last centroids


class PseudoLabels:
    """A cluster for every image, renewed from time to time.

    Args:
        model, images, compute: as given to `train`.
        clusters: K.
        seed: of the first k-means.

    Attributes:
        centroids: (K, D) float32 on the device, or None before the first `renew`.
        assignments: (N,) int64 on the device.
    """

    def __init__(self, model: Siamese, images: Tensor, compute: Compute, clusters: int, seed: int) -> None:
        self.model, self.images, self.compute = model, images, compute
        self.clusters, self.seed = clusters, seed
        self.centroids: Tensor | None = None
        self.assignments = torch.empty(0, dtype=torch.int64)

    def renew(self) -> Tensor:
        """Cluster again, from the last centroids if there are any; returns the (N, D) features on the device."""
        features = clean_features(self.model.target, self.images, self.compute, silent, "features")
        self.centroids, self.assignments, _ = kmeans_tensors(
            features, self.clusters, seed=self.seed, restarts=FIRST_RESTARTS, start=self.centroids
        )
        return features

    def state(self) -> dict[str, Tensor]:
        """Centroids and assignments; empty before the first `renew`."""
        if self.centroids is None:
            return {}
        return {"centroids": self.centroids, "pseudo_labels": self.assignments}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what an interrupted run had."""
        if "centroids" in state:
            self.centroids = state["centroids"].to(self.compute.device)
            self.assignments = state["pseudo_labels"].to(self.compute.device)
