"""Stage 2: group concordance with ConAff neighbours and boundary filtering, which is ConNR (Eq. 14)."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from conr.boundary import boundary_ratio, candidates, relaxed_fraction
from conr.hosts import Host, host_class
from conr.metrics import balance, cluster_sizes, feature_spread, label_scores
from conr.neighbourhood import conaff, euclidean
from conr.networks import Outputs, Siamese
from conr.objectives import group_concordance, symmetrised
from conr.parameters import FinetuneStage
from conr.progress import Progress, silent
from conr.prototypes import group_compactness, high_confidence, membership, prototype_scattering
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute
from conr.training.instance import scattering
from conr.training.log import Row
from conr.training.loop import Recipe, train
from conr.training.pseudo_labels import PseudoLabels


class GroupConcordance:
    """The ConNR loss, with pseudo labels and centroids from k-means after every epoch.

    Args:
        model, images, compute: as given to `train`.
        parameters: the stage's parameters.
        host: the framework.
        labels: (N,) int64 for the log only, −1 where unknown; or None.
    """

    def __init__(
        self,
        model: Siamese,
        images: Tensor,
        compute: Compute,
        parameters: FinetuneStage,
        host: Host,
        labels: NDArray[np.int64] | None,
    ) -> None:
        self.model, self.images, self.compute, self.parameters = model, images, compute, parameters
        self.host, self.labels = host, labels
        self.label_tensor = None if labels is None else torch.from_numpy(labels).to(compute.device)
        self.pseudo_labels = PseudoLabels(model, images, compute, parameters.clusters, parameters.seed)
        self.fraction = 1.0
        self.tally = torch.zeros(4, device=compute.device)

    def start_epoch(self, epoch: int) -> None:
        """Cluster once before the first epoch, and set the share of candidates (Eq. 12)."""
        if self.pseudo_labels.centroids is None:
            self.pseudo_labels.renew()
        settings, start = self.parameters.boundary, self.parameters.fr
        if settings.filter == "relaxed":
            last = max(1, round(self.parameters.finetune.epochs * settings.relaxation))
            self.fraction = relaxed_fraction(start, epoch, 0, last)
        else:
            self.fraction = start if settings.filter == "fixed" else 1.0
        self.tally.zero_()

    def loss(self, outputs: Outputs, indices: Tensor) -> Tensor:
        """Eq. 14 in both directions, a scalar in [−2, 2], plus the weighted terms that the parameters ask for."""
        settings, clusters = self.parameters.finetune, self.parameters.clusters
        pseudo_labels = self.pseudo_labels.assignments[indices]
        if self.parameters.neighbourhood.neighbours == "none":
            loss = self.host.instance_loss(outputs.predictions, outputs.targets)
            self.tally[:2] += 1
        else:
            loss = self._group_concordance(outputs, pseudo_labels, indices)
            if settings.instance > 0:
                loss = loss + settings.instance * self.host.instance_loss(outputs.predictions, outputs.targets)
        if settings.scattering > 0:
            members = membership(pseudo_labels, clusters)
            loss = loss + settings.scattering * scattering(outputs, members, settings.scattering_temperature)
        if settings.boost > 0:
            loss = loss + settings.boost * self._boost(outputs, pseudo_labels)
        self.host.remember(outputs.targets)
        return loss

    def end_epoch(self, epoch: int) -> Row:
        """Cluster the clean features for the next epoch, and log how the clusters look."""
        features = self.pseudo_labels.renew()
        assignments = self.pseudo_labels.assignments.cpu().numpy()
        sizes = cluster_sizes(assignments, self.parameters.clusters)
        directions, kept, agreeing, pairs = self.tally.tolist()
        row: Row = {
            "kept_fraction": kept / directions,
            "cluster_sizes": " ".join(map(str, sorted(sizes.tolist(), reverse=True))),
            "balance": balance(sizes),
            "spread": feature_spread(features),
        }
        if self.labels is not None:
            row |= label_scores(self.labels, assignments)
            row["neighbour_purity"] = agreeing / pairs if pairs else None
        return row

    def state(self) -> dict[str, Tensor]:
        """Centroids, pseudo labels and the host's memory."""
        return self.host.state() | self.pseudo_labels.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over centroids, pseudo labels and the host's memory."""
        self.host.load_state(state)
        self.pseudo_labels.load_state(state)

    def _group_concordance(self, outputs: Outputs, pseudo_labels: Tensor, indices: Tensor) -> Tensor:
        """Neighbours and candidates of a direction come from the target features that it pulls towards."""
        labels = None if self.label_tensor is None else self.label_tensor[indices]

        def one_direction(prediction: Tensor, target: Tensor) -> Tensor:
            assert self.pseudo_labels.centroids is not None
            features = F.normalize(target.float(), dim=1)
            neighbours = self._neighbours(features)
            kept = candidates(boundary_ratio(features, pseudo_labels, self.pseudo_labels.centroids), self.fraction)
            self._count(neighbours, kept, labels)
            return group_concordance(prediction, features, neighbours, kept, self.parameters.finetune.divisor)

        return symmetrised(one_direction, outputs.predictions, outputs.targets)

    def _neighbours(self, features: Tensor) -> Tensor:
        """(B, k) neighbours in the batch, of the kind that the parameters name."""
        parameters, settings = self.parameters, self.parameters.neighbourhood
        if settings.neighbours == "local":
            return euclidean(features, parameters.k)
        return conaff(
            features,
            parameters.k,
            parameters.k1,
            parameters.k2,
            alpha=settings.alpha,
            layers=settings.layers,
            symmetrise=settings.symmetrise,
            normalise=settings.normalise,
        )

    def _boost(self, outputs: Outputs, pseudo_labels: Tensor) -> Tensor:
        """DCBoost: clusters of the high-confidence samples compact and apart, the instance loss on all samples.

        The mean of both directions.
        """
        settings, targets = self.parameters.finetune, outputs.targets
        total = self.host.instance_loss(outputs.predictions, targets)
        for view, other in ((0, 1), (1, 0)):
            trusted = high_confidence(targets[other], pseudo_labels, settings.boost_neighbours)
            members = membership(pseudo_labels, self.parameters.clusters, trusted)
            compactness = group_compactness(outputs.predictions[view], targets[other], members)
            apart = prototype_scattering(
                outputs.projections[view], targets[other], members, settings.scattering_temperature
            )
            total = total + compactness + apart
        return total / 2

    def _count(self, neighbours: Tensor, kept: Tensor, labels: Tensor | None) -> None:
        """Add a batch to the epoch's means of kept samples and of neighbours with the sample's own label."""
        self.tally[0] += 1
        self.tally[1] += kept.float().mean()
        if labels is not None and neighbours.shape[1] > 1:
            others = neighbours != torch.arange(len(neighbours), device=neighbours.device).unsqueeze(1)
            others &= (labels[neighbours] >= 0) & (labels.unsqueeze(1) >= 0)  # −1 is unknown
            agree = (labels[neighbours] == labels.unsqueeze(1)) & others
            self.tally[2] += agree.sum()
            self.tally[3] += others.sum()


