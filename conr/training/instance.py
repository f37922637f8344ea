"""Stage 1: instance concordance, which is BYOL (Eq. 1)."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conr.clustering import kmeans
from conr.metrics import feature_spread, label_scores
from conr.networks import Siamese
from conr.objectives import instance_concordance, symmetrised
from conr.parameters import PretrainStage
from conr.progress import Progress, silent
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute, clean_features
from conr.training.log import Row
from conr.training.loop import Pair, Recipe, train

LOOKS = 20  # how often, in a whole pretraining, the features are examined for the log


class InstanceConcordance:
    """The BYOL loss, and a look at the features now and then for the log.

    Args:
        model, images, compute: as given to `train`.
        epochs: epochs of the stage.
        labels: (N,) int64 for scores only, −1 where unknown; or None.
    """

    def __init__(
        self, model: Siamese, images: Tensor, compute: Compute, epochs: int, labels: NDArray[np.int64] | None
    ) -> None:
        self.model, self.images, self.compute, self.labels = model, images, compute, labels
        self.every, self.last = max(epochs // LOOKS, 1), epochs - 1

    def start_epoch(self, epoch: int) -> None:
        """Nothing to prepare."""

    def loss(self, predictions: Pair, targets: Pair, indices: Tensor) -> Tensor:
        """Eq. 1 in both directions, a scalar in [−2, 2]."""
        return symmetrised(instance_concordance, predictions, targets)

    def end_epoch(self, epoch: int) -> Row:
        """Log how spread the features are (collapse shows here), and scores if there are labels."""
        if (epoch + 1) % self.every and epoch != self.last:
            return {}
        features = clean_features(self.model.target, self.images, self.compute, silent, "look")
        row: Row = {"spread": feature_spread(features)}
        if self.labels is not None:
            classes = max(len(np.unique(self.labels[self.labels >= 0])), 1)
            row |= label_scores(self.labels, kmeans(features, classes, seed=0, restarts=10).assignments)
        return row

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""


def pretrain(
    model: Siamese,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    parameters: PretrainStage,
    checkpoint: Checkpoint,
    progress: Progress = silent,
) -> list[Row]:
    """Train a model with BYOL, in place.

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
    )
    objective = InstanceConcordance(model, placed, compute, settings.epochs, labels)
    return train(model, placed, objective, recipe, compute, checkpoint, progress)
