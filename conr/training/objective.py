"""What a stage minimizes: the sum of weighted, named terms, and what happens between epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conr.clustering.kmeans import kmeans_tensors
from conr.data.images import ImageSource, ShardedImages
from conr.frameworks import Framework
from conr.models.siamese import Outputs, Siamese
from conr.models.world import World
from conr.observer import Observer
from conr.parameters import FinetuneStage, PretrainStage
from conr.training.compute import Compute, clean_features
from conr.training.log import Row
from conr.training.terms import Batch, Term

FIRST_N_INIT = 40  # initializations of the first k-means; later ones start from the last centroids


@dataclass(frozen=True)
class Context:
    """What an objective is made for.

    Attributes:
        model: the networks, on the device.
        images: (N, H, W, 3) uint8, as `compute.load_images` gives them.
        labels: (N,) int64 for the log only, −1 where unknown; or None.
        compute: device and number format.
        observer: notified of what is computed.
    """

    model: Siamese
    images: Tensor | ShardedImages
    labels: NDArray[np.int64] | None
    compute: Compute
    observer: Observer

    @classmethod
    def on_device(
        cls,
        model: Siamese,
        images: ImageSource,
        labels: NDArray[np.int64] | None,
        parameters: PretrainStage | FinetuneStage,
        observer: Observer,
    ) -> "Context":
        """Move the networks, and (N, H, W, 3) images that fit, to the device that the parameters name.

        Of several processes only the main one has the labels: it alone logs.

        Raises:
            UserError: there is no such device.
        """
        compute = Compute.choose(parameters.device, parameters.precision)
        model.to(compute.device).to(memory_format=torch.channels_last)
        known = labels if World.current().is_main else None
        return cls(model, compute.load_images(images), known, compute, observer)

    def features(self) -> Tensor:
        """Features of the clean images by the target network, (N, D) unit vectors on the device."""
        return clean_features(self.model.target, self.images, self.compute)


class PseudoLabels:
    """A cluster for every image, by k-means on the target network's features of the clean images.

    Args:
        context: of the objective.
        clusters: K.
        seed: of the first k-means.

    Attributes:
        centroids: (K, D) float32 on the device, or None before the first `update`.
        assignments: (N,) int64 on the device.
    """

    def __init__(self, context: Context, clusters: int, seed: int) -> None:
        self.context, self.clusters, self.seed = context, clusters, seed
        self.centroids: Tensor | None = None
        self.assignments = torch.empty(0, dtype=torch.int64)

    def update(self) -> Tensor:
        """Cluster again, from the last centroids if there are any; returns the (N, D) features on the device.

        Of several processes the main one clusters.
        """
        features, world = self.context.features(), World.current()
        if world.is_main:
            centroids, assignments, _ = kmeans_tensors(
                features, self.clusters, seed=self.seed, n_init=FIRST_N_INIT, start=self.centroids
            )
        else:
            centroids = features.new_empty(self.clusters, features.shape[1])
            assignments = torch.empty(len(features), dtype=torch.int64, device=features.device)
        world.broadcast(centroids)
        world.broadcast(assignments)
        if self.centroids is None:
            self.centroids, self.assignments = centroids, assignments
        else:  # in place: a recorded step reads these tensors
            self.centroids.copy_(centroids)
            self.assignments.copy_(assignments)
        return features

    def state(self) -> dict[str, Tensor]:
        """Centroids and assignments; empty before the first `update`."""
        if self.centroids is None:
            return {}
        return {"centroids": self.centroids, "pseudo_labels": self.assignments}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state of an interrupted run."""
        if "centroids" in state:
            device = self.context.compute.device
            self.centroids = state["centroids"].to(device, copy=True)  # `update` writes into them
            self.assignments = state["pseudo_labels"].to(device, copy=True)


class Objective:
    """Base of both stages' objectives, which override what happens between epochs.

    Args:
        context: what it is made for.
        framework: whose queue is fed after each step.
        terms: the parts of the loss, in the order in which they are added.
        pseudo_labels: the clusters that terms refer to.
    """

    def __init__(
        self, context: Context, framework: Framework, terms: Sequence[Term], pseudo_labels: PseudoLabels
    ) -> None:
        self.context, self.framework, self.terms = context, framework, terms
        self.pseudo_labels = pseudo_labels
        self._sums = {term.name: torch.zeros((), device=context.compute.device) for term in terms}

    def start_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, counted from 0 within the stage."""
        for term in self.terms:
            term.start_epoch(epoch)
            self._sums[term.name].zero_()

    @property
    def key(self) -> tuple[str, ...]:
        """What Python decides within a step: the terms of the loss in the current epoch."""
        return tuple(term.name for term in self.terms if term.active)

    def loss(self, outputs: Outputs, indices: Tensor) -> Tensor:
        """The scalar to minimize.

        Args:
            outputs: features, predictions and targets of both views.
            indices: (B,) int64 positions of the samples in the store.
        """
        observer, clusters = self.context.observer, self.pseudo_labels
        pseudo_labels = clusters.assignments if clusters.centroids is None else clusters.assignments[indices]
        batch = Batch(outputs, indices, pseudo_labels, clusters.centroids, observer)
        losses = {}
        for term in self.terms:
            if term.active:
                loss = term(batch)
                observer.traced(f"{term.name} loss", loss)
                losses[term.name] = term.weight * loss
                self._sums[term.name] += loss.detach()
        first, *others = losses.values()
        total = sum(others, first)
        observer.traced("total loss", total)
        return total

    def after_update(self, outputs: Outputs) -> None:
        """Finish a step, after the weights have changed: nothing of its loss is needed any more."""
        self.framework.enqueue(outputs)

    def end_epoch(self, epoch: int, steps: int) -> Row:
        """Finish an epoch (the last one, too).

        Args:
            epoch: counted from 0 within the stage.
            steps: how many it had.

        Returns:
            What to log: the mean of each term, not weighted, and what the terms count.
        """
        active = [term for term in self.terms if term.active]
        row: Row = {f"loss_{term.name}": self._sums[term.name].item() / steps for term in active}
        for term in active:
            row |= term.row()
        return row

    def may_end(self, history: Sequence[Row]) -> bool:
        """Whether the training can end after these epochs, though they are not all.

        Args:
            history: the log so far; of several processes each has the same rows, but for scores.
        """
        return False

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs."""
        return self.framework.state() | self.pseudo_labels.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of an interrupted run."""
        self.framework.load_state(state)
        self.pseudo_labels.load_state(state)

    def trace_clusters(self) -> None:
        """Trace the pseudo labels that an epoch starts with."""
        self.context.observer.traced("centroids", self.pseudo_labels.centroids)
        self.context.observer.traced("pseudo labels", self.pseudo_labels.assignments)
