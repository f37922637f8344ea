"""Stage 1: instance concordance, which is the host's own loss (BYOL in the paper, Eq. 1)."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conr.clustering import kmeans_tensors
from conr.hosts import Host, host_class
from conr.metrics import feature_spread, label_scores
from conr.networks import Outputs, Siamese
from conr.parameters import PretrainStage
from conr.progress import Progress, silent
from conr.prototypes import membership, prototype_scattering
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute, clean_features
from conr.training.log import Row
from conr.training.loop import Recipe, train
from conr.training.pseudo_labels import PseudoLabels

LOOKS = 20  # how often, in a whole pretraining, the features are examined for the log


class InstanceConcordance:
    """The host's loss, prototype scattering if asked for, and a look at the features now and then for the log.

    Args:
        model, images, compute: as given to `train`.
        parameters: the stage's parameters.
        host: the framework.
        labels: (N,) int64 for scores only, −1 where unknown; or None.
    """

    def __init__(
        self,
        model: Siamese,
        images: Tensor,
        compute: Compute,
        parameters: PretrainStage,
        host: Host,
        labels: NDArray[np.int64] | None,
    ) -> None:
        self.model, self.images, self.compute, self.labels = model, images, compute, labels
        self.host, self.settings = host, parameters.pretrain
        self.warmup_epochs = parameters.optimiser.warmup_epochs
        self.pseudo_labels = PseudoLabels(model, images, compute, self.settings.prototypes, parameters.seed)
        self.scattering = 0.0

    def start_epoch(self, epoch: int) -> None:
        """After the warm-up cluster for the prototypes that are scattered."""
        self.scattering = self.settings.scattering if epoch >= self.warmup_epochs else 0.0
        if self.scattering > 0:
            self.pseudo_labels.renew()

    def loss(self, outputs: Outputs, indices: Tensor) -> Tensor:
        """The host's loss in both directions; plus the weighted scattering, the mean of both directions."""
        loss = self.host.instance_loss(outputs.predictions, outputs.targets)
        self.host.remember(outputs.targets)
        if self.scattering > 0:
            members = membership(self.pseudo_labels.assignments[indices], self.settings.prototypes)
            loss = loss + self.scattering * scattering(outputs, members, self.settings.scattering_temperature)
        return loss

    def end_epoch(self, epoch: int) -> Row:
        """Log how spread the features are (collapse shows here), and scores if there are labels."""
        if not examined(epoch, self.settings.epochs):
            return {}
        features = clean_features(self.model.target, self.images, self.compute, silent, "look")
        row: Row = {"spread": feature_spread(features)}
        if self.labels is not None:
            classes = max(len(np.unique(self.labels[self.labels >= 0])), 1)
            _, assignments, _ = kmeans_tensors(features, classes, seed=0, restarts=10)
            row |= label_scores(self.labels, assignments.cpu().numpy())
        return row

    def state(self) -> dict[str, Tensor]:
        """The host's memory and the last centroids."""
        return self.host.state() | self.pseudo_labels.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the host's memory and the last centroids."""
        self.host.load_state(state)
        self.pseudo_labels.load_state(state)


def examined(epoch: int, epochs: int) -> bool:
    """Whether the log takes a look at the features after this epoch, counted from 0; after the last one it does."""
    return (epoch + 1) % max(epochs // LOOKS, 1) == 0 or epoch == epochs - 1


def scattering(outputs: Outputs, members: Tensor, temperature: float) -> Tensor:
    """Prototype scattering from each view's online features to the other's targets, the mean of both directions."""
    forth = prototype_scattering(outputs.projections[0], outputs.targets[1], members, temperature)
    back = prototype_scattering(outputs.projections[1], outputs.targets[0], members, temperature)
    return (forth + back) / 2


def pretrain(
    model: Siamese,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    parameters: PretrainStage,
    checkpoint: Checkpoint,
    progress: Progress = silent,
) -> list[Row]:
    """Train a model with its host's instance loss, in place.

    Args:
        model: freshly initialised networks.
        images: (N, H, W, 3) uint8.
        labels: (N,) int64 for the log only, −1 where unknown; or None.
        parameters: the stage's parameters.
        checkpoint: where to resume from and save to.
        progress: told of every step.

    Returns:
        The log, a row an epoch.

    Raises:
        UserError: there is no such device, or the loss is not finite.
    """
    compute = Compute.choose(parameters.device, parameters.precision)
    model.to(compute.device).to(memory_format=torch.channels_last)
    placed = compute.place(images)
    settings = parameters.pretrain
    recipe = Recipe(
        stage="pretrain",
        seed=parameters.seed,
        epochs=settings.epochs,
        first_epoch=0,
        batch_size=settings.batch_size,
        crop_scale=settings.crop_scale,
        rate=1.0,
        predictor_rate=settings.predictor_rate,
        optimiser=parameters.optimiser,
        views=parameters.views,
        noise=settings.noise,
    )
    host = host_class(parameters.host.framework)(parameters.host)
    objective = InstanceConcordance(model, placed, compute, parameters, host, labels)
    return train(model, placed, objective, recipe, compute, checkpoint, progress)
