"""Stage 2: group concordance with ConAff neighbours and boundary filtering, which is ConNR (Eq. 14)."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from conr.boundary import boundary_ratio, candidates, relaxed_fraction
from conr.clustering import kmeans
from conr.metrics import balance, cluster_sizes, feature_spread, label_scores
from conr.neighbourhood import conaff
from conr.networks import Siamese
from conr.objectives import group_concordance, symmetrised
from conr.parameters import FinetuneStage
from conr.progress import Progress, silent
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute, clean_features
from conr.training.log import Row
from conr.training.loop import Pair, Recipe, train

FIRST_RESTARTS = 40  # restarts of the first k-means; later ones start from the last centroids


class GroupConcordance:
    """The ConNR loss, with pseudo labels and centroids from k-means after every epoch.

    Args:
        model, images, compute: as given to `train`.
        parameters: the stage's parameters.
        labels: (N,) int64 for the log only, −1 where unknown; or None.
    """

    def __init__(
        self,
        model: Siamese,
        images: Tensor,
        compute: Compute,
        parameters: FinetuneStage,
        labels: NDArray[np.int64] | None,
    ) -> None:
        self.model, self.images, self.compute, self.parameters = model, images, compute, parameters
        self.labels = labels
        self.label_tensor = None if labels is None else torch.from_numpy(labels).to(compute.device)
        self.centroids: Tensor | None = None
        self.pseudo_labels = torch.empty(0, dtype=torch.int64)
        self.fraction = 1.0
        self.tally = torch.zeros(4, device=compute.device)

    def start_epoch(self, epoch: int) -> None:
        """Cluster once before the first epoch, and set the share of candidates (Eq. 12)."""
        if self.centroids is None:
            self._cluster()
        settings = self.parameters.finetune
        self.fraction = relaxed_fraction(
            self.parameters.fr, epoch, 0, max(1, round(settings.epochs * settings.relaxation))
        )
        self.tally.zero_()

    def loss(self, predictions: Pair, targets: Pair, indices: Tensor) -> Tensor:
        """Eq. 14 in both directions, a scalar in [−2, 2].

        Neighbours and candidates of a direction come from the target features that it pulls towards.
        """
        pseudo_labels = self.pseudo_labels[indices]
        labels = None if self.label_tensor is None else self.label_tensor[indices]

        def one_direction(prediction: Tensor, target: Tensor) -> Tensor:
            settings, parameters = self.parameters.finetune, self.parameters
            features = F.normalize(target.float(), dim=1)
            neighbours = conaff(
                features,
                parameters.k,
                parameters.k1,
                parameters.k2,
                alpha=settings.alpha,
                layers=settings.layers,
                symmetrise=settings.symmetrise,
                normalise=settings.normalise,
            )
            assert self.centroids is not None
            kept = candidates(boundary_ratio(features, pseudo_labels, self.centroids), self.fraction)
            self._count(neighbours, kept, labels)
            return group_concordance(prediction, features, neighbours, kept, settings.divisor)

        return symmetrised(one_direction, predictions, targets)

    def end_epoch(self, epoch: int) -> Row:
        """Cluster the clean features for the next epoch, and log how the clusters look."""
        features = self._cluster()
        clusters = self.parameters.clusters
        assignments = self.pseudo_labels.cpu().numpy()
        sizes = cluster_sizes(assignments, clusters)
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
        """Centroids and pseudo labels."""
        assert self.centroids is not None
        return {"centroids": self.centroids, "pseudo_labels": self.pseudo_labels}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over centroids and pseudo labels."""
        self.centroids = state["centroids"].to(self.compute.device)
        self.pseudo_labels = state["pseudo_labels"].to(self.compute.device)

    def _cluster(self) -> NDArray[np.float32]:
        features = clean_features(self.model.target, self.images, self.compute, silent, "features")
        clustering = kmeans(
            features,
            self.parameters.clusters,
            seed=self.parameters.seed,
            restarts=FIRST_RESTARTS,
            start=None if self.centroids is None else self.centroids.cpu().numpy(),
        )
        self.centroids = torch.from_numpy(clustering.centroids).to(self.compute.device)
        self.pseudo_labels = torch.from_numpy(clustering.assignments).to(self.compute.device)
        return features

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
        stage="finetune",
        seed=parameters.seed,
        epochs=settings.epochs,
        first_epoch=first_epoch,
        batch_size=settings.batch_size,
        crop_scale=settings.crop_scale,
        rate=settings.rate,
        predictor_rate=settings.rate,
        optimiser=parameters.optimiser,
        views=parameters.views,
    )
    objective = GroupConcordance(model, placed, compute, parameters, labels)
    return train(model, placed, objective, recipe, compute, checkpoint, progress)
