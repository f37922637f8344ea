"""ConNR on frozen features: linear cluster heads that distill themselves over ConAff neighbors of the whole set.

Of ConNR, the neighbors are those of the whole data set instead of a batch's, a weight takes the place of the boundary
filter, and views of an image and of its neighbor agree. Loss and teacher are TEMI's (`conr.losses.distillation`).
"""

import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conr.errors import UserError
from conr.evaluation.scores import cluster_sizes, feature_std, size_entropy
from conr.losses.distillation import distillation_loss
from conr.models.cluster_heads import Head, HeadSpec
from conr.neighbors.graph import conaff_graph
from conr.neighbors.settings import ConAff
from conr.observer import SILENT, Observer
from conr.training.checkpoints import Checkpoint
from conr.training.log import Row
from conr.training.schedules import learning_rate

STEPS = 50  # of an epoch: pairs are drawn at random, so its length does not depend on the number of samples
PRIOR_MOMENTUM = 0.9  # of the moving average of the teacher's cluster sizes
STATEFUL = ("student", "teacher", "optimizer")  # parts of a training


@dataclass(frozen=True)
class HeadSettings:
    """How heads are trained.

    Attributes:
        heads, temperature: as in `HeadSpec`.
        neighbors: ConAff neighbors of a sample among which its partner is drawn; all others where there are fewer.
        epochs: of 50 steps each.
        batch_size: pairs in a step.
        learning_rate: the highest, of Adam; a step's share of it warms up over the first epoch, then falls on a cosine.
        beta: exponent of the loss, as for `distillation_loss`.
        momentum: of the teacher.
        seed: of initial weights, pairs and views.
    """

    heads: int = 16
    temperature: float = 0.1
    neighbors: int = 20
    epochs: int = 12
    batch_size: int = 512
    learning_rate: float = 0.003
    beta: float = 0.6
    momentum: float = 0.99
    seed: int = 0


def refine_heads(
    features: NDArray[np.float32],
    views: NDArray[np.float32] | None,
    clusters: int,
    neighborhood: ConAff,
    settings: HeadSettings = HeadSettings(),
    *,
    checkpoint: Checkpoint | None = None,
    observer: Observer = SILENT,
) -> tuple[Head, list[Row]]:
    """Train heads on frozen features, from the last checkpoint if there is one.

    A step draws samples, a ConAff neighbor of each, and a view of both. Its cost does not depend on N.

    Args:
        features: (N, D) float32 unit vectors of the clean images.
        views: (V, N, D) float32 unit vectors of V augmented views of each; None to train on the clean images alone.
        clusters: K, the clusters of each head.
        neighborhood, settings: how to find neighbors and how to train.
        checkpoint: where to resume from and save to; None to keep nothing.
        observer: notified of the search for neighbors, of every step and of every epoch.

    Returns:
        The teacher, and the log: a row per epoch; `cluster_sizes` and `size_entropy` are of the first head.

    Raises:
        ValueError: fewer than two samples or clusters, views of other shape, or an impossible neighborhood.
        UserError: the loss is not finite.
    """
    count, inputs = features.shape
    if count < 2 or not 2 <= clusters <= count:
        raise ValueError(f"clusters = {clusters} must lie between 2 and the number of samples ({count})")
    if views is not None and (views.ndim != 3 or not len(views) or views.shape[1:] != features.shape):
        raise ValueError(f"views must have shape (V, {count}, {inputs}), got {views.shape}")
    neighbors = conaff_graph(features, min(settings.neighbors + 1, count), neighborhood, observer=observer)
    clean, partners = torch.from_numpy(features), torch.from_numpy(neighbors[:, 1:])
    spec = HeadSpec(inputs=inputs, clusters=clusters, heads=settings.heads, temperature=settings.temperature)
    training, inputs_of_views = _Training(spec, settings), clean[None] if views is None else torch.from_numpy(views)
    history = training.resume(checkpoint)
    with observer.task("heads", settings.epochs * STEPS, done=len(history) * STEPS):
        for epoch in range(len(history), settings.epochs):
            started = time.perf_counter()
            row: Row = {"epoch": epoch + 1, "loss": training.epoch(epoch, inputs_of_views, partners, observer)}
            row |= _examine(training.teacher, clean)
            row["seconds"] = round(time.perf_counter() - started, 3)
            history.append(row)
            if checkpoint is not None and (checkpoint.due or len(history) == settings.epochs):
                checkpoint.save({**training.state(), "history": history})
            observer.epoch_done(row)
    return training.teacher, history


class _Training:
    """Student, teacher, prior and optimizer. Each epoch's randomness depends on the seed and its number only."""

    def __init__(self, spec: HeadSpec, settings: HeadSettings) -> None:
        self.settings = settings
        self.student = Head(spec, torch.Generator().manual_seed(settings.seed))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.prior = torch.full((spec.heads, spec.clusters), 1 / spec.clusters)
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=settings.learning_rate)

    def epoch(self, number: int, views: Tensor, partners: Tensor, observer: Observer) -> float:
        """Train for an epoch; returns its mean loss."""
        settings, total = self.settings, torch.zeros(())
        seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(seed & (2**63 - 1))
        for step in range(STEPS):
            progress = number + (step + 1) / STEPS
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(progress, settings.learning_rate, 1, settings.epochs)
            total += self._step(_pairs(views, partners, settings.batch_size, generator))
            observer.step_done()
        if not total.isfinite():
            raise UserError(f"heads: the loss is not a finite number in epoch {number + 1}. Lower the learning rate")
        return total.item() / STEPS

    def _step(self, pairs: Tensor) -> Tensor:
        """One update with (2 · B, D) samples, partners after their samples; returns the loss without gradient."""
        student = torch.stack(self.student.probabilities(pairs).chunk(2))
        with torch.no_grad():
            teacher = torch.stack(self.teacher.probabilities(pairs).chunk(2))
            self.prior.lerp_(teacher.mean((0, 1)), 1 - PRIOR_MOMENTUM)
        loss = distillation_loss(student, teacher, self.prior, self.settings.beta)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.teacher.weight.lerp_(self.student.weight.detach(), 1 - self.settings.momentum)
        return loss.detach()

    def state(self) -> dict[str, object]:
        """What a resumed run needs."""
        return {"prior": self.prior, **{name: getattr(self, name).state_dict() for name in STATEFUL}}

    def resume(self, checkpoint: Checkpoint | None) -> list[Row]:
        """Restore the last state, if any; returns the log so far."""
        state = None if checkpoint is None else checkpoint.load()
        if state is None:
            return []
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.prior = state["prior"]
        history: list[Row] = state["history"]
        return history


def _pairs(views: Tensor, partners: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(2 · size, D) random views of random samples, then of a random partner of each."""
    samples = torch.randint(len(partners), (size,), generator=generator)
    chosen = torch.randint(partners.shape[1], (size,), generator=generator)
    both = torch.cat((samples, partners[samples, chosen]))
    return views[torch.randint(len(views), (2 * size,), generator=generator), both]


@torch.no_grad()
def _examine(head: Head, features: Tensor) -> Row:
    assignments = head.probabilities(features)[:, 0].argmax(1).numpy()
    sizes = -np.sort(-cluster_sizes(assignments, head.spec.clusters))
    text = " ".join(map(str, sizes))
    return {"cluster_sizes": text, "size_entropy": size_entropy(sizes), "feature_std": feature_std(head(features))}
