"""Stage 1: instance concordance, which is the framework's own loss (BYOL in the paper, Eq. 1)."""

import numpy as np
from numpy.typing import NDArray

from conr.clustering.kmeans import kmeans_tensors
from conr.data.images import ImageSource
from conr.evaluation.agreement import label_scores
from conr.evaluation.scores import feature_std
from conr.frameworks import framework_class
from conr.models.siamese import Siamese
from conr.observer import SILENT, Observer
from conr.parameters import PretrainStage
from conr.training.checkpoints import Checkpoint
from conr.training.execution import Execution
from conr.training.log import Row
from conr.training.loop import train
from conr.training.objective import Context, Objective, PseudoLabels
from conr.training.recipe import Recipe
from conr.training.terms import InstanceTerm, ScatteringTerm, Term

EXAMINATIONS = 20  # how often, in a whole pretraining, the features are scored for the log
N_INIT = 10  # of k-means, for these scores


class Pretraining(Objective):
    """The framework's loss, and prototype scattering after the warm-up if asked for."""

    def __init__(self, context: Context, parameters: PretrainStage) -> None:
        self.settings = settings = parameters.pretrain
        framework = framework_class(parameters.framework.name)(parameters.framework)
        terms: list[Term] = [InstanceTerm(framework)]
        if settings.scattering > 0:
            weight, temperature = settings.scattering, settings.scattering_temperature
            terms.append(ScatteringTerm(weight, settings.prototypes, temperature, parameters.optimizer.warmup_epochs))
        super().__init__(context, framework, terms, PseudoLabels(context, settings.prototypes, parameters.seed))

    def start_epoch(self, epoch: int) -> None:
        """Cluster for the prototypes that are scattered."""
        super().start_epoch(epoch)
        if any(isinstance(term, ScatteringTerm) and term.active for term in self.terms):
            self.pseudo_labels.update()
        self.trace_clusters()

    def end_epoch(self, epoch: int, steps: int) -> Row:
        """After some epochs, log the features' standard deviation (0 is collapse), and scores if there are labels."""
        row = super().end_epoch(epoch, steps)
        if not examined(epoch, self.settings.epochs):
            return row
        features, labels = self.context.features(), self.context.labels
        row["feature_std"] = feature_std(features)
        if labels is not None:
            classes = max(len(np.unique(labels[labels >= 0])), 1)
            _, assignments, _ = kmeans_tensors(features, classes, seed=0, n_init=N_INIT)
            row |= label_scores(labels, assignments.cpu().numpy())
        return row


def examined(epoch: int, epochs: int) -> bool:
    """Whether the features are scored for the log after this epoch, counted from 0; after the last one they are."""
    return (epoch + 1) % max(epochs // EXAMINATIONS, 1) == 0 or epoch == epochs - 1


def pretrain(
    model: Siamese,
    images: ImageSource,
    labels: NDArray[np.int64] | None,
    parameters: PretrainStage,
    checkpoint: Checkpoint,
    observer: Observer = SILENT,
    execution: Execution | None = None,
) -> list[Row]:
    """Train freshly initialized networks in place, from the last checkpoint if there is one.

    Args:
        model: fresh networks; they are moved to the device.
        images: (N, H, W, 3) uint8.
        labels: (N,) int64 for the log only, −1 where unknown; or None.
        parameters: of the stage.
        checkpoint: where to resume from and save to.
        observer: notified of every step and epoch.
        execution: how to execute a step; None for the fastest way on the device.

    Returns:
        The log, one row per epoch.

    Raises:
        UserError: there is no such device, or the loss is not finite.
    """
    settings = parameters.pretrain
    recipe = Recipe(
        "pretrain", parameters.seed, settings, parameters.optimizer, parameters.views, noise_std=settings.noise_std
    )
    context = Context.on_device(model, images, labels, parameters, observer)
    execution = execution or Execution.choose(context.compute.device, parameters.training)
    return train(Pretraining(context, parameters), recipe, checkpoint, execution)
