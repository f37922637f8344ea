"""A loss is a sum of weighted, named terms: the base class, and the two terms that both stages use."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from conr.frameworks import Framework
from conr.losses.prototypes import membership, prototype_scattering
from conr.models.siamese import Outputs
from conr.observer import Observer


@dataclass(frozen=True)
class Batch:
    """What the terms of a loss are computed from.

    Attributes:
        outputs: features, predictions and targets of both views.
        indices: (B,) int64 positions of the samples in the store.
        pseudo_labels: (B,) int64, their clusters; empty where no term needs them.
        centroids: (K, D) float32 of the clusters, or None likewise.
        observer: notified of what is computed on the way.
    """

    outputs: Outputs
    indices: Tensor
    pseudo_labels: Tensor
    centroids: Tensor | None
    observer: Observer


class Term(ABC):
    """One term.

    Args:
        weight: its factor in the sum, above 0.

    Attributes:
        name: what its column in the log is called: "loss_" and this.
        active: whether it is part of the loss in the current epoch.
    """

    name: ClassVar[str]

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.active = True

    def start_epoch(self, epoch: int) -> None:  # noqa: B027 (most terms are the same in every epoch)
        """Set what changes from epoch to epoch, counted from 0 within the stage."""

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """The loss of both directions, a scalar."""

    def row(self) -> dict[str, float | None]:
        """What to log of the epoch beside the mean of the loss."""
        return {}


class InstanceTerm(Term):
    """The framework's own loss."""

    name = "instance"

    def __init__(self, framework: Framework, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.framework = framework

    def __call__(self, batch: Batch) -> Tensor:
        """The framework's instance loss of both views."""
        return self.framework.instance_loss(batch.outputs)


class ScatteringTerm(Term):
    """Prototype scattering from each view's online features to the other's targets, the mean of both directions.

    Args:
        weight: its factor.
        clusters: how many clusters the pseudo labels have.
        temperature: τ.
        first_epoch: the first epoch in which it is part of the loss.
    """

    name = "scattering"

    def __init__(self, weight: float, clusters: int, temperature: float, first_epoch: int = 0) -> None:
        super().__init__(weight)
        self.clusters, self.temperature, self.first_epoch = clusters, temperature, first_epoch

    def start_epoch(self, epoch: int) -> None:
        """Wait for the first epoch."""
        self.active = epoch >= self.first_epoch

    def __call__(self, batch: Batch) -> Tensor:
        """The mean of both directions."""
        members = membership(batch.pseudo_labels, self.clusters)
        online, target = batch.outputs.unit_projections, batch.outputs.unit_targets
        forth = prototype_scattering(online[0], target[1], members, self.temperature)
        back = prototype_scattering(online[1], target[0], members, self.temperature)
        return (forth + back) / 2
