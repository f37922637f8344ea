"""Stage 2: group concordance with ConAff neighbors and boundary filtering, which is ConNR (Eq. 14)."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from conr.data.images import ImageSource
from conr.evaluation.agreement import label_scores
from conr.evaluation.scores import cluster_sizes, feature_std, size_entropy
from conr.frameworks import framework_class
from conr.models.siamese import Siamese
from conr.neighbors.boundary import relaxed_fraction
from conr.neighbors.conaff import conaff, euclidean
from conr.observer import SILENT, Observer
from conr.parameters import FinetuneStage
from conr.refinement.confidence import BoostTerm
from conr.refinement.group import GroupTerm, Search
from conr.training.checkpoints import Checkpoint
from conr.training.execution import Execution
from conr.training.log import Row
from conr.training.loop import train
from conr.training.objective import Context, Objective, PseudoLabels
from conr.training.recipe import Recipe
from conr.training.terms import InstanceTerm, ScatteringTerm, Term

MOVING = 0.005  # share of the images: where fewer change their cluster in an epoch, the clusters stand still


class Refinement(Objective):
    """The ConNR loss, with pseudo labels and centroids from k-means after every epoch."""

    def __init__(self, context: Context, parameters: FinetuneStage) -> None:
        settings, clusters = parameters.finetune, parameters.number
        self.patience = settings.patience
        framework = framework_class(parameters.framework.name)(parameters.framework)
        terms: list[Term]
        if parameters.neighborhood.neighbors == "none":
            terms = [InstanceTerm(framework)]
        else:
            device = context.compute.device
            labels = None if context.labels is None else torch.from_numpy(context.labels).to(device)
            size, fraction_at = settings.batch_size, partial(candidate_fraction, parameters)
            terms = [GroupTerm(neighbor_search(parameters), size, fraction_at, settings.divisor, labels, device)]
            if settings.instance > 0:
                terms.append(InstanceTerm(framework, settings.instance))
        temperature = settings.scattering_temperature
        if settings.scattering > 0:
            terms.append(ScatteringTerm(settings.scattering, clusters, temperature))
        if settings.boost > 0:
            terms.append(BoostTerm(settings.boost, framework, clusters, temperature, settings.boost_neighbors))
        super().__init__(context, framework, terms, PseudoLabels(context, clusters, parameters.seed))

    def start_epoch(self, epoch: int) -> None:
        """Cluster once before the first epoch."""
        super().start_epoch(epoch)
        if self.pseudo_labels.centroids is None:
            self.pseudo_labels.update()
        self.trace_clusters()
        for term in self.terms:
            if isinstance(term, GroupTerm):
                self.context.observer.traced("candidate fraction", term.fraction)

    def end_epoch(self, epoch: int, steps: int) -> Row:
        """Cluster the clean features for the next epoch, and log sizes and scores of the clusters."""
        row = super().end_epoch(epoch, steps)
        before = self.pseudo_labels.assignments.clone().cpu().numpy()  # `update` writes into them
        features = self.pseudo_labels.update()
        assignments = self.pseudo_labels.assignments.cpu().numpy()
        row["changed_assignments"] = float((assignments != before).mean())
        sizes = cluster_sizes(assignments, self.pseudo_labels.clusters)
        row["cluster_sizes"] = " ".join(map(str, sorted(sizes.tolist(), reverse=True)))
        row["size_entropy"] = size_entropy(sizes)
        row["feature_std"] = feature_std(features)
        if self.context.labels is not None:
            row |= label_scores(self.context.labels, assignments)
        return row

    def may_end(self, history: Sequence[Row]) -> bool:
        """Whether the clusters have stood still for as many epochs as the patience says."""
        return stand_still([row["changed_assignments"] for row in history], self.patience)


def stand_still(changed: Sequence[float | int | str | None], patience: int) -> bool:
    """Whether clusters do not move any more.

    Args:
        changed: after each epoch, the share of the images whose cluster is another one than before it.
        patience: how many of the last epochs must have had fewer changes than `MOVING`; 0 for never.
    """
    last = changed[-patience:]
    return 0 < patience == len(last) and all(isinstance(share, float) and share < MOVING for share in last)


def candidate_fraction(parameters: FinetuneStage, epoch: int) -> float:
    """The share of candidates f_r (Eq. 12) at an epoch, counted from 0 within the stage."""
    settings, start = parameters.boundary, parameters.fr
    if settings.filter == "relaxed":
        last = max(1, round(parameters.finetune.epochs * settings.relaxation))
        return relaxed_fraction(start, epoch, 0, last)
    return start if settings.filter == "fixed" else 1.0


def neighbor_search(parameters: FinetuneStage) -> Search:
    """How to find the neighbors in a batch, of the kind that the parameters name."""
    if parameters.neighborhood.neighbors == "local":
        return partial(euclidean, k=parameters.k)
    return partial(conaff, k=parameters.k, settings=parameters.conaff)


def finetune(
    model: Siamese,
    images: ImageSource,
    labels: NDArray[np.int64] | None,
    parameters: FinetuneStage,
    first_epoch: int,
    checkpoint: Checkpoint,
    observer: Observer = SILENT,
    name: str = "finetune",
    execution: Execution | None = None,
) -> list[Row]:
    """Train pretrained networks with ConNR in place; as `conr.training.pretraining.pretrain`.

    Args:
        first_epoch: how many epochs pretraining took, t0.
        name: what to call the run in messages.
        model, images, labels, parameters, checkpoint, observer, execution: as for `pretrain`.
    """
    settings = parameters.finetune
    recipe = Recipe(
        name, parameters.seed, settings, parameters.optimizer, parameters.views, first_epoch, settings.lr_scale
    )
    context = Context.on_device(model, images, labels, parameters, observer)
    execution = execution or Execution.choose(context.compute.device, parameters.training)
    return train(Refinement(context, parameters), recipe, checkpoint, execution)