def finetune(
    model: Siamese,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    parameters: FinetuneStage,
    first_epoch: int,
    checkpoint: Checkpoint,
    progress: Progress = silent,
    name: str = "finetune",
) -> list[Row]:
    """Train a pretrained model with ConNR, in place.

    Args:
        model: the pretrained networks.
        images: (N, H, W, 3) uint8.
        labels: (N,) int64 for the log only, −1 where unknown; or None.
        parameters: the stage's parameters.
        first_epoch: how many epochs pretraining took, t0.
        checkpoint: where to resume from and save to.
        progress: told of every step.
        name: what to call the run in messages.

    Returns:
        The log, a row an epoch.

    Raises:
        UserError: there is no such device, or the loss is not finite.
    """
    compute = Compute.choose(parameters.device, parameters.precision)
    model.to(compute.device).to(memory_format=torch.channels_last)
    placed = compute.place(images)
    settings = parameters.finetune
    recipe = Recipe(
        stage=name,
        seed=parameters.seed,
        epochs=settings.epochs,
        first_epoch=first_epoch,
        batch_size=settings.batch_size,
        crop_scale=settings.crop_scale,
        rate=settings.rate,
        predictor_rate=settings.predictor_rate,
        optimiser=parameters.optimiser,
        views=parameters.views,
    )
    host = host_class(parameters.host.framework)(parameters.host)
    objective = GroupConcordance(model, placed, compute, parameters, host, labels)
    return train(model, placed, objective, recipe, compute, checkpoint, progress)
